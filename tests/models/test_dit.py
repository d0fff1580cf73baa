"""Options of the diffusion transformer against their formulas."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.models import create
from score_sde.models.dit import Block, rotate
from tests.thinned import thinned

JIT = {"bottleneck": 4, "normalization": "rms", "swiglu": True, "normalize_qk": True, "rotary": True}
SMALL = {"width": 16, "depth": 2, "heads": 2}
X = jax.random.normal(jax.random.key(0), (3, 8, 8, 2))
LEVEL = jnp.array([-1.0, 0.1, 1.5])


def random_like(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)


def test_rotated_products_depend_on_the_difference_of_positions():
    """On a grid of 4 x 5 patches, moving both patches by one row and two columns keeps the product."""
    query, key = jax.random.normal(jax.random.key(1), (2, 8))
    turned = jax.jit(lambda vectors: rotate(jnp.broadcast_to(vectors[:, None, None], (2, 20, 1, 8)), 4, 5))
    queries, keys = np.asarray(turned(jnp.stack([query, key]))).reshape(2, 4, 5, 8)
    np.testing.assert_allclose(np.linalg.norm(queries, axis=-1), np.full((4, 5), np.linalg.norm(query)), rtol=1e-6)
    np.testing.assert_allclose(queries[0, 0], query, rtol=1e-6)
    products = np.einsum("ijd,kld->ijkl", queries, keys)
    np.testing.assert_allclose(products[:-1, :-2, :-1, :-2], products[1:, 2:, 1:, 2:], atol=1e-5)
    assert np.abs(products[0, 0] - products[0, 0, 0, 0]).max() > 0.1  # other differences, other products


def test_a_block_of_all_options_is_the_formula():
    """Written with NumPy: RMS norms, rotated normalized queries and keys, SwiGLU, gates."""
    tokens, conditioning = (
        jax.random.normal(jax.random.key(2), (1, 4, 12)),
        jax.random.normal(jax.random.key(3), (1, 12)),
    )
    block = Block(1, 0.0, "rms", True, True, (2, 2))
    params = random_like(jax.eval_shape(block.init, jax.random.key(0), tokens, conditioning, False))["params"]
    found = jax.jit(partial(block.apply, train=False))({"params": params}, tokens, conditioning)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    swish = lambda x: x / (1 + np.exp(-x))  # noqa: E731
    dense = lambda x, name: x @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
    rms = lambda x, name: x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * p[name]["scale"]  # noqa: E731
    x, c = np.asarray(tokens[0], np.float64), np.asarray(conditioning[0], np.float64)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = np.split(dense(swish(c), "modulation"), 6)
    query, key, value = np.split(dense(rms(x, "norm_attention") * (1 + scale) + shift, "qkv"), 3, axis=1)
    turned = []
    for vectors in (rms(query, "norm_query"), rms(key, "norm_key")):
        frequencies = 10_000.0 ** -(np.arange(3) / 3)
        rotated = [
            (vector[:6] + 1j * vector[6:]) * np.exp(1j * np.concatenate([column * frequencies, row * frequencies]))
            for vector, (row, column) in zip(vectors, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True)
        ]
        turned.append(np.concatenate([np.real(rotated), np.imag(rotated)], axis=1))
    logits = turned[0] @ turned[1].T / np.sqrt(12)
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    x = x + gate * dense(weights @ value, "out")
    gates, hidden = np.split(dense(rms(x, "norm_mlp") * (1 + scale_mlp) + shift_mlp, "mlp_0"), 2, axis=1)
    assert hidden.shape == (4, 8 * 12 // 3)
    x = x + gate_mlp * dense(swish(gates) * hidden, "mlp_1")
    np.testing.assert_allclose(found[0], x, rtol=1e-4, atol=1e-5)


def test_a_bottleneck_bounds_the_rank_of_the_patches_embedding():
    params = jax.jit(create("dit", **SMALL, **JIT).init)(jax.random.key(0), X, LEVEL)["params"]
    assert params["bottleneck"]["kernel"].shape == (8, 4) and "bias" not in params["bottleneck"]
    assert np.linalg.matrix_rank(params["bottleneck"]["kernel"] @ params["patches"]["kernel"]) == 4


@pytest.mark.parametrize("dtype", thinned((None, "bfloat16"), "bfloat16"))
def test_all_options_train(dtype):
    """The gradient of every parameter is finite and not all zero."""
    module = create("dit", **SMALL, **JIT, dtype=dtype)
    shapes = jax.eval_shape(module.init, jax.random.key(0), X, LEVEL)
    gradient_of = jax.jit(jax.grad(lambda variables: jnp.mean(module.apply(variables, X, LEVEL) ** 2)))
    gradient = jax.device_get(gradient_of(random_like(shapes)))
    assert all(np.any(leaf != 0) and np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_without_options_nothing_is_new():
    plain = jax.eval_shape(create("dit", **SMALL).init, jax.random.key(0), X, LEVEL)["params"]
    assert set(plain) == {"patches", "level_0", "level_1", "blocks", "modulation", "out"}
    assert set(plain["blocks"]) == {"modulation", "qkv", "out", "mlp_0", "mlp_1"}


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"rotary": True, "heads": 8}, "multiple of 4 for width / heads, got 16 / 8"),
        ({"normalization": "layr"}, "Did you mean 'layer'"),
        ({"bottleneck": 9}, "0 <= bottleneck <= 8"),
    ],
)
def test_invalid_options_raise(kwargs, words):
    with pytest.raises(UserError, match=words):
        jax.eval_shape(create("dit", **SMALL | kwargs).init, jax.random.key(0), X, LEVEL)
