"""The U-Nets of diffusion models as one module: levels of residual blocks down, at the bottom, and up again.

DDPM (Ho et al. 2020), DDPM++ and NCSN++ (Song et al. 2021, Appendix H) and ADM (Dhariwal and Nichol 2021) differ in
their defaults. Options also give the U-Nets of EDM (Karras et al. 2022) and of diffusers.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from score_sde.errors import UserError, lookup, not_none
from score_sde.models.blocks import Attention, BlockConfig, ResidualBlock
from score_sde.models.embedding import NoiseEmbedding, check_labels, check_rates
from score_sde.models.layers import Conv, at_least_float32
from score_sde.models.resampling import BOX, Resample, downsample, upsample


class UNet(nn.Module):
    """Network from images (batch, height, width, channels) and (batch,) noise levels to an output of their shape.

    Attributes:
      channels: Number of channels of the first level.
      multipliers: Channels of each level, relative to `channels`. Each further level halves the image.
      num_res_blocks: Number of residual blocks per level on the way down; there is one more on the way up.
      attention_resolutions: Image heights with self-attention.
      dropout: Dropout rate in residual blocks.
      outputs: Number of outputs of the images' shape, along channels; 2 for a learned variance.
      num_classes: Number of classes, 0 for none.
      label_dropout: Probability of the null label in training.
      augment_dim: Width of augmentation labels, 0 for none.
      embedding: Kind of noise embedding, "positional" or "fourier".
      endpoint, cosine_first: See `positional_embedding`.
      labels_enter: Position of the labels, "before" or "after" the embedding's dense layers.
      resampling: Kind of resampling, "block" (in residual blocks) or "conv" (in a separate layer).
      conv_padding: Padding (low, high) of a "conv" on the way down that has no filter.
      taps: Coefficients of the resampling filter, (1, 3, 3, 1) for NCSN++. If empty, blocks average on the way down
        and repeat pixels on the way up, and layers have a stride.
      attend_up: Attention on the way up, after "each" block or after the "last" of a level.
      attend_middle: Whether there is attention at the bottom.
      progressive_input: Connection of the downsampled images to each level: "none", "input_skip" or "residual".
      progressive_output: Connection of each level to the output: "none", "output_skip" or "residual".
      combine: Combination of the downsampled images with the activations, "sum" or "cat".
      scale_by_sigma: Whether to divide the output by exp(noise level), which must be log sigma.
      rescale, scale_shift, project_resampled, groups, epsilon, head_channels, heads: See `BlockConfig`.
      remat: Whether to recompute the blocks' activations in the backward pass, to save memory.
      dtype: Data type of the computation, "bfloat16" for speed; None follows the input.
    """

    channels: int = 128
    multipliers: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: Sequence[int] = (16,)
    dropout: float = 0.1
    outputs: int = 1
    num_classes: int = 0
    label_dropout: float = 0.0
    augment_dim: int = 0
    embedding: str = "positional"
    endpoint: bool = True
    cosine_first: bool = False
    labels_enter: str = "after"
    resampling: str = "block"
    conv_padding: tuple[int, int] = (0, 1)
    taps: Sequence[float] = ()
    attend_up: str = "last"
    attend_middle: bool = True
    progressive_input: str = "none"
    progressive_output: str = "none"
    combine: str = "sum"
    scale_by_sigma: bool = False
    rescale: bool = False
    scale_shift: bool = False
    project_resampled: bool = False
    groups: int | None = None
    epsilon: float = 1e-6
    head_channels: int | None = None
    heads: int | None = None
    remat: bool = False
    dtype: str | None = None

    @nn.compact
    def __call__(self, x, noise_level, labels=None, train=False, augment=None):
        """Return the raw output; `train` enables dropout of activations and labels, which takes a "dropout" key.

        Args:
          x: (batch, height, width, channels) images.
          noise_level: (batch,) noise levels, on the scale of the preconditioning.
          labels: (batch,) classes, -1 for the null label; None for all -1.
          train: Whether dropout is enabled.
          augment: (batch, augment_dim) augmentation labels; None for images that are not augmented.

        Raises:
          UserError: if the image can't be halved at every level, no level has an attention resolution, heads don't
            divide the channels, an option is unknown, or there are labels but no classes.
        """
        self._check(x, labels)
        config = self._style()
        embedding = NoiseEmbedding(
            self.channels,
            kind=self.embedding,
            name="noise",
            **{option: getattr(self, option) for option in EMBEDDING_FIELDS},
        )(noise_level, labels, augment, train)
        bottom = len(self.multipliers) - 1
        block = nn.remat(ResidualBlock, static_argnums=(3,)) if self.remat else ResidualBlock
        attention = nn.remat(Attention) if self.remat else Attention

        def residual(hidden, features, name, resample="none"):
            return block(features, config, resample, name=name)(hidden, embedding, train)

        def attend(hidden, name):
            return attention(config, name=name)(hidden) if hidden.shape[1] in self.attention_resolutions else hidden

        def resampled(hidden, level, direction):
            name = f"{direction}_{level}_resample"
            if self.resampling == "block":
                return residual(hidden, hidden.shape[-1], name, direction)
            return self._layer(direction, hidden.shape[-1], name)(hidden)

        image, hidden = x, Conv(self.channels, dtype=config.dtype, name="conv_in")(x)
        skips = [hidden]
        for level, multiplier in enumerate(self.multipliers):
            for i in range(self.num_res_blocks):
                hidden = residual(hidden, self.channels * multiplier, f"down_{level}_{i}")
                hidden = attend(hidden, f"down_{level}_{i}_attention")
                skips.append(hidden)
            if level != bottom:
                image, hidden = self._enter(image, resampled(hidden, level, "down"), level, config)
                skips.append(hidden)

        hidden = residual(hidden, hidden.shape[-1], "middle_0")
        hidden = attention(config, name="middle_attention")(hidden) if self.attend_middle else hidden
        hidden = residual(hidden, hidden.shape[-1], "middle_1")

        output = None
        for level in range(bottom, -1, -1):
            for i in range(self.num_res_blocks + 1):
                hidden = jnp.concatenate([hidden, skips.pop()], axis=-1)
                hidden = residual(hidden, self.channels * self.multipliers[level], f"up_{level}_{i}")
                hidden = attend(hidden, f"up_{level}_{i}_attention") if self.attend_up == "each" else hidden
            hidden = attend(hidden, f"up_{level}_attention") if self.attend_up == "last" else hidden
            output, hidden = self._contribute(output, hidden, x.shape[-1], level, config)
            if level != 0:
                hidden = resampled(hidden, level, "up")

        if self.progressive_output != "output_skip":
            output = self._to_image(hidden, x.shape[-1], "out", config)
        output = at_least_float32(not_none(output))
        return output / jnp.exp(noise_level).reshape(-1, 1, 1, 1) if self.scale_by_sigma else output

    def _style(self) -> BlockConfig:
        shared = {name: getattr(self, name) for name in BlockConfig._fields if hasattr(self, name)}
        return BlockConfig(**shared | {"dtype": jnp.dtype(self.dtype) if self.dtype else None})

    def _layer(self, direction, features, name):
        return Resample(direction, features, self.taps, self.conv_padding, self._style().dtype, name=name)

    def _enter(self, image, hidden, level, config):
        """Return the image downsampled for a level, and the activations with the progressive input."""
        name, channels = f"input_{level}", hidden.shape[-1]
        if self.progressive_input == "none":
            return image, hidden
        if self.progressive_input == "residual":
            hidden = config.add(self._layer("down", channels, name)(image), hidden)
            return hidden, hidden
        image = downsample(image, self.taps or BOX)
        entering = Conv(channels, 1, dtype=config.dtype, name=name)(image)
        return image, entering + hidden if self.combine == "sum" else jnp.concatenate([entering, hidden], axis=-1)

    def _contribute(self, output, hidden, channels, level, config):
        """Return the progressive output after a level, and the activations."""
        if self.progressive_output == "none":
            return None, hidden
        if self.progressive_output == "output_skip":
            added = self._to_image(hidden, channels, f"out_{level}", config)
            return added if output is None else upsample(output, self.taps or BOX) + added, hidden
        if output is None:
            normal = nn.swish(config.norm(f"norm_out_{level}")(hidden))
            return Conv(hidden.shape[-1], dtype=config.dtype, name=f"conv_out_{level}")(normal), hidden
        hidden = config.add(self._layer("up", hidden.shape[-1], f"output_{level}")(output), hidden)
        return hidden, hidden

    def _to_image(self, hidden, channels, name, config):
        hidden = nn.swish(config.norm(f"norm_{name}")(hidden))
        return Conv(self.outputs * channels, init_scale=0.0, dtype=config.dtype, name=f"conv_{name}")(hidden)

    def _check(self, x, labels):
        name = type(self).__name__.lower()
        for field, known in CHOICES.items():
            lookup(field, dict.fromkeys(known), getattr(self, field))
        check_rates(name, self)
        check_levels(name, x, self.multipliers, self.attention_resolutions)
        check_labels(name, self.num_classes, labels)


def check_levels(name, x, multipliers, attention_resolutions):
    """Raise UserError unless the image halves at every level, and attention resolutions are those of levels."""
    levels = len(multipliers)
    factor = 2 ** (levels - 1)
    if x.shape[1] % factor or x.shape[2] % factor:
        raise UserError(
            f"{name}: {levels} levels halve the image {levels - 1} times, but {x.shape[1]}x{x.shape[2]} is not a "
            f"multiple of {factor}",
            "multipliers",
        )
    heights = [x.shape[1] >> level for level in range(levels)]
    for resolution in attention_resolutions:
        if resolution not in heights:
            raise UserError(
                f"{name}: no level has the attention resolution {resolution}; the levels' heights are {heights}",
                "attention_resolutions",
            )


EMBEDDING_FIELDS = ("endpoint", "cosine_first", "num_classes", "label_dropout", "augment_dim", "labels_enter")
CHOICES = {
    "embedding": ("positional", "fourier"),
    "labels_enter": ("before", "after"),
    "resampling": ("block", "conv"),
    "attend_up": ("each", "last"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_output": ("none", "output_skip", "residual"),
    "combine": ("sum", "cat"),
}


class DDPM(UNet):
    """The U-Net of Ho et al. 2020; with its defaults, for CIFAR-10, it has 35.7M parameters."""

    resampling: str = "conv"
    attend_up: str = "each"


class DDPMpp(UNet):
    """DDPM++: BigGAN's residual blocks, sums divided by sqrt(2); with its defaults, for CIFAR-10, 61.8M parameters."""

    num_res_blocks: int = 4
    rescale: bool = True
    project_resampled: bool = True


class NCSNpp(UNet):
    """NCSN++: DDPM++ with anti-aliased resampling, Fourier features of log sigma, and a residual input pyramid.

    With scale_by_sigma, its default, the output is a score, for preconditioning "log_sigma" and prediction "score".
    """

    num_res_blocks: int = 4
    rescale: bool = True
    project_resampled: bool = True
    taps: Sequence[float] = (1, 3, 3, 1)
    embedding: str = "fourier"
    progressive_input: str = "residual"
    scale_by_sigma: bool = True


class ADM(UNet):
    """The U-Net of Dhariwal and Nichol 2021, with defaults for ImageNet at 64 x 64 without classes."""

    channels: int = 192
    multipliers: Sequence[int] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attention_resolutions: Sequence[int] = (32, 16, 8)
    scale_shift: bool = True
    endpoint: bool = False
    cosine_first: bool = True
    attend_up: str = "each"
    head_channels: int | None = 64
    groups: int | None = 32
    epsilon: float = 1e-5
