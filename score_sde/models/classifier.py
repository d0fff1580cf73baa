"""The noise-conditional classifier of Dhariwal and Nichol 2021: the first half of ADM, then attention pooling."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from score_sde.models.blocks import Attention, ResidualBlock, Style, count_heads
from score_sde.models.embedding import NoiseEmbedding
from score_sde.models.layers import Conv, at_least_float32, dense
from score_sde.models.unet import check_levels


class AttentionPool(nn.Module):
    """One vector of all positions (Radford et al. 2021): their mean attends to them and to itself."""

    style: Style

    @nn.compact
    def __call__(self, x):
        """(batch, height, width, channels) -> (batch, channels)."""
        batch, height, width, channels = x.shape
        heads = count_heads(channels, self.style.heads, self.style.head_channels)
        tokens = x.reshape(batch, height * width, channels)
        tokens = jnp.concatenate([jnp.mean(tokens, axis=1, keepdims=True), tokens], axis=1)
        initial = nn.initializers.normal(channels**-0.5)
        places: jax.Array = self.param("positions", initial, (height * width + 1, channels))
        tokens = tokens + places.astype(tokens.dtype)[None]

        def project(tokens, name):
            projected = dense(channels, dtype=self.style.dtype, name=name)(tokens)
            return projected.reshape(batch, -1, heads, channels // heads)

        query, key, value = project(tokens[:, :1], "query"), project(tokens, "key"), project(tokens, "value")
        return jax.nn.dot_product_attention(query, key, value).reshape(batch, channels)


class Classifier(nn.Module):
    """(batch, height, width, channels) noisy images and (batch,) noise levels to (batch, num_classes) logits.

    Attributes:
      num_classes: how many.
      channels, multipliers, num_res_blocks, attention_resolutions, dropout, head_channels, groups, dtype: as
        of `UNet`.
    """

    num_classes: int = 10
    channels: int = 64
    multipliers: Sequence[int] = (1, 2, 3, 4)
    num_res_blocks: int = 2
    attention_resolutions: Sequence[int] = (16, 8)
    dropout: float = 0.0
    head_channels: int = 64
    groups: int | None = 32
    dtype: Any = None

    @nn.compact
    def __call__(self, x, noise_level, labels=None, train=False):
        """Logits of p(y | x_t); labels are what it predicts, and are not read.

        Raises:
          UserError: as of `UNet`.
        """
        check_levels("classifier", x, self.multipliers, self.attention_resolutions)
        dtype = jnp.dtype(self.dtype) if self.dtype else None
        style = Style(
            scale_shift=True,
            groups=self.groups,
            epsilon=1e-5,
            head_channels=self.head_channels,
            dropout=self.dropout,
            dtype=dtype,
        )
        embedding = NoiseEmbedding(self.channels, endpoint=False, cosine_first=True, name="noise")
        told = embedding(noise_level, None, None, train)
        hidden = Conv(self.channels, dtype=dtype, name="conv_in")(x)
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                name = f"down_{level - 1}_resample"
                hidden = ResidualBlock(hidden.shape[-1], style, "down", name=name)(hidden, told, train)
            for i in range(self.num_res_blocks):
                block = ResidualBlock(self.channels * multiplier, style, name=f"down_{level}_{i}")
                hidden = block(hidden, told, train)
                if hidden.shape[1] in self.attention_resolutions:
                    hidden = Attention(style, name=f"down_{level}_{i}_attention")(hidden)
        hidden = ResidualBlock(hidden.shape[-1], style, name="middle_0")(hidden, told, train)
        hidden = Attention(style, name="middle_attention")(hidden)
        hidden = ResidualBlock(hidden.shape[-1], style, name="middle_1")(hidden, told, train)
        hidden = AttentionPool(style, name="pool")(nn.swish(style.norm("norm_out")(hidden)))
        return at_least_float32(dense(self.num_classes, dtype=dtype, name="logits")(hidden))
