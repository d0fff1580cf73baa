"""Conditioning embedding: noise level, class label and augmentation label mapped to one vector."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.models.layers import dense


def positional_embedding(
    noise_level: jax.Array, features: int, endpoint: bool = True, cosine_first: bool = False
) -> jax.Array:
    """Return sines and cosines at geometric frequencies, (batch, features) (Vaswani et al. 2017).

    Args:
      noise_level: (batch,) noise levels, about 0 to 1,000.
      features: Number of features, even.
      endpoint: Whether the lowest frequency is exactly 1 / 10,000 (Ho et al. 2020), or the one above it
        (Dhariwal and Nichol 2021; Peebles and Xie 2023).
      cosine_first: Whether cosines precede sines.

    Raises:
      ValueError: if there are fewer than four features, or two without `endpoint`.
    """
    half = features // 2
    if half <= endpoint:
        raise ValueError(f"positional embedding: expected at least {4 if endpoint else 2} channels, got {features}")
    frequencies = jnp.exp(-math.log(10_000.0) / (half - endpoint) * jnp.arange(half))
    angles = noise_level[:, None] * frequencies[None, :]
    parts = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts[::-1] if cosine_first else parts, axis=-1)


class FourierEmbedding(nn.Module):
    """Random Fourier features, which are never trained (Tancik et al. 2020)."""

    features: int
    scale: float = 16.0  # standard deviation of the frequencies

    @nn.compact
    def __call__(self, noise_level):
        """Map (batch,) noise levels to (batch, features)."""
        shape = (self.features // 2,)
        frequencies = jax.lax.stop_gradient(self.param("frequencies", nn.initializers.normal(self.scale), shape))
        angles = 2 * jnp.pi * noise_level[:, None] * frequencies[None, :]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class LabelEmbedding(nn.Module):
    """Embedding of class labels 0 .. num_classes - 1, and of the null label -1.

    In training a label is replaced by the null label with probability `dropout`, by the "dropout" key, which
    classifier-free guidance needs (Ho and Salimans 2021).
    """

    num_classes: int
    features: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, labels, train):
        """Map (batch,) labels to (batch, features)."""
        if train and self.dropout > 0:
            dropped = jax.random.bernoulli(self.make_rng("dropout"), self.dropout, labels.shape)
            labels = jnp.where(dropped, -1, labels)
        rows = jnp.where(labels < 0, self.num_classes, labels)
        return nn.Embed(self.num_classes + 1, self.features, name="rows")(rows)


def check_labels(name: str, num_classes: int, labels: Any) -> None:
    """Raise UserError if an unconditional network gets labels."""
    if labels is not None and not num_classes:
        raise UserError(f"{name}: got labels, but the network is unconditional", "num_classes to the number of classes")


def check_rates(name: str, module: nn.Module) -> None:
    """Raise UserError unless dropout rates are in [0, 1)."""
    for field in ("dropout", "label_dropout"):
        if not 0 <= getattr(module, field) < 1:
            raise UserError(f"{name}: need 0 <= {field} < 1, got {getattr(module, field)}", field)


class NoiseEmbedding(nn.Module):
    """Embedding of the noise level by two dense layers, with class and augmentation labels added.

    Attributes:
      channels: Number of channels of the first level; the embedding has four times as many.
      kind: "positional", with `endpoint` and `cosine_first` of `positional_embedding`, or "fourier".
      num_classes: Number of classes, 0 for none.
      label_dropout: Probability of the null label in training.
      augment_dim: Width of the augmentation labels (Karras et al. 2022), 0 for none.
      labels_enter: Position of the labels: "before" the dense layers (EDM) or "after" them (ADM).
    """

    channels: int
    kind: str = "positional"
    endpoint: bool = True
    cosine_first: bool = False
    num_classes: int = 0
    label_dropout: float = 0.0
    augment_dim: int = 0
    labels_enter: str = "after"

    @nn.compact
    def __call__(self, noise_level, labels, augment, train):
        """Map (batch,) levels, (batch,) labels or None and (batch, augment_dim) or None to (batch, 4 channels)."""
        hidden = self._embed_level(noise_level)
        if self.augment_dim:
            augment = jnp.zeros((len(hidden), self.augment_dim), hidden.dtype) if augment is None else augment
            hidden = hidden + dense(hidden.shape[-1], use_bias=False, name="augment")(augment)
        if self.labels_enter == "before":
            hidden = hidden + self._embed_label(labels, hidden, train)
        hidden = nn.swish(dense(4 * self.channels, name="dense_0")(hidden))
        hidden = dense(4 * self.channels, name="dense_1")(hidden)
        if self.labels_enter == "after":
            hidden = hidden + self._embed_label(labels, hidden, train)
        return nn.swish(hidden)

    def _embed_level(self, noise_level):
        if self.kind == "fourier":
            return FourierEmbedding(2 * self.channels, name="fourier")(noise_level)
        return positional_embedding(noise_level, self.channels, self.endpoint, self.cosine_first)

    def _embed_label(self, labels, hidden, train):
        if not self.num_classes:
            return 0.0
        labels = jnp.full(len(hidden), -1) if labels is None else labels
        return LabelEmbedding(self.num_classes, hidden.shape[-1], self.label_dropout, name="label")(labels, train)
