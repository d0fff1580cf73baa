"""Optimizers and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.models import create
from score_sde.training.optimizer import OPTIMIZERS, make_optimizer


def test_frequencies_stay_and_magnitude_preserving_kernels_keep_their_size():
    """Under weight decay and a learning rate that moves every weight by 1."""
    module = create("edm2", channels=8, multipliers=(1,), num_res_blocks=1, attention_resolutions=(), head_channels=4)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1))["params"]
    rng = np.random.default_rng(0)
    params, gradient = (jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes) for _ in range(2))
    optimizer = make_optimizer("adamw", 1.0, 0, 1.0, {"weight_decay": 0.5})
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    after = jax.tree.map(jnp.add, params, updates)
    for name in ("frequencies", "phases"):
        np.testing.assert_array_equal(after["fourier"][name], params["fourier"][name])
    kernel, before = (tree["conv_in"]["magnitude_preserving"] for tree in (after, params))
    np.testing.assert_allclose(jnp.mean(kernel**2, axis=(0, 1, 2)), 1, rtol=1e-3)  # its epsilon is 1e-4
    assert float(jnp.abs(kernel - before).mean()) > 0.1
    assert float(after["gain"]) != float(params["gain"])


def rates(schedule, kwargs, warmup=0, steps=(0, 1, 5, 10, 20, 40, 80), num_steps=0):
    """Return learning rates by step, the size of each element of Lion's update."""
    optimizer = make_optimizer("lion", 0.5, warmup, 1.0, {"weight_decay": 0.0}, schedule, kwargs, num_steps)
    params = {"dense": {"kernel": jnp.ones((2, 2))}}
    state, found, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for step in range(max(steps) + 1):
        updates, state = update(params, state, params)
        if step in steps:
            found.append(-float(updates["dense"]["kernel"][0, 0]))
    return found


def test_rates_warm_up_and_decay():
    np.testing.assert_allclose(rates("constant", {}), [0.5] * 7, rtol=1e-5)
    np.testing.assert_allclose(rates("constant", {}, 10), np.array([0, 0.1, 0.5, 1, 1, 1, 1]) / 2, rtol=1e-5)
    linear = rates("linear", {"decay_steps": 40, "final": 0.1})
    np.testing.assert_allclose(linear, 0.5 * np.array([1, 0.9775, 0.8875, 0.775, 0.55, 0.1, 0.1]), rtol=1e-5)
    cosine = 0.5 * (1 + np.cos(np.pi * np.minimum(np.array([0, 1, 5, 10, 20, 40, 80]) / 40, 1)))
    np.testing.assert_allclose(rates("cosine", {"decay_steps": 40}), 0.5 * cosine, atol=1e-6)
    np.testing.assert_allclose(
        rates("inverse_sqrt", {"reference_steps": 20}), 0.5 * np.sqrt([1, 1, 1, 1, 1, 1 / 2, 1 / 4]), rtol=1e-5
    )


def test_schedules_have_default_lengths():
    """The decay lasts from the end of the warm-up to the last step."""
    steps = (0, 5, 10, 45, 80)
    progress = np.array([0, 0, 0, 0.5, 1])
    warmup = np.array([0, 0.5, 1, 1, 1])
    linear = rates("linear", {"final": 0.2}, 10, steps, num_steps=80)
    np.testing.assert_allclose(linear, 0.5 * warmup * (1 - 0.8 * progress), rtol=1e-5)
    cosine = rates("cosine", {}, 10, steps, num_steps=80)
    np.testing.assert_allclose(cosine, 0.25 * warmup * (1 + np.cos(np.pi * progress)), atol=1e-6)
    inverse = rates("inverse_sqrt", {}, 0, (5, 10, 40), num_steps=100)
    np.testing.assert_allclose(inverse, 0.5 * np.sqrt([1, 1, 0.25]), rtol=1e-5)


@pytest.mark.parametrize(("decay_steps", "num_steps"), [(5000, 10_000), (2000, 10_000), (None, 4000), (None, 0)])
def test_warmup_beyond_decay_raises(decay_steps, num_steps):
    kwargs = {} if decay_steps is None else {"decay_steps": decay_steps}
    with pytest.raises(UserError, match="expected a warm-up shorter than the decay and the training"):
        make_optimizer("adam", 1e-3, 5000, 1.0, {}, "cosine", kwargs, num_steps)


def test_infinite_learning_rate_raises():
    with pytest.raises(UserError, match="need a finite learning_rate"):
        make_optimizer("adam", float("inf"), 0, 1.0, {})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_finds_a_minimum(name):
    """Of |kernel - target|^2 + |bias|^2: a convolution's kernel, which Muon takes as a matrix, and a bias."""
    target = jax.random.normal(jax.random.key(0), (3, 3, 2, 4))
    params = {"conv": {"kernel": jnp.zeros_like(target), "bias": jnp.ones(4)}}
    learning_rate = 1.0 if name == "prodigy" else 0.05  # Prodigy's is a multiple of the rate that it estimates
    optimizer = make_optimizer(name, learning_rate, 0, 1e3, {}, "linear", {"decay_steps": 400})

    def loss(params):
        return jnp.sum((params["conv"]["kernel"] - target) ** 2) + jnp.sum(params["conv"]["bias"] ** 2)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state, first = optimizer.init(params), float(loss(params))
    for _ in range(400):
        params, state = step(params, state)
    assert float(loss(params)) < 0.01 * first


@pytest.mark.parametrize(
    ("schedule", "kwargs", "words"),
    [
        ("cosin", {}, "Did you mean 'cosine'"),
        ("cosine", {}, "decay_steps"),
        ("cosine", {"decay_steps": 0}, "numbers of steps > 0"),
        ("linear", {"decay_steps": 10, "finale": 0.1}, "Did you mean 'final'"),
    ],
)
def test_schedules_that_there_are_not_are_refused(schedule, kwargs, words):
    with pytest.raises(UserError, match=words):
        make_optimizer("adam", 1e-3, 0, 1.0, {}, schedule, kwargs)
