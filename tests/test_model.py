"""Modules that a `DiffusionModel` accepts."""

import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from score_sde.errors import UserError
from score_sde.model import DiffusionModel, NoisyClassifier
from score_sde.models import create
from score_sde.sde import vp


class Network(nnx.Module):
    """Denoiser of points in a plane."""

    def __init__(self, features, *, rngs):
        self.inner, self.outer = nnx.Linear(3, features, rngs=rngs), nnx.Linear(features, 2, rngs=rngs)

    def __call__(self, x, noise_level, labels=None, train=False):
        return self.outer(nnx.silu(self.inner(jnp.concatenate([x, noise_level[:, None]], axis=-1))))


@pytest.mark.parametrize("kind", [DiffusionModel, NoisyClassifier])
def test_modules_other_than_linen_raise(kind):
    for module in (Network(8, rngs=nnx.Rngs(0)), Network, nn.Dense, None):
        with pytest.raises(UserError, match=f"^{kind.__name__}: expected an instance of flax.linen.Module.*ToLinen"):
            kind(module, vp(), (2,))
    with pytest.raises(UserError):
        kind(module=None, sde=vp(), event_shape=(2,))


def test_wrapped_nnx_module_trains():
    model = DiffusionModel(nnx.bridge.ToLinen(Network, args=(8,)), vp(), (2,))
    params = model.init(jax.random.key(0))
    gradient = jax.grad(lambda params: jnp.sum(model.denoiser(params)(jnp.ones((3, 2)), jnp.float32(0.5)).x0))(params)
    assert jax.tree.map(jnp.shape, gradient) == {
        "inner": {"kernel": (3, 8), "bias": (8,)},
        "outer": {"kernel": (8, 2), "bias": (2,)},
    }
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def test_model_stays_a_named_tuple():
    module, sde = create("mlp", features=(8,)), vp()
    model = DiffusionModel(module, sde, event_shape=(2,))
    assert (
        model == DiffusionModel(module=module, sde=sde, event_shape=(2,)) and model._replace(prediction="v")[3] == "v"
    )
    assert pickle.loads(pickle.dumps(model._replace(sde=None))) == model._replace(sde=None)
