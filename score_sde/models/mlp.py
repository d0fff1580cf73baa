"""Multilayer perceptrons for low-dimensional data: an unconstrained network, and the gradient of an energy."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.models.embedding import NextLevelEmbedding, check_two_times, positional_embedding


class Perceptron(nn.Module):
    """Residual MLP in which every layer takes the noise level's embedding as input."""

    features: Sequence[int]
    embedding: int
    outputs: int
    two_times: bool = False

    @nn.compact
    def __call__(self, x, noise_level, next_level=None):
        """Return outputs (batch, outputs) for x (batch, *event) and noise levels (batch,)."""
        levels = nn.Dense(self.features[0], name="level")(positional_embedding(noise_level, self.embedding))
        if self.two_times:
            later = positional_embedding(noise_level if next_level is None else next_level, self.embedding)
            levels = levels + NextLevelEmbedding(self.features[0], name="next")(later)
        levels = nn.swish(levels)
        hidden = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.features):
            skip = hidden if hidden.shape[1] == width else 0.0
            hidden = nn.Dense(width, name=f"hidden_{i}")(hidden) + nn.Dense(width, name=f"level_{i}")(levels)
            hidden = skip + nn.swish(hidden)
        return nn.Dense(self.outputs, name="out")(hidden)


class MLP(nn.Module):
    """Multilayer perceptron with an output of the shape of x, for events of any shape.

    Attributes:
      features: Widths of the hidden layers.
      embedding: Width of the noise level's embedding, even and at least 4.
      outputs: Number of outputs of x's shape, stacked along the last axis; 2 for a learned variance.
      two_times: Whether the network takes a second time, as a flow map does.
    """

    features: Sequence[int] = (128, 128, 128, 128)
    embedding: int = 32
    outputs: int = 1
    two_times: bool = False

    @nn.compact
    def __call__(self, x, noise_level, labels=None, train=False, next_level=None):
        """Return the raw output for x (batch, *event), noise levels (batch,), and those of the second time if given.

        Raises:
          UserError: if there are labels, no hidden layer, or an odd embedding.
        """
        _check("mlp", self.features, self.embedding, labels)
        check_two_times("mlp", self.two_times, next_level)
        size = x[0].size * self.outputs
        perceptron = Perceptron(self.features, self.embedding, size, self.two_times, name="perceptron")
        out = perceptron(x, noise_level, next_level)
        return out.reshape(*x.shape[:-1], x.shape[-1] * self.outputs)


class EnergyMLP(nn.Module):
    """Energy-based model: an MLP with one output, the energy E, called as a network for the score -grad_x E.

    Like every exact score, its output is a gradient. With the prediction "score", E is -log p_t up to a constant. With
    "epsilon", -log p_t is -E / sigma up to a constant.

    Attributes:
      features, embedding: See `MLP`.
    """

    features: Sequence[int] = (128, 128, 128, 128)
    embedding: int = 32

    def setup(self):
        """Create the perceptron, which `__call__` and `energy` share."""
        self.perceptron = Perceptron(self.features, self.embedding, 1)

    def __call__(self, x, noise_level, labels=None, train=False):
        """Return the score -grad_x E at x (batch, *event) and noise levels (batch,).

        Raises:
          UserError: if there are labels, no hidden layer, or an odd embedding.
        """
        _check("energy_mlp", self.features, self.embedding, labels)
        energy, vjp_fn = nn.vjp(lambda module, x: module.energy(x, noise_level), self, x)
        return -vjp_fn(jnp.ones_like(energy))[1]

    def energy(self, x, noise_level):
        """Return energies (batch,) of x (batch, *event) at noise levels (batch,)."""
        return self.perceptron(x, noise_level)[:, 0]


def _check(name: str, features: Sequence[int], embedding: int, labels) -> None:
    """Raise UserError if there are labels, no hidden layer, or an odd or too small embedding."""
    if labels is not None:
        raise UserError(f"{name}: got labels, but this network is unconditional")
    if not features:
        raise UserError(f"{name}: expected at least one hidden layer, got features={features}", "features")
    if embedding < 4 or embedding % 2:
        raise UserError(f"{name}: expected an embedding that is even and at least 4, got {embedding}", "embedding")
