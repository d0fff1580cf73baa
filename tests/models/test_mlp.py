"""Multilayer perceptrons: output shapes for any event, and the gradient of an energy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.energy import score_from_energy
from score_sde.errors import UserError
from score_sde.models import create


@pytest.mark.parametrize("event", [(2,), (4, 4, 3)])
def test_output_has_event_shape_and_rows_are_independent(event):
    model = create("mlp", features=(8, 8), embedding=4)
    x, level = jax.random.normal(jax.random.key(0), (5, *event)), jnp.arange(5.0)
    variables = jax.jit(model.init)(jax.random.key(1), x, level)
    apply = jax.jit(model.apply)
    out = apply(variables, x, level)
    assert out.shape == x.shape
    np.testing.assert_allclose(apply(variables, x[2:4], level[2:4]), out[2:4], rtol=1e-5, atol=1e-6)
    assert not np.allclose(apply(variables, x, level + 1), out)  # the output depends on the noise level
    two = create("mlp", features=(8, 8), embedding=4, outputs=2)
    doubled = jax.eval_shape(two.init_with_output, jax.random.key(1), x, level)[0]
    assert doubled.shape == (5, *event[:-1], 2 * event[-1])


@pytest.mark.slow
def test_energy_mlp_returns_negative_energy_gradient():
    model = create("energy_mlp", features=(16, 16), embedding=8)
    x, level = jax.random.normal(jax.random.key(0), (6, 2)), jnp.linspace(0, 900, 6)
    variables = jax.jit(model.init)(jax.random.key(1), x, level)

    def energy(x):
        return model.apply(variables, x, level, method="energy")

    output = jax.jit(model.apply)(variables, x, level)
    np.testing.assert_allclose(output, jax.jit(score_from_energy(energy))(x), rtol=1e-5, atol=1e-7)
    # The Jacobian of a gradient is symmetric, unlike that of an unconstrained network.
    jacobian = jax.jit(jax.jacfwd(lambda row: model.apply(variables, row[None], level[:1])[0]))(x[0])
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-6)
    loss = lambda variables: jnp.sum(model.apply(variables, x, level) ** 2)  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(variables)  # the network can be trained
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [({"features": ()}, "expected at least one hidden layer"), ({"embedding": 5}, "even and at least 4")],
)
@pytest.mark.parametrize("name", ["mlp", "energy_mlp"])
def test_invalid_sizes_raise(name, kwargs, words):
    with pytest.raises(UserError, match=words):
        create(name, **kwargs).init(jax.random.key(0), jnp.ones((2, 2)), jnp.ones(2))
