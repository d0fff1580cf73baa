"""DDPM++ in PyTorch, the same function as `score_sde.models.unet.DDPMpp`: the peer that benchmarks compare with.

Written for speed, as a PyTorch user would: fused attention here, channels-last and a fused Adam in the benchmark.
`tests/peers/test_torch_ddpmpp.py` holds it against ours, weights copied.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from score_sde.models import create


def group_norm(channels):
    return nn.GroupNorm(max(1, min(channels // 4, 32)), channels, eps=1e-6)


class Block(nn.Module):
    def __init__(self, inputs, outputs, embedding, dropout, resample="none"):
        super().__init__()
        self.resample = resample
        self.norm_0, self.norm_1 = group_norm(inputs), group_norm(outputs)
        self.conv_0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv_1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.embedding = nn.Linear(embedding, outputs)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs or resample != "none" else nn.Identity()

    def _resampled(self, x):
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x

    def forward(self, x, embedding):
        hidden = self.conv_0(self._resampled(F.silu(self.norm_0(x))))
        hidden = hidden + self.embedding(F.silu(embedding))[:, :, None, None]
        hidden = self.conv_1(self.dropout(F.silu(self.norm_1(hidden))))
        return (self.shortcut(self._resampled(x)) + hidden) / math.sqrt(2)


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = group_norm(channels)
        self.query, self.key, self.value, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        hidden = self.norm(x)
        query, key, value = (f(hidden).flatten(2).transpose(1, 2)[:, None] for f in (self.query, self.key, self.value))
        hidden = F.scaled_dot_product_attention(query, key, value)[:, 0].transpose(1, 2).reshape(x.shape)
        return (x + self.out(hidden)) / math.sqrt(2)


class DDPMpp(nn.Module):
    """DDPM++ for images, (batch, channels, height, width), and noise levels, (batch,)."""

    def __init__(
        self, image_size, image_channels, channels, multipliers, num_res_blocks, attention_resolutions, dropout
    ):
        super().__init__()
        self.channels, self.multipliers, self.num_res_blocks = channels, multipliers, num_res_blocks
        width = 4 * channels
        self.noise = nn.ModuleDict({"dense_0": nn.Linear(channels, width), "dense_1": nn.Linear(width, width)})
        self.parts = nn.ModuleDict({"conv_in": nn.Conv2d(image_channels, channels, 3, padding=1)})
        skips, features, size = [channels], channels, image_size
        bottom = len(multipliers) - 1
        for level, multiplier in enumerate(multipliers):
            for i in range(num_res_blocks):
                self.parts[f"down_{level}_{i}"] = Block(features, channels * multiplier, width, dropout)
                features = channels * multiplier
                if size in attention_resolutions:
                    self.parts[f"down_{level}_{i}_attention"] = Attention(features)
                skips.append(features)
            if level != bottom:
                self.parts[f"down_{level}_resample"] = Block(features, features, width, dropout, "down")
                skips.append(features)
                size //= 2
        self.parts["middle_0"] = Block(features, features, width, dropout)
        self.parts["middle_attention"] = Attention(features)
        self.parts["middle_1"] = Block(features, features, width, dropout)
        for level in range(bottom, -1, -1):
            for i in range(num_res_blocks + 1):
                self.parts[f"up_{level}_{i}"] = Block(
                    features + skips.pop(), channels * multipliers[level], width, dropout
                )
                features = channels * multipliers[level]
            if size in attention_resolutions:
                self.parts[f"up_{level}_attention"] = Attention(features)
            if level != 0:
                self.parts[f"up_{level}_resample"] = Block(features, features, width, dropout, "up")
                size *= 2
        self.parts["norm_out"] = group_norm(features)
        self.parts["conv_out"] = nn.Conv2d(features, image_channels, 3, padding=1)

    def forward(self, x, noise_level):
        parts, bottom = self.parts, len(self.multipliers) - 1
        half = self.channels // 2
        frequencies = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, device=x.device))
        angles = noise_level[:, None] * frequencies
        embedding = self.noise["dense_0"](torch.cat([angles.sin(), angles.cos()], 1))
        embedding = self.noise["dense_1"](F.silu(embedding))

        def attend(hidden, name):
            return parts[name](hidden) if name in parts else hidden

        hidden = parts["conv_in"](x)
        skips = [hidden]
        for level in range(bottom + 1):
            for i in range(self.num_res_blocks):
                hidden = attend(parts[f"down_{level}_{i}"](hidden, embedding), f"down_{level}_{i}_attention")
                skips.append(hidden)
            if level != bottom:
                hidden = parts[f"down_{level}_resample"](hidden, embedding)
                skips.append(hidden)
        hidden = parts["middle_attention"](parts["middle_0"](hidden, embedding))
        hidden = parts["middle_1"](hidden, embedding)
        for level in range(bottom, -1, -1):
            for i in range(self.num_res_blocks + 1):
                hidden = parts[f"up_{level}_{i}"](torch.cat([hidden, skips.pop()], 1), embedding)
            hidden = attend(hidden, f"up_{level}_attention")
            if level != 0:
                hidden = parts[f"up_{level}_resample"](hidden, embedding)
        return parts["conv_out"](F.silu(parts["norm_out"](hidden)))


def from_config(config) -> DDPMpp:
    """Return the network of an experiment's config."""
    data, module = config.data, create(config.model.name, **config.model.kwargs.to_dict())
    names = ("channels", "multipliers", "num_res_blocks", "attention_resolutions", "dropout")
    return DDPMpp(data.image_size, data.channels, *(getattr(module, name) for name in names))


def load(module: DDPMpp, params) -> None:
    """Copy our parameters, a nested dictionary of arrays, into the PyTorch network."""
    layouts = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    names = {"kernel": "weight", "scale": "weight", "bias": "bias"}

    def flat(tree, prefix):
        for key, value in tree.items():
            if hasattr(value, "items"):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{names[key]}", torch.tensor(value.transpose(layouts[value.ndim]).copy())

    state = dict(flat({"noise": params["noise"]}, ""))
    state |= dict(flat({key: value for key, value in params.items() if key != "noise"}, "parts."))
    module.load_state_dict(state)
