"""DDPM++, the U-Net of Song et al. 2021 ("Score-Based Generative Modeling through Stochastic Differential Equations").

DDPM's U-Net (Ho et al. 2020) with BigGAN residual blocks, resampling inside them, and sums divided by sqrt(2)
(Appendix H). At the paper's CIFAR-10 settings, which are the defaults, it has 61.8M parameters.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.models.layers import Attention, Conv, GroupNorm, NoiseEmbedding, ResidualBlock


class DDPMpp(nn.Module):
    """DDPM++: (batch, height, width, channels) images and (batch,) noise levels to an output of the images' shape.

    Attributes:
      channels: of the first level.
      multipliers: channels of each level, over `channels`; each further level halves the image.
      num_res_blocks: residual blocks a level on the way down; one more on the way up.
      attention_resolutions: image heights with self-attention; always also at the bottom.
      dropout: inside residual blocks.
      outputs: how many outputs of the images' shape, along channels: 2 for a learned variance.
    """

    channels: int = 128
    multipliers: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attention_resolutions: Sequence[int] = (16,)
    dropout: float = 0.1
    outputs: int = 1

    @nn.compact
    def __call__(self, x, noise_level, labels=None, train=False):
        """The raw output; `train` turns dropout on, which takes a "dropout" key.

        Raises:
          UserError: the image doesn't halve at every level, no level has an attention resolution, dropout is out of its
            range, or labels are given.
        """
        self._check(x, labels)
        embedding = NoiseEmbedding(self.channels, name="noise")(noise_level)
        bottom = len(self.multipliers) - 1

        def block(features, name, resample="none"):
            residual = ResidualBlock(features, self.dropout, resample, name=name)
            return lambda hidden: residual(hidden, embedding, train)

        def attend(hidden, name):
            return Attention(name=name)(hidden) if hidden.shape[1] in self.attention_resolutions else hidden

        hidden = Conv(self.channels, name="conv_in")(x)
        skips = [hidden]
        for level, multiplier in enumerate(self.multipliers):
            for i in range(self.num_res_blocks):
                hidden = block(self.channels * multiplier, f"down_{level}_{i}")(hidden)
                hidden = attend(hidden, f"down_{level}_{i}_attention")
                skips.append(hidden)
            if level != bottom:
                hidden = block(hidden.shape[-1], f"down_{level}_resample", "down")(hidden)
                skips.append(hidden)

        hidden = block(hidden.shape[-1], "middle_0")(hidden)
        hidden = Attention(name="middle_attention")(hidden)
        hidden = block(hidden.shape[-1], "middle_1")(hidden)

        for level in range(bottom, -1, -1):
            for i in range(self.num_res_blocks + 1):
                hidden = jnp.concatenate([hidden, skips.pop()], axis=-1)
                hidden = block(self.channels * self.multipliers[level], f"up_{level}_{i}")(hidden)
            hidden = attend(hidden, f"up_{level}_attention")
            if level != 0:
                hidden = block(hidden.shape[-1], f"up_{level}_resample", "up")(hidden)

        return Conv(self.outputs * x.shape[-1], init_scale=0.0, name="conv_out")(
            nn.swish(GroupNorm(name="norm_out")(hidden))
        )

    def _check(self, x, labels):
        if not 0 <= self.dropout < 1:
            raise UserError(f"ddpmpp: need 0 <= dropout < 1, got {self.dropout} (set --config.model.kwargs.dropout)")
        factor = 2 ** (len(self.multipliers) - 1)
        if x.shape[1] % factor or x.shape[2] % factor:
            raise UserError(
                f"ddpmpp: {len(self.multipliers)} levels halve the image {len(self.multipliers) - 1} times, but "
                f"{x.shape[1]}x{x.shape[2]} is not a multiple of {factor} (set --config.model.kwargs.multipliers)"
            )
        heights = [x.shape[1] >> level for level in range(len(self.multipliers))]
        for resolution in self.attention_resolutions:
            if resolution not in heights:
                raise UserError(
                    f"ddpmpp: no level has the attention resolution {resolution}; the levels' heights are {heights} "
                    "(set --config.model.kwargs.attention_resolutions)"
                )
        if labels is not None:
            raise UserError("ddpmpp: this network is unconditional, it takes no labels")
