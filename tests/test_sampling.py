"""Samples are a function of (key, index), on any number of devices and in batches of any size; compiled once."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.model import DiffusionModel
from score_sde.models import create
from score_sde.parameterization import Prediction
from score_sde.sampling import Guidance, InverseTask, Sampler, sample, sample_batches
from score_sde.sde import prior_sample, vp
from score_sde.solvers import ADAPTIVE, SOLVERS, solve, time_grid, unipc
from tests.thinned import thinned

PARAMS = {"weight": np.float32(0.8)}


class Tanh(nn.Module):
    """weight tanh(x), for images of any size."""

    @nn.compact
    def __call__(self, x, noise_level, labels=None, train=False):
        return self.param("weight", nn.initializers.ones, ()) * jnp.tanh(x)


MODEL = DiffusionModel(Tanh(), vp(), (4, 4, 1))


def sampler(name, batch_size, num_devices):
    sample_fn = partial(sample, MODEL, solver=SOLVERS[name](), times=time_grid(MODEL.sde, 20), denoise=True)
    devices = jax.devices()[:num_devices]
    return Sampler(sample_fn, jax.random.key(3), 11, batch_size, devices, dict, lambda i: None, None, None, True)


def draw(sampler, params, n):
    return [batch.x for batch in sampler.batches(params, n)]


@pytest.mark.parametrize(
    "name", thinned(("ddim", "unipc", "euler_maruyama", "predictor_corrector"), "predictor_corrector")
)
def test_neither_the_batch_nor_the_devices_change_a_sample(name):
    """To the rounding of float32 over 20 steps of elementwise work, whose fusion may differ with the shape."""
    whole = np.concatenate(draw(sampler(name, 11, 1), PARAMS, 11))
    assert whole.shape == (11, 4, 4, 1)
    assert np.std(whole, axis=0).min() > 0.1  # no two are the same
    for batch_size, num_devices in ((4, 1), (8, 8), (5, 3)):  # the last is rounded up to 6
        parts = draw(sampler(name, batch_size, num_devices), PARAMS, 11)
        assert max(len(part) for part in parts) <= batch_size + num_devices
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-4)


def test_a_second_call_compiles_nothing(compilations):
    whole = sampler("euler_maruyama", 8, 8)
    draw(whole, PARAMS, 16)
    assert compilations
    compilations.clear()
    draw(whole, {"weight": np.float32(0.5)}, 20)
    assert not compilations


def test_the_trajectory_ends_in_the_samples():
    whole = sampler("euler_maruyama", 4, 1)
    path = whole.trajectory(PARAMS, 4)
    assert path.shape == (21, 4, 4, 4, 1)
    (batch,) = whole.batches(PARAMS, 4)
    np.testing.assert_allclose(path[-1], batch.x, atol=1e-4)
    assert batch.nfe.tolist() == [21] * 4


def test_sample_is_solve_from_the_prior():
    """Bit for bit what its parts give; with one key only, the first sample alone."""
    keys = jax.random.split(jax.random.key(1), 6)
    times, solver = time_grid(MODEL.sde, 5), SOLVERS["euler_maruyama"]()
    solution = sample(MODEL, PARAMS, keys, solver=solver, times=times)
    prior_keys, solver_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    x = jax.vmap(lambda key: prior_sample(MODEL.sde, key, (4, 4, 1)))(prior_keys)
    expected = solve(solver, MODEL.sde, MODEL.denoiser(PARAMS), x, times, solver_keys)
    np.testing.assert_array_equal(solution.x, expected.x)
    alone = sample(MODEL, PARAMS, keys[:1], solver=solver, times=times)
    np.testing.assert_allclose(alone.x, solution.x[:1], rtol=1e-6, atol=1e-6)
    adaptive = sample(MODEL, PARAMS, keys, solver=ADAPTIVE["adaptive"](rtol=1e-3), denoise=True)
    assert adaptive.x.shape == (6, 4, 4, 1) and int(adaptive.nfe.min()) > 5


def test_exact_model_samples_its_mixture():
    """Components at -3 and 3 with weights 1/4 and 3/4; means, spread and labels within 4 standard errors."""
    module = create("mixture", means=((-3.0,), (3.0,)), stds=(0.5, 0.5), weights=(1.0, 3.0))
    model = DiffusionModel(module, vp(), (1,), prediction="v")
    assert model.init(jax.random.key(0)) == {}
    keys, solver = jax.random.split(jax.random.key(0), 4000), SOLVERS["dpm_solver_pp"]()
    x = sample(model, {}, keys, solver=solver, times=time_grid(model.sde, 40, "log_snr")).x[:, 0]
    right = x > 0
    assert abs(float(right.mean()) - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 4000)
    assert abs(float(x[right].mean()) - 3) < 4 * 0.5 / np.sqrt(3000)
    assert abs(float(x[right].std()) / 0.5 - 1) < 4 / np.sqrt(2 * 3000)


def test_inverse_task_keeps_what_it_measures():
    """Replacement inpaints: the observed half of every sample is the measurement, to the last step's noise."""
    from score_sde import operators

    mask = np.zeros((4, 4))
    mask[:2] = 1
    task = InverseTask("inpaint", operators.mask(mask, (4, 4, 1)), method="replacement")
    y = task.operator.forward(jnp.full((3, 4, 4, 1), 0.25))
    keys = jax.random.split(jax.random.key(0), 3)
    options = {"solver": SOLVERS["ddim"](), "times": time_grid(MODEL.sde, 20), "task": task, "denoise": True}
    x = sample(MODEL, PARAMS, keys, measurement=y, **options).x
    np.testing.assert_allclose(x[:, :2], 0.25, atol=1e-6)
    assert float(jnp.std(x[:, 2:])) > 0.05


