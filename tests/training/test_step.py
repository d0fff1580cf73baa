"""The compiled train step: the same on 1 and 8 devices, scanned or not, and compiled once."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import vp_digits
from score_sde.errors import UserError
from score_sde.experiment import make_experiment
from score_sde.training.loop import train
from score_sde.training.state import initial_state
from score_sde.training.step import make_train_step, on_all_devices, replicate, unreplicate

BATCH = 16


def make(devices, dropout=0.0):
    config = vp_digits.get_config()
    config.model.kwargs = {
        "channels": 8,
        "multipliers": (1,),
        "num_res_blocks": 1,
        "attention_resolutions": (8,),
        "dropout": dropout,
    }
    config.training.batch_size = config.sampling.batch_size = BATCH
    config.optimizer.warmup_steps = 2
    return make_experiment(config, devices)


@pytest.fixture(scope="module")
def start():
    """Parameters that are not the initial ones, whose last layers are nearly zero and pass no gradient on."""
    experiment = make(jax.devices()[:1])
    leaves, tree = jax.tree.flatten(experiment.init_params())
    keys = jax.random.split(jax.random.key(7), len(leaves))
    leaves = [leaf + 0.05 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return initial_state(jax.tree.unflatten(tree, leaves), experiment.optimizer)


@cache
def compile_step(num_devices, dropout=0.0):
    devices = jax.devices()[:num_devices]
    experiment = make(devices, dropout)
    step = make_train_step(
        experiment.loss_fn, experiment.optimizer, experiment.training_key, experiment.ema_decay, levels=17
    )
    return on_all_devices(step, devices)


def prepare(start, num_devices, calls, steps_per_call=1):
    """The state on the devices, and the batches of so many calls."""
    images = np.random.default_rng(0).integers(0, 17, (calls, steps_per_call, BATCH, 8, 8, 1), np.uint8)
    return replicate(start, jax.devices()[:num_devices]), [{"image": batch} for batch in images]


def run(start, num_devices, calls, steps_per_call=1, dropout=0.0):
    state, batches = prepare(start, num_devices, calls, steps_per_call)
    for batch in batches:
        state, metrics = compile_step(num_devices, dropout)(state, batch)
    return unreplicate(state), metrics


def relative_difference(first, second, origin):
    """Of what the parameters moved by: |first - second| / |first - origin|."""
    difference = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), first, second)
    moved = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), first, origin)
    return float(jnp.sqrt(sum(jax.tree.leaves(difference)) / sum(jax.tree.leaves(moved))))


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


def test_dropout_is_on_in_training(start):
    without, _ = run(start, 1, calls=2)
    with_dropout, _ = run(start, 1, calls=2, dropout=0.3)
    assert relative_difference(without.params, with_dropout.params, start.params) > 0.1


def test_steps_a_call_change_no_bit(start):
    """1 step a call, 2 and 6 scanned steps a call, on one device."""
    single, _ = run(start, 1, calls=6)
    for steps_per_call in (2, 6):
        scanned, _ = run(start, 1, calls=6 // steps_per_call, steps_per_call=steps_per_call)
        jax.tree.map(np.testing.assert_array_equal, single, scanned)


@pytest.mark.parametrize("num_devices", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_the_second_call_compiles_nothing(start, compilations, num_devices):
    compile_step.cache_clear()
    compiled = compile_step(num_devices)
    state, batches = prepare(start, num_devices, calls=3)
    state, _ = compiled(state, batches[0])
    assert compilations  # the first call does compile, and the listener hears it
    compilations.clear()
    for batch in batches[1:]:
        state, _ = compiled(state, batch)
    assert not compilations


def test_more_classes_than_the_network_knows_are_refused(tmp_path):
    config = vp_digits.get_config()
    config.model.kwargs.num_classes = 9
    experiment = make_experiment(config, jax.devices()[:1])
    with pytest.raises(UserError, match=r"knows 9 classes, the data have 10 .*num_classes=10"):
        train(experiment, tmp_path, jax.devices()[:1])
