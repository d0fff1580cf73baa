"""Noise-conditional classifier (Dhariwal and Nichol 2021): the first half of ADM, followed by attention pooling."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from score_sde.models.blocks import Attention, BlockConfig, ResidualBlock, count_heads
from score_sde.models.embedding import NoiseEmbedding
from score_sde.models.layers import Conv, at_least_float32, compute_dtype, dense
from score_sde.models.unet import check_levels


class AttentionPool(nn.Module):
    """Attention pooling (Radford et al. 2021): the mean over positions attends to all positions and to itself."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x):
        """Return one vector per example, (batch, channels), for x (batch, height, width, channels)."""
        batch, height, width, channels = x.shape
        heads = count_heads(channels, self.config.heads, self.config.head_channels)
        tokens = x.reshape(batch, height * width, channels)
        tokens = jnp.concatenate([jnp.mean(tokens, axis=1, keepdims=True), tokens], axis=1)
        initial = nn.initializers.normal(channels**-0.5)
        positions: jax.Array = self.param("positions", initial, (height * width + 1, channels))
        tokens = tokens + positions.astype(tokens.dtype)[None]

        def project(tokens, name):
            projected = dense(channels, dtype=self.config.dtype, name=name)(tokens)
            return projected.reshape(batch, -1, heads, channels // heads)

        query, key, value = project(tokens[:, :1], "query"), project(tokens, "key"), project(tokens, "value")
        return jax.nn.dot_product_attention(query, key, value).reshape(batch, channels)


class Classifier(nn.Module):
    """Classifier of noisy images.

    Attributes:
      num_classes: Number of classes.
      channels, multipliers, num_res_blocks, attention_resolutions, dropout, head_channels, groups, dtype: See `UNet`.
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
        """Return the logits of p(y | x_t), (batch, num_classes).

        Args:
          x: Noisy images, (batch, height, width, channels).
          noise_level: Noise levels, (batch,).
          labels: Unused, because labels are the target of the classifier.
          train: Whether dropout is active, which takes a "dropout" key.

        Raises:
          UserError: if the image doesn't halve at every level, no level has an attention resolution, or the heads don't
            divide the channels.
        """
        check_levels("classifier", x, self.multipliers, self.attention_resolutions)
        dtype = compute_dtype(self.dtype)
        config = BlockConfig(
            scale_shift=True,
            groups=self.groups,
            epsilon=1e-5,
            head_channels=self.head_channels,
            dropout=self.dropout,
            dtype=dtype,
        )
        embed = NoiseEmbedding(self.channels, endpoint=False, cosine_first=True, name="noise")
        embedding = embed(noise_level, None, None, train)
        hidden = Conv(self.channels, dtype=dtype, name="conv_in")(x)
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                name = f"down_{level - 1}_resample"
                hidden = ResidualBlock(hidden.shape[-1], config, "down", name=name)(hidden, embedding, train)
            for i in range(self.num_res_blocks):
                block = ResidualBlock(self.channels * multiplier, config, name=f"down_{level}_{i}")
                hidden = block(hidden, embedding, train)
                if hidden.shape[1] in self.attention_resolutions:
                    hidden = Attention(config, name=f"down_{level}_{i}_attention")(hidden)
        hidden = ResidualBlock(hidden.shape[-1], config, name="middle_0")(hidden, embedding, train)
        hidden = Attention(config, name="middle_attention")(hidden)
        hidden = ResidualBlock(hidden.shape[-1], config, name="middle_1")(hidden, embedding, train)
        hidden = AttentionPool(config, name="pool")(nn.swish(config.norm("norm_out")(hidden)))
        return at_least_float32(dense(self.num_classes, dtype=dtype, name="logits")(hidden))
