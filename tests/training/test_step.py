"""The compiled train step: the same on 1 and 8 devices, scanned or not, and compiled once."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import toy2d, vp_digits
from score_sde.errors import UserError
from score_sde.experiment import make_experiment
from score_sde.training.devices import make_strategy
from score_sde.training.ema import gamma_from_length
from score_sde.training.setup import build_train_step
from score_sde.training.state import initial_state
from tests.runs import train

BATCH = 16
AVERAGES = {"ema_decays": (0.3,), "ema_lengths": (0.1,), "ema_decay": 0.05}


def make(dropout=0.0, points=False, **training):
    """A tiny U-Net on images, or a perceptron on points, which compiles at once."""
    config = toy2d.get_config() if points else vp_digits.get_config()
    unet = {
        "channels": 8,
        "multipliers": (1,),
        "num_res_blocks": 1,
        "attention_resolutions": (8,),
        "dropout": dropout,
    }
    config.model.kwargs = {"features": (32, 32)} if points else unet
    config.training.batch_size = config.sampling.batch_size = BATCH
    config.optimizer.warmup_steps = 2
    config.training.update(training)
    return make_experiment(config, jax.devices()[:1])


@pytest.fixture(scope="module")
def start():
    """Parameters that are not the initial ones, whose last layers are nearly zero and pass no gradient on."""
    experiment = make()
    leaves, tree = jax.tree.flatten(experiment.training.init_params())
    keys = jax.random.split(jax.random.key(7), len(leaves))
    leaves = [leaf + 0.05 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return initial_state(jax.tree.unflatten(tree, leaves), experiment.training.optimizer, experiment.training.ema)


@cache
def compile_step(num_devices, dropout=0.0, strategy="pmap", points=False, **training):
    experiment = make(dropout, points, strategy=strategy, **training)
    parallel = make_strategy(strategy, jax.devices()[:num_devices])
    shapes = jax.eval_shape(lambda: experiment.training.init_state())
    return parallel, parallel.compile(
        build_train_step(experiment.training, None if points else 17, parallel.axis_name, parallel.all_gather_params),
        shapes,
    )


def prepare(start, parallel, calls, steps_per_call=1, points=False):
    """The state on the devices, and the batches of so many calls."""
    shape = (calls, steps_per_call, BATCH)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(*shape, 2)) if points else rng.integers(0, 17, (*shape, 8, 8, 1), np.uint8)
    return parallel.shard_state(start), [parallel.shard_batch({"image": batch}) for batch in images]


def run(start, num_devices, calls, steps_per_call=1, **options):
    parallel, run_steps = compile_step(num_devices, **options)
    state, batches = prepare(start, parallel, calls, steps_per_call, options.get("points", False))
    for batch in batches:
        state, metrics = run_steps(state, batch)
    return parallel.unshard(state), metrics


def relative_difference(first, second, origin):
    """Return |first - second| / |first - origin|."""
    difference = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), first, second)
    moved = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), first, origin)
    return float(jnp.sqrt(sum(jax.tree.leaves(difference)) / sum(jax.tree.leaves(moved))))


@pytest.mark.slow
def test_one_and_eight_devices_agree(start):
    """After 5 steps, to float32 rounding: dropout, too, belongs to an example and not to a device.

    Adam divides a gradient by its own size, so a gradient element near zero, whose rounding is relative to its larger
    neighbours, moves its parameter by a different amount: 1e-3 of the whole movement, where another noise gives 1.
    """
    one, metrics_one = run(start, 1, calls=5, dropout=0.3)
    eight, metrics_eight = run(start, 8, calls=5, dropout=0.3)
    assert int(one.step) == int(eight.step) == 5
    assert relative_difference(one.params, eight.params, start.params) < 1e-3
    np.testing.assert_allclose(metrics_one["loss"], metrics_eight["loss"], rtol=1e-4)


@pytest.mark.slow
def test_fsdp_agrees_with_one_device_and_cuts_the_state(start):
    """No device holds more than an eighth of the arrays that can be cut, and the others."""
    copies, _ = run(start, 1, calls=5, dropout=0.3)
    shards, _ = run(start, 8, calls=5, dropout=0.3, strategy="fsdp")
    assert relative_difference(copies.params, shards.params, start.params) < 1e-3
    assert relative_difference(copies.ema_params, shards.ema_params, start.params) < 1e-3
    parallel, _ = compile_step(8, dropout=0.3, strategy="fsdp")
    placed = parallel.shard_state(start)
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(placed))
    assert held < 0.2 * sum(leaf.size for leaf in jax.tree.leaves(placed))


@pytest.fixture(scope="module")
def on_points():
    """The state of a perceptron, and all averages that there are."""
    experiment = make(points=True, **AVERAGES)
    return experiment.training.init_state()


@pytest.mark.slow
def test_parts_of_a_batch_add_up_to_it(on_points):
    """Accumulated gradients on one device, on four, and in shards: an example's noise is its own."""
    whole, _ = run(on_points, 1, calls=3, points=True, **AVERAGES)
    for more in (
        {"num_devices": 1, "grad_accum_steps": 4},
        {"num_devices": 4, "grad_accum_steps": 2, "strategy": "fsdp"},
    ):
        parts, _ = run(on_points, calls=3, points=True, **AVERAGES, **more)
        assert relative_difference(whole.params, parts.params, on_points.params) < 1e-3


