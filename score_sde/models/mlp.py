"""Multilayer perceptrons for data of low dimension: an unrestricted one, and one whose output is a gradient."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.models.embedding import positional_embedding


class Perceptron(nn.Module):
    """Residual layers, each conditioned on the noise level."""

    features: Sequence[int]
    embedding: int
    outputs: int

    @nn.compact
    def __call__(self, x, noise_level):
        """Map x (batch, *event) and (batch,) noise levels to (batch, outputs)."""
        levels = nn.swish(nn.Dense(self.features[0], name="level")(positional_embedding(noise_level, self.embedding)))
        hidden = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.features):
            skip = hidden if hidden.shape[1] == width else 0.0
            hidden = nn.Dense(width, name=f"hidden_{i}")(hidden) + nn.Dense(width, name=f"level_{i}")(levels)
            hidden = skip + nn.swish(hidden)
        return nn.Dense(self.outputs, name="out")(hidden)


class MLP(nn.Module):
    """Perceptron whose output has the shape of x, (batch, *event).

    Attributes:
      features: Widths of the hidden layers.
      embedding: Width of the noise level's embedding, even and at least 4.
      outputs: Number of outputs of the shape of x, along its last axis; 2 for a learned variance.
    """

    features: Sequence[int] = (128, 128, 128, 128)
    embedding: int = 32
    outputs: int = 1

    @nn.compact
    def __call__(self, x, noise_level, labels=None, train=False):
        """Return the raw output."""
        _check("mlp", self.features, self.embedding, labels)
        size = x[0].size * self.outputs
        out = Perceptron(self.features, self.embedding, size, name="perceptron")(x, noise_level)
        return out.reshape(*x.shape[:-1], x.shape[-1] * self.outputs)


class EnergyMLP(nn.Module):
    """Perceptron with one output, an energy E; as a network it returns the score -grad_x E of exp(-E).

    Its output is a gradient, as every true score is. With the prediction "score", -log p_t is E up to a
    constant; with "epsilon" it is -E / sigma. See `MLP` for the attributes.
    """

    features: Sequence[int] = (128, 128, 128, 128)
    embedding: int = 32

    def setup(self):
        """Create the perceptron."""
        self.perceptron = Perceptron(self.features, self.embedding, 1)

    def __call__(self, x, noise_level, labels=None, train=False):
        """Return -grad_x E."""
        _check("energy_mlp", self.features, self.embedding, labels)
        energy, pull = nn.vjp(lambda module, x: module.energy(x, noise_level), self, x)
        return -pull(jnp.ones_like(energy))[1]

    def energy(self, x, noise_level):
        """Return the energies (batch,) of x (batch, *event) at (batch,) noise levels."""
        return self.perceptron(x, noise_level)[:, 0]


def _check(name: str, features: Sequence[int], embedding: int, labels) -> None:
    if labels is not None:
        raise UserError(f"{name}: this network is unconditional, it takes no labels")
    if not features:
        raise UserError(f"{name}: needs a hidden layer, got features={features}", "features")
    if embedding < 4 or embedding % 2:
        raise UserError(f"{name}: the embedding must be even and at least 4, got {embedding}", "embedding")