def test_options_that_would_have_no_effect_raise():
    keys = jax.random.split(jax.random.key(0), 2)
    grid = {"solver": SOLVERS["ddim"](), "times": time_grid(MODEL.sde, 2)}
    adaptive = {"solver": ADAPTIVE["adaptive"]()}
    task = InverseTask("sdedit", None)
    y = jnp.zeros((2, 4, 4, 1))
    for options, words in (
        (grid | {"labels": jnp.zeros(2, int)}, "neither the network nor a guide has classes"),
        (grid | {"guidance": Guidance(2.0)}, "guidance has no effect"),
        (grid | {"task": task}, "expected a measurement for the task 'sdedit'"),
        (adaptive | {"task": task, "measurement": y}, "solves no inverse problem"),
        (adaptive | {"trajectory": True}, "has no trajectory"),
    ):
        with pytest.raises(UserError, match=words):
            sample(MODEL, PARAMS, keys, **options)


def test_each_sample_gets_its_inputs_whatever_the_batch():
    def labels(label, batch_size):
        def run(keys, labels, offset):
            x = jnp.zeros((len(keys), 1))
            denoiser = lambda x, t: Prediction(jnp.zeros_like(x) + (labels + offset)[:, None], x)  # noqa: E731
            return solve(SOLVERS["ddim"](), vp(), denoiser, x, time_grid(vp(), 1), keys, denoise=True)

        inputs = lambda i: {"labels": i % 3 if label < 0 else np.full_like(i, label)}  # noqa: E731
        options = {"arguments": {"offset": np.int32(10)}, "inputs": inputs}
        batches = sample_batches(run, jax.random.key(0), 7, batch_size, jax.devices()[:2], **options)
        return [value - 10 for value in np.concatenate([batch.x for batch in batches])[:, 0].tolist()]

    assert labels(-1, 4) == labels(-1, 8) == [0, 1, 2, 0, 1, 2, 0]
    assert labels(2, 4) == [2] * 7


def test_sample_batches_takes_a_function_of_keys():
    """The whole is the batches from any index on, and the function needs no other argument."""
    sample_fn = lambda k: sample(MODEL, PARAMS, k, solver=SOLVERS["ddim"](), times=time_grid(MODEL.sde, 3))  # noqa: E731
    devices = jax.devices()[:2]
    whole = np.concatenate([batch.x for batch in sample_batches(sample_fn, jax.random.key(0), 7, 4, devices)])
    rest = np.concatenate([batch.x for batch in sample_batches(sample_fn, jax.random.key(0), 7, 2, devices, first=3)])
    assert whole.shape == (7, 4, 4, 1)
    np.testing.assert_allclose(rest, whole[3:], rtol=1e-6, atol=1e-6)


def test_nan_from_the_network_is_refused():
    with pytest.raises(UserError, match="NaN or infinity"):
        draw(sampler("ddim", 8, 8), {"weight": np.float32(np.nan)}, 8)


def test_sampling_starts_at_the_first_time():
    """The prior is N(0, sigma^2) there, so that the samples of an exact network from t = 0.7 are the mixture's."""
    model = DiffusionModel(create("mixture", means=((-0.5,), (0.7,)), stds=(0.2, 0.2)), vp(), (1,), "v")
    times = time_grid(model.sde, 50, t_max=0.7)
    assert times[0] == 0.7
    keys = jax.random.split(jax.random.key(0), 4000)
    x = np.asarray(jax.jit(lambda keys: sample(model, {}, keys, solver=unipc(), times=times).x)(keys))[:, 0]
    # alpha(0.7) = 0.08: the missing signal shifts the mean by at most 0.08^2 of the data's, and x0 follows it.
    assert abs(x.mean() - 0.1) < 4 * x.std() / np.sqrt(4000) + 0.02
    assert abs((x > 0.1).mean() - 0.5) < 4 * 0.5 / np.sqrt(4000) + 0.05
    with pytest.raises(UserError, match=r"expected 0 < t_max <= 1.0, got 1.5"):
        time_grid(model.sde, 5, t_max=1.5)
