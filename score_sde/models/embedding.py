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
    """Return sines and cosines of noise levels at geometric frequencies (Vaswani et al. 2017), (batch, features).

    Args:
      noise_level: Noise levels, (batch,), from 0 to about 1,000.
      features: Number of features, even.
      endpoint: Whether the frequencies end at 1 / 10,000 (Ho et al. 2020), or one step before it (Dhariwal and Nichol
        2021; Peebles and Xie 2023).
      cosine_first: Whether the cosines come before the sines.

    Raises:
      ValueError: if there are fewer than four features, or fewer than two without `endpoint`.
    """
    half = features // 2
    if half <= endpoint:
        raise ValueError(f"positional embedding: expected at least {4 if endpoint else 2} channels, got {features}")
    frequencies = jnp.exp(-math.log(10_000.0) / (half - endpoint) * jnp.arange(half))
    angles = noise_level[:, None] * frequencies[None, :]
    halves = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(halves[::-1] if cosine_first else halves, axis=-1)


class FourierEmbedding(nn.Module):
    """Random Fourier features (Tancik et al. 2020): sines and cosines at fixed random frequencies."""

    features: int
    scale: float = 16.0  # standard deviation of the frequencies

    @nn.compact
    def __call__(self, noise_level):
        """Return features (batch, features) of noise levels (batch,)."""
        shape = (self.features // 2,)
        frequencies = jax.lax.stop_gradient(self.param("frequencies", nn.initializers.normal(self.scale), shape))
        angles = 2 * jnp.pi * noise_level[:, None] * frequencies[None, :]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class LabelEmbedding(nn.Module):
    """Learned embedding of class labels, with label dropout for classifier-free guidance (Ho and Salimans 2021).

    Labels are integers 0 to num_classes - 1, or -1 for the null label, which has its own row. In training a label is
    replaced by the null label with probability `dropout`. Any other label gives NaN.
    """

    num_classes: int
    features: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, labels, train):
        """Return embeddings (batch, features) of labels (batch,); with `train`, dropout takes a "dropout" key."""
        if train and self.dropout > 0:
            dropped = jax.random.bernoulli(self.make_rng("dropout"), self.dropout, labels.shape)
            labels = jnp.where(dropped, -1, labels)
        rows = jnp.where(labels == -1, self.num_classes, labels)
        rows = jnp.where(is_unknown(labels, self.num_classes), self.num_classes + 1, rows)  # beyond the rows, hence NaN
        return nn.Embed(self.num_classes + 1, self.features, name="rows")(rows)


def is_unknown(labels: jax.Array, num_classes: int) -> jax.Array:
    """Return whether labels are neither classes, from 0 to num_classes - 1, nor the null label -1."""
    return (labels < -1) | (labels >= num_classes)


def check_labels(name: str, num_classes: int, labels: Any) -> None:
    """Raise UserError if an unconditional network gets labels."""
    if labels is not None and not num_classes:
        raise UserError(
            f"{name}: got labels, but the network is unconditional; num_classes > 0 makes it conditional", "num_classes"
        )


def check_two_times(name: str, two_times: bool, next_level: Any) -> None:
    """Raise UserError if a network of one time gets a second one."""
    if next_level is not None and not two_times:
        raise UserError(
            f"{name}: got a second time, but the network takes one; two_times=True makes it a flow map", "two_times"
        )


class NextLevelEmbedding(nn.Module):
    """Embedding of the second time of a flow map, zero at initialization.

    With zero weights the network is that of one time, so a trained denoiser is a flow map to begin with.
    """

    features: int

    @nn.compact
    def __call__(self, features):
        """Return the embedding (batch, self.features) of features of the second time, (batch, any)."""
        hidden = nn.swish(dense(self.features, name="dense_0")(features))
        return nn.Dense(self.features, kernel_init=nn.initializers.zeros, name="dense_1")(hidden)


def check_rates(name: str, module: nn.Module) -> None:
    """Raise UserError unless the dropout rates of activations and labels are in [0, 1)."""
    for field in ("dropout", "label_dropout"):
        if not 0 <= getattr(module, field) < 1:
            raise UserError(f"{name}: expected 0 <= {field} < 1, got {getattr(module, field)}", field)


class NoiseEmbedding(nn.Module):
    """Embedding of the noise level by two dense layers, with embeddings of class and augmentation labels added.

    Attributes:
      channels: Channels of the network's first level; the embedding has four times as many.
      kind: Features of the noise level, "positional" or "fourier".
      endpoint, cosine_first: Options of "positional"; see `positional_embedding`.
      num_classes: Number of classes; 0 for an unconditional network.
      label_dropout: Probability that a label is replaced by the null label in training.
      augment_dim: Number of augmentation labels (Karras et al. 2022); 0 for none.
      labels_enter: Position of the class labels, "before" the dense layers (EDM) or "after" them (ADM).
      two_times: Whether there is a second time, as in a flow map.
    """

    channels: int
    kind: str = "positional"
    endpoint: bool = True
    cosine_first: bool = False
    num_classes: int = 0
    label_dropout: float = 0.0
    augment_dim: int = 0
    labels_enter: str = "after"
    two_times: bool = False

    @nn.compact
    def __call__(self, noise_level, labels, augment, train, next_level=None):
        """Return the activated embedding, (batch, 4 channels).

        Args:
          noise_level: Noise levels, (batch,).
          labels: Class labels, (batch,), -1 for the null label; None for null labels.
          augment: Augmentation labels, (batch, augment_dim); None for no augmentation.
          train: Whether label dropout is active, which takes a "dropout" key.
          next_level: Noise levels of the second time, (batch,); None for those of the first.
        """
        hidden = self._embed_noise_level(noise_level, "fourier")
        if self.augment_dim:
            augment = jnp.zeros((len(hidden), self.augment_dim), hidden.dtype) if augment is None else augment
            hidden = hidden + dense(hidden.shape[-1], use_bias=False, name="augment")(augment)
        if self.labels_enter == "before":
            hidden = hidden + self._embed_labels(labels, hidden, train)
        hidden = nn.swish(dense(4 * self.channels, name="dense_0")(hidden))
        hidden = dense(4 * self.channels, name="dense_1")(hidden)
        if self.labels_enter == "after":
            hidden = hidden + self._embed_labels(labels, hidden, train)
        if self.two_times:
            features = self._embed_noise_level(noise_level if next_level is None else next_level, "next_fourier")
            hidden = hidden + NextLevelEmbedding(4 * self.channels, name="next")(features)
        return nn.swish(hidden)

    def _embed_noise_level(self, noise_level, name):
        if self.kind == "fourier":
            return FourierEmbedding(2 * self.channels, name=name)(noise_level)
        return positional_embedding(noise_level, self.channels, self.endpoint, self.cosine_first)

    def _embed_labels(self, labels, hidden, train):
        if not self.num_classes:
            return 0.0
        labels = jnp.full(len(hidden), -1) if labels is None else labels
        return LabelEmbedding(self.num_classes, hidden.shape[-1], self.label_dropout, name="label")(labels, train)
