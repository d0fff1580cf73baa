"""U-Nets of diffusion models, as one module with options.

DDPM (Ho et al. 2020), DDPM++ and NCSN++ (Song et al. 2021, Appendix H) and ADM (Dhariwal and Nichol 2021) are this
module with different defaults. Options also cover the networks of EDM (Karras et al. 2022) and diffusers.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from score_sde.errors import UserError, lookup, not_none
from score_sde.models.blocks import Attention, BlockConfig, ResidualBlock
from score_sde.models.embedding import NoiseEmbedding, check_labels, check_rates, check_two_times
from score_sde.models.layers import Conv, at_least_float32, compute_dtype
from score_sde.models.resampling import BOX, Resample, downsample, upsample


class UNet(nn.Module):
    """U-Net with the options of several papers.

    Attributes:
      channels: Channels of the first level.
      multipliers: Channels of each level over `channels`; each further level halves the image.
      num_res_blocks: Residual blocks per level on the way down; the way up has one more.
      attention_resolutions: Image heights with self-attention, in pixels.
      dropout: Dropout rate in residual blocks.
      outputs: Number of outputs of the images' shape, stacked along channels; 2 for a learned variance.
      num_classes: Number of classes; 0 for an unconditional network.
      label_dropout: Probability that a label is replaced by the null label in training.
      augment_dim: Number of augmentation labels; 0 for none.
      embedding: Features of the noise level, "positional" or "fourier".
      endpoint, cosine_first: Options of "positional"; see `positional_embedding`.
      labels_enter: Position of class labels in the embedding, "before" or "after" its dense layers.
      two_times: Whether the network takes a second time, as a flow map does.
      resampling: Resampling by residual blocks ("block") or by separate layers ("conv").
      conv_padding: (low, high) padding of downsampling layers without a filter.
      taps: Coefficients of the resampling filter, (1, 3, 3, 1) for NCSN++. If empty, blocks average or repeat pixels,
        and downsampling layers have a stride.
      attend_up: Attention on the way up, after "each" block or after the "last" block of a level.
      attend_middle: Whether the lowest resolution has attention.
      progressive_input: Input of downsampled images at each level, "none", "input_skip" or "residual".
      progressive_output: Contribution of each level to the output, "none", "output_skip" or "residual".
      combine: Combination of downsampled images and activations, "sum" or "cat".
      scale_by_sigma: Whether the output is divided by sigma; the noise level is then log sigma.
      rescale, scale_shift, project_resampled, groups, epsilon, head_channels, heads: See `BlockConfig`.
      remat: Whether each block's activations are recomputed in the backward pass, which saves memory.
      dtype: Dtype of the computation, "bfloat16" for speed; None follows the input.
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
    two_times: bool = False
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
    def __call__(self, x, noise_level, labels=None, train=False, augment=None, next_level=None):
        """Return the raw output.

        Args:
          x: Images, (batch, height, width, channels).
          noise_level: Noise levels, (batch,), on the scale of the preconditioning.
          labels: Class labels, (batch,), -1 for the null label; None for null labels.
          train: Whether dropout of activations and labels is active, which takes a "dropout" key.
          augment: Augmentation labels, (batch, augment_dim); None for no augmentation.
          next_level: Noise levels of the second time, (batch,); None for those of the first.

        Raises:
          UserError: if the image doesn't halve at every level, no level has an attention resolution, the heads don't
            divide the channels, an option is unknown, or an unconditional network gets labels.
        """
        self._check(x, labels)
        check_two_times(type(self).__name__.lower(), self.two_times, next_level)
        config = self._block_config()
        embedding = NoiseEmbedding(
            self.channels,
            kind=self.embedding,
            name="noise",
            **{option: getattr(self, option) for option in EMBEDDING_FIELDS},
        )(noise_level, labels, augment, train, next_level)
        bottom = len(self.multipliers) - 1
        block = nn.remat(ResidualBlock, static_argnums=(3,)) if self.remat else ResidualBlock
        attention = nn.remat(Attention) if self.remat else Attention

        def residual(hidden, features, name, resample="none"):
            return block(features, config, resample, name=name)(hidden, embedding, train)

        def attend(hidden, name):
            return attention(config, name=name)(hidden) if hidden.shape[1] in self.attention_resolutions else hidden

        def resample(hidden, level, direction):
            name = f"{direction}_{level}_resample"
            if self.resampling == "block":
                return residual(hidden, hidden.shape[-1], name, direction)
            return self._resample_layer(direction, hidden.shape[-1], name)(hidden)

        image, hidden = x, Conv(self.channels, dtype=config.dtype, name="conv_in")(x)
        skips = [hidden]
        for level, multiplier in enumerate(self.multipliers):
            for i in range(self.num_res_blocks):
                hidden = residual(hidden, self.channels * multiplier, f"down_{level}_{i}")
                hidden = attend(hidden, f"down_{level}_{i}_attention")
                skips.append(hidden)
            if level != bottom:
                image, hidden = self._add_progressive_input(image, resample(hidden, level, "down"), level, config)
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
            output, hidden = self._add_progressive_output(output, hidden, x.shape[-1], level, config)
            if level != 0:
                hidden = resample(hidden, level, "up")

        if self.progressive_output != "output_skip":
            output = self._to_image(hidden, x.shape[-1], "out", config)
        output = at_least_float32(not_none(output))
        return output / jnp.exp(noise_level).reshape(-1, 1, 1, 1) if self.scale_by_sigma else output

    def _block_config(self) -> BlockConfig:
        shared = {name: getattr(self, name) for name in BlockConfig._fields if hasattr(self, name)}
        return BlockConfig(**shared | {"dtype": compute_dtype(self.dtype)})

    def _resample_layer(self, direction, features, name):
        return Resample(direction, features, self.taps, self.conv_padding, self._block_config().dtype, name=name)

    def _add_progressive_input(self, image, hidden, level, config):
        """Return the image at this level, and the activations combined with it (progressive input)."""
        name, channels = f"input_{level}", hidden.shape[-1]
        if self.progressive_input == "none":
            return image, hidden
        if self.progressive_input == "residual":
            hidden = config.add(self._resample_layer("down", channels, name)(image), hidden)
            return hidden, hidden
        image = downsample(image, self.taps or BOX)
        projected = Conv(channels, 1, dtype=config.dtype, name=name)(image)
        return image, projected + hidden if self.combine == "sum" else jnp.concatenate([projected, hidden], axis=-1)

    def _add_progressive_output(self, output, hidden, channels, level, config):
        """Return the accumulated output at this level, and the activations combined with it (progressive output)."""
        if self.progressive_output == "none":
            return None, hidden
        if self.progressive_output == "output_skip":
            contribution = self._to_image(hidden, channels, f"out_{level}", config)
            return contribution if output is None else upsample(output, self.taps or BOX) + contribution, hidden
        if output is None:
            normalized = nn.swish(config.norm(f"norm_out_{level}")(hidden))
            return Conv(hidden.shape[-1], dtype=config.dtype, name=f"conv_out_{level}")(normalized), hidden
        hidden = config.add(self._resample_layer("up", hidden.shape[-1], f"output_{level}")(output), hidden)
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
    """Raise UserError unless the image halves at every level, and every attention resolution is a level's height."""
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