@pytest.mark.slow
def test_nonfinite_step_is_skipped_on_request(on_points):
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf), on_points.params)
    broken = on_points._replace(params=params)
    left_out, metrics = run(broken, 1, calls=2, points=True, on_nonfinite="skip", **AVERAGES)
    assert int(left_out.step) == 2 and float(metrics["nonfinite"]) == 1 and float(metrics["loss"]) == 0
    for before, after in zip(broken[2:], left_out[2:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, after, before)
    _, metrics = run(broken, 1, calls=1, points=True, **AVERAGES)
    assert float(metrics["nonfinite"]) == 1 and not np.isfinite(float(metrics["loss"]))


@pytest.mark.slow
def test_several_averages_are_kept(on_points):
    """Against their definitions, from the parameters after each step."""
    seen = [run(on_points, 1, calls=n, points=True, **AVERAGES)[0] for n in (1, 2, 3)]
    expected = dict.fromkeys(("first", "decay_0", "length_0"), on_points.params)
    for n, state in enumerate(seen):
        shares = {
            "first": 1 - min(0.05, (1 + n) / (10 + n)),
            "decay_0": 1 - min(0.3, (1 + n) / (10 + n)),
            "length_0": 1 - (1 - 1 / (n + 1)) ** (gamma_from_length(0.1) + 1),
        }
        for name, share in shares.items():
            expected[name] = jax.tree.map(
                lambda old, new, share=share: (1 - share) * old + share * new, expected[name], state.params
            )
    for name, tree in expected.items():
        found = seen[-1].ema_params if name == "first" else seen[-1].averages[name]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, tree)


@pytest.mark.slow
def test_dropout_is_on_in_training(start):
    without, _ = run(start, 1, calls=2)
    with_dropout, _ = run(start, 1, calls=2, dropout=0.3)
    assert relative_difference(without.params, with_dropout.params, start.params) > 0.1


def test_steps_per_call_change_no_bit(on_points):
    """One step per call gives the bits of two and six scanned steps per call; of a U-Net, see test_resume.py."""
    single, _ = run(on_points, 1, calls=6, points=True, **AVERAGES)
    for steps_per_call in (2, 6):
        calls = 6 // steps_per_call
        scanned, _ = run(on_points, 1, calls=calls, steps_per_call=steps_per_call, points=True, **AVERAGES)
        jax.tree.map(np.testing.assert_array_equal, single, scanned)


@pytest.mark.parametrize(
    ("num_devices", "strategy"), [pytest.param(1, "pmap", marks=pytest.mark.slow), (8, "pmap"), (8, "fsdp")]
)
def test_the_second_call_compiles_nothing(on_points, compilations, num_devices, strategy):
    compile_step.cache_clear()
    parallel, compiled = compile_step(num_devices, strategy=strategy, points=True, **AVERAGES)
    state, batches = prepare(on_points, parallel, calls=3, points=True)
    state, _ = compiled(state, batches[0])
    assert compilations  # the first call does compile, and the listener hears it
    compilations.clear()
    for batch in batches[1:]:
        state, _ = compiled(state, batch)
    assert not compilations


@pytest.mark.parametrize("strategy", ["pmap", "fsdp"])
def test_the_step_is_traced_once(strategy):
    """Large networks take seconds to trace."""
    traced = []

    def train_step(state, batch):
        traced.append(batch["image"].shape)
        return state + jnp.sum(batch["image"]), {"loss": state}

    parallel = make_strategy(strategy, jax.devices()[:1])
    state = parallel.shard_state(jnp.float32(0.0))
    batches = parallel.shard_batch({"image": np.ones((3, 2, 4), np.float32)})
    state, _ = parallel.compile(train_step, state)(state, batches)
    assert len(traced) == 1
    assert float(parallel.unshard(state)) == 24


def test_more_classes_than_those_of_the_network_are_refused(tmp_path):
    config = vp_digits.get_config()
    config.model.kwargs.num_classes = 9
    experiment = make_experiment(config, jax.devices()[:1])
    with pytest.raises(UserError, match=r"has 9 classes, the data have 10 .*num_classes=10"):
        train(experiment, tmp_path, jax.devices()[:1])
