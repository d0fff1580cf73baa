"""How a network is told the noise level, the class and the augmentation: one vector that every block reads."""

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
    """Sines and cosines of (batch,) noise levels at geometric frequencies (Vaswani et al. 2017): (batch, features).

    Args:
      noise_level: (batch,), about 0 to 1,000.
      features: how many; even.
      endpoint: whether the lowest frequency is exactly 1 / 10,000 (Ho et al. 2020), or the one that would follow
        (Dhariwal and Nichol 2021; Peebles and Xie 2023).
      cosine_first: the order of the two halves.

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
    """Sines and cosines at random frequencies, never trained (Tancik et al. 2020): (batch,) -> (batch, features)."""

    features: int
    scale: float = 16.0  # standard deviation of the frequencies

    @nn.compact
    def __call__(self, noise_level):
        shape = (self.features // 2,)
        frequencies = jax.lax.stop_gradient(self.param("frequencies", nn.initializers.normal(self.scale), shape))
        angles = 2 * jnp.pi * noise_level[:, None] * frequencies[None, :]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class LabelEmbedding(nn.Module):
    """Class labels (batch,), integers 0 .. num_classes - 1, to (batch, features); -1 is the null label, with its row.

    In training a label is replaced by the null label with the probability `dropout`, from the "dropout" key: what
    classifier-free guidance needs (Ho and Salimans 2021).
    """

    num_classes: int
    features: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, labels, train):
        if train and self.dropout > 0:
            dropped = jax.random.bernoulli(self.make_rng("dropout"), self.dropout, labels.shape)
            labels = jnp.where(dropped, -1, labels)
        rows = jnp.where(labels < 0, self.num_classes, labels)
        return nn.Embed(self.num_classes + 1, self.features, name="rows")(rows)


def check_labels(name: str, num_classes: int, labels: Any) -> None:
    """Refuses labels that a network has no use for."""
    if labels is not None and not num_classes:
        raise UserError(
            f"{name}: got labels, but the network is unconditional (set --config.model.kwargs.num_classes to the "
            "number of classes)"
        )


def check_rates(name: str, module: nn.Module) -> None:
    """Refuses shares of activations or labels to drop that are out of range."""
    for field in ("dropout", "label_dropout"):
        if not 0 <= getattr(module, field) < 1:
            raise UserError(
                f"{name}: need 0 <= {field} < 1, got {getattr(module, field)} (set --config.model.kwargs.{field})"
            )


class NoiseEmbedding(nn.Module):
    """What blocks are told: the noise level through two dense layers, with class and augmentation labels added.

    Attributes:
      channels: of the network's first level; the result has four times as many.
      kind: "positional", with endpoint and cosine_first as of `positional_embedding`, or "fourier".
      num_classes, label_dropout: of the class labels; 0 classes for none.
      augment_dim: width of the augmentation labels (Karras et al. 2022), 0 for none.
      labels_enter: "before" the dense layers (EDM) or "after" them (ADM).
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
        """(batch,) levels, (batch,) labels or None, (batch, augment_dim) or None -> (batch, 4 channels), activated."""
        hidden = self._of_level(noise_level)
        if self.augment_dim:
            augment = jnp.zeros((len(hidden), self.augment_dim), hidden.dtype) if augment is None else augment
            hidden = hidden + dense(hidden.shape[-1], use_bias=False, name="augment")(augment)
        if self.labels_enter == "before":
            hidden = hidden + self._of_label(labels, hidden, train)
        hidden = nn.swish(dense(4 * self.channels, name="dense_0")(hidden))
        hidden = dense(4 * self.channels, name="dense_1")(hidden)
        if self.labels_enter == "after":
            hidden = hidden + self._of_label(labels, hidden, train)
        return nn.swish(hidden)

    def _of_level(self, noise_level):
        if self.kind == "fourier":
            return FourierEmbedding(2 * self.channels, name="fourier")(noise_level)
        return positional_embedding(noise_level, self.channels, self.endpoint, self.cosine_first)

    def _of_label(self, labels, hidden, train):
        if not self.num_classes:
            return 0.0
        labels = jnp.full(len(hidden), -1) if labels is None else labels
        return LabelEmbedding(self.num_classes, hidden.shape[-1], self.label_dropout, name="label")(labels, train)