EMBEDDING_FIELDS = (
    "endpoint",
    "cosine_first",
    "num_classes",
    "label_dropout",
    "augment_dim",
    "labels_enter",
    "two_times",
)
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
    """DDPM's U-Net (Ho et al. 2020); the defaults are those for CIFAR-10, with 35.7M parameters."""

    resampling: str = "conv"
    attend_up: str = "each"


class DDPMpp(UNet):
    """DDPM++ (Song et al. 2021): DDPM with BigGAN's residual blocks and branches rescaled by 1 / sqrt(2).

    The defaults are those for CIFAR-10, with 61.8M parameters.
    """

    num_res_blocks: int = 4
    rescale: bool = True
    project_resampled: bool = True


class NCSNpp(UNet):
    """NCSN++ (Song et al. 2021): DDPM++ with anti-aliasing, Fourier features of log sigma, and progressive input.

    With the default scale_by_sigma the output is a score, for preconditioning "log_sigma" and prediction "score".
    """

    num_res_blocks: int = 4
    rescale: bool = True
    project_resampled: bool = True
    taps: Sequence[float] = (1, 3, 3, 1)
    embedding: str = "fourier"
    progressive_input: str = "residual"
    scale_by_sigma: bool = True


class ADM(UNet):
    """ADM (Dhariwal and Nichol 2021); the defaults are those for ImageNet at 64x64, without classes."""

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
