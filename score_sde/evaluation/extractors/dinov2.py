"""The vision transformer of DINOv2 (Oquab et al. 2024), whose features Stein et al. 2023 compare images in.

Layers have the names of the released weights. Width and depth are read from the weights (ViT-L/14: 1,024 and 24).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

SIDE, PATCH, HEAD = 224, 14, 64  # pixels per side of an image and a patch, channels per attention head
MEAN, STD = np.array(((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), np.float32)  # of ImageNet
WEIGHTS_FILE = "dinov2_vitl14_pretrain.pth"
WEIGHTS_URL = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/{WEIGHTS_FILE}"


class Block(nn.Module):
    """A transformer block: attention and an MLP, each after a normalization and with a learned scale."""

    @nn.compact
    def __call__(self, x):
        """Return the tokens (batch, length, width) after the block."""
        batch, length, width = x.shape
        qkv = nn.Dense(3 * width, name="qkv")(nn.LayerNorm(1e-6, name="norm1")(x))
        q, k, v = jnp.moveaxis(qkv.reshape(batch, length, 3, -1, HEAD), 2, 0)
        mixed = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        scales = [self.param(f"ls{n}", nn.initializers.ones, (width,))[None, None] for n in (1, 2)]
        x = x + scales[0] * nn.Dense(width, name="proj")(mixed)
        inner = nn.gelu(nn.Dense(4 * width, name="fc1")(nn.LayerNorm(1e-6, name="norm2")(x)), approximate=False)
        return x + scales[1] * nn.Dense(width, name="fc2")(inner)


class Dinov2(nn.Module):
    """A network from (batch, 224, 224, 3) normalized images to the features of the class token."""

    width: int = 1024
    depth: int = 24

    @nn.compact
    def __call__(self, x):
        """Return (features (batch, width), logits (batch, 0)); the network has no classes."""
        x = nn.Conv(self.width, (PATCH, PATCH), (PATCH, PATCH), "VALID", name="patch_embed")(x)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("cls_token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], axis=1)
        x = x + self.param("pos_embed", nn.initializers.zeros, (1, x.shape[1], self.width))
        for i in range(self.depth):
            x = Block(name=f"blocks_{i}")(x)
        features = nn.LayerNorm(1e-6, name="norm")(x)[:, 0]
        return features, features[:, :0]


def prepare(images: np.ndarray) -> np.ndarray:
    """Resize (n, height, width, 3) uint8 to (n, 224, 224, 3) by PIL's bicubic filter, and normalize as for ImageNet."""
    resized = [np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image in images]
    return (np.stack(resized).astype(np.float32) / np.float32(255) - MEAN) / STD


def convert(arrays: Mapping[str, np.ndarray]) -> tuple[Dinov2, dict[str, Any]]:
    """Return the network for released weights, and its parameters.

    Args:
      arrays: Weights by their released names.

    Raises:
      KeyError: if an array is missing.
    """

    def dense(name):
        return {"kernel": arrays[f"{name}.weight"].T, "bias": arrays[f"{name}.bias"]}

    def norm(name):
        return {"scale": arrays[f"{name}.weight"], "bias": arrays[f"{name}.bias"]}

    depth = 1 + max(int(name.split(".")[1]) for name in arrays if name.startswith("blocks."))
    params = {
        "cls_token": arrays["cls_token"],
        "pos_embed": positions(arrays["pos_embed"]),
        "patch_embed": {
            "kernel": arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
            "bias": arrays["patch_embed.proj.bias"],
        },
        "norm": norm("norm"),
    }
    for i in range(depth):
        block = f"blocks.{i}"
        params[f"blocks_{i}"] = {
            "norm1": norm(f"{block}.norm1"),
            "qkv": dense(f"{block}.attn.qkv"),
            "proj": dense(f"{block}.attn.proj"),
            "ls1": arrays[f"{block}.ls1.gamma"],
            "norm2": norm(f"{block}.norm2"),
            "fc1": dense(f"{block}.mlp.fc1"),
            "fc2": dense(f"{block}.mlp.fc2"),
            "ls2": arrays[f"{block}.ls2.gamma"],
        }
    return Dinov2(arrays["cls_token"].shape[-1], depth), params


def positions(embedding: np.ndarray, side: int = SIDE // PATCH) -> np.ndarray:
    """Interpolate the position embeddings (1, 1 + n^2, width) bicubically to (1, 1 + side^2, width).

    As in the released code, the scale is (side + 0.1) / n rather than side / n.
    """
    token, grid = embedding[:, :1], embedding[0, 1:]
    length = round(len(grid) ** 0.5)
    if length == side:
        return embedding
    grid = grid.reshape(length, length, -1).astype(np.float64)
    weights = _bicubic(length, side, (side + 0.1) / length)
    resized = np.einsum("ai,bj,ijc->abc", weights, weights, grid)
    return np.concatenate([token, resized.reshape(1, side * side, -1)], axis=1).astype(np.float32)


def _bicubic(length: int, side: int, scale: float) -> np.ndarray:
    """Return (side, length) weights of Keys' cubic convolution (a = -3/4, as in PyTorch), with a repeated border."""
    weights = np.zeros((side, length))
    for row, center in zip(weights, (np.arange(side) + 0.5) / scale - 0.5, strict=True):
        low = int(np.floor(center))
        for i in range(low - 1, low + 3):
            row[min(max(i, 0), length - 1)] += _cubic_kernel(abs(center - i))
    return weights


def _cubic_kernel(distance: float, a: float = -0.75) -> float:
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * (distance**3 - 5 * distance**2 + 8 * distance - 4) if distance < 2 else 0.0
