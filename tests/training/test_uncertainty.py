"""Uncertainty weighting: the learned log of the loss is that of the closed form, and a run with it works as others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import toy2d
from score_sde import models
from score_sde.errors import UserError
from score_sde.experiment import make_experiment
from score_sde.experiment.modes import evaluate, export
from score_sde.model import DiffusionModel
from score_sde.randomness import make_example_rngs
from score_sde.score_matching import OBJECTIVES
from score_sde.sde import edm
from score_sde.time_samplers import TIME_SAMPLERS
from score_sde.training.loss import continuous_loss
from score_sde.training.uncertainty import NAME, log_uncertainty, with_uncertainty
from score_sde.weightings import WEIGHTINGS
from tests.runs import load_params, train


def test_the_optimum_is_the_log_of_the_expected_loss():
    """For data N(0, s^2) and the exact denoiser of edm, lambda E|D - x0|^2 = lambda s^2 sigma^2 / (s^2 + sigma^2)."""
    sde, std, sigma_data, number = edm(), 0.8, 0.2, 1024
    model = DiffusionModel(models.create("mixture", means=((0.0,),), stds=(std,)), sde, (1,), "v")
    sample_times = TIME_SAMPLERS["log_normal"](stratified=True)
    loss_fn = continuous_loss(model, OBJECTIVES["denoising"](), WEIGHTINGS["edm"](sigma_data), sample_times, 1e-5, True)
    optimizer = optax.adam(optax.exponential_decay(0.02, 1, 0.995))

    def step(carry, n):
        params, state = carry
        rngs = make_example_rngs(jax.random.key(0), n, jnp.arange(number), number)
        x0 = std * jax.random.normal(jax.random.fold_in(jax.random.key(1), n), (number, 1))
        gradient = jax.grad(lambda params: jnp.mean(loss_fn(params, x0, rngs)))(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    start = with_uncertainty({})
    (params, _), _ = jax.jit(lambda *carry: jax.lax.scan(step, carry, jnp.arange(1500)))(start, optimizer.init(start))
    sigma = np.exp(-1.2 + 1.2 * np.linspace(-1.5, 1.5, 31))  # where the times are dense
    expected = np.log((sigma**2 + sigma_data**2) * std**2 / (sigma_data**2 * (std**2 + sigma**2)))
    assert np.ptp(expected) > 1.0
    # The loss of an example is expected times z^2: after 1,500 steps of 1,024 the mean of a region is known to 1%.
    np.testing.assert_allclose(log_uncertainty(params, jnp.asarray(-2 * np.log(sigma))), expected, atol=0.05)


def config(**loss):
    made = toy2d.get_config()
    made.model.kwargs = {"features": (8,)}
    made.training.update(batch_size=8, num_steps=20, steps_per_call=1, log_every=10, checkpoint_every=10)
    made.training.sample_every = 20
    made.sampling.update(num_steps=4, num_samples=10, batch_size=50)
    made.evaluation.update(num_samples=20, num_real=50, diagnostics_levels=2)
    made.loss.update(loss)
    return made


def test_a_run_learns_it_and_exports_the_network_alone(tmp_path):
    devices = jax.devices()[:1]
    experiment = make_experiment(config(uncertainty=True), devices)
    train(experiment, tmp_path / "run", devices)
    assert '"copies"' in evaluate(experiment, tmp_path / "run")
    export(experiment, tmp_path / "run")
    (weights,) = (tmp_path / "run").glob("*.safetensors")
    fresh = config(uncertainty=True)
    fresh.model.pretrained = str(weights)
    resumed = make_experiment(fresh, devices).training.init_params()
    averaged, _ = load_params(experiment, tmp_path / "run")
    assert not np.any(resumed.pop(NAME)) and np.any(averaged.pop(NAME))
    jax.tree.map(np.testing.assert_array_equal, resumed, averaged)


@pytest.mark.parametrize("objective", ["implicit", "ddpm"])
def test_losses_that_are_no_squared_errors_are_refused(objective):
    with pytest.raises(UserError, match="uncertainty is the log of a loss"):
        make_experiment(config(uncertainty=True, objective=objective), jax.devices()[:1])
