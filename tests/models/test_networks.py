"""Properties of every image network: shapes, labels, dropout, precision, rematerialization, invalid options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.models import create
from tests.thinned import thinned

UNET = {"channels": 8, "multipliers": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,)}
NETWORKS = {
    "ddpm": UNET,
    "ddpmpp": UNET,
    "ncsnpp": UNET,
    "adm": UNET | {"head_channels": 4, "groups": None},
    "edm2": UNET | {"head_channels": 4},
    "dit": {"width": 16, "depth": 2, "heads": 2},
    "ncsnv2": {"channels": 8},
}
CONDITIONAL = ("ddpm", "ddpmpp", "ncsnpp", "adm", "edm2", "dit")
X = jax.random.normal(jax.random.key(0), (3, 8, 8, 2))
LEVEL = jnp.array([-1.0, 0.1, 1.5])
IN_FLOAT32 = 1e-5  # float32 through some 30 layers, relative to the output's standard deviation


def create_random(name, **kwargs):
    """Return a module and random variables, because the initial weights of last layers are zero."""
    module = create(name, **NETWORKS[name] | kwargs)
    rng = np.random.default_rng(0)

    def sample(path, leaf):
        mean = 1.0 if path[-1].key in ("scale", "gamma") else 0.0
        return jnp.asarray(mean + 0.2 * rng.normal(size=leaf.shape), jnp.float32)

    shapes = jax.eval_shape(module.init, jax.random.key(0), X, LEVEL)
    return module, jax.tree_util.tree_map_with_path(sample, shapes)


def distance(actual, expected):
    return float(jnp.abs(actual - expected).max() / expected.std())


@pytest.mark.parametrize("name", thinned(NETWORKS, "ddpmpp", "dit", "ncsnv2"))
def test_rows_are_independent_and_depend_on_noise_level(name):
    module, variables = create_random(name)
    apply = jax.jit(module.apply)
    output = apply(variables, X, LEVEL)
    assert output.shape == X.shape
    assert distance(apply(variables, X[::-1], LEVEL[::-1])[::-1], output) < IN_FLOAT32
    assert distance(apply(variables, X, LEVEL + 0.5), output) > 1e-2


@pytest.mark.parametrize("name", thinned(CONDITIONAL, "dit"))
def test_labels_condition_and_are_dropped_in_training(name):
    """None stands for null labels (-1), which label_dropout near 1 also gives in training."""
    module, variables = create_random(name, num_classes=4, label_dropout=0.999, dropout=0.0)
    apply = jax.jit(module.apply, static_argnames="train")
    unconditional = apply(variables, X, LEVEL)
    labels = jnp.array([0, -1, 3])
    conditional = apply(variables, X, LEVEL, labels)
    changed = jnp.abs(conditional - unconditional).max(axis=(1, 2, 3)) / unconditional.std()
    assert changed[0] > 1e-2 and changed[2] > 1e-2 and changed[1] == 0
    hidden = apply(variables, X, LEVEL, labels, train=True, rngs={"dropout": jax.random.key(0)})
    assert distance(hidden, unconditional) < IN_FLOAT32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "ddpmpp", "edm2"])
def test_gradients_with_remat_and_bfloat16(name):
    _, variables = create_random(name, dropout=0.0)

    def gradient(**kwargs):
        module = create(name, **NETWORKS[name] | {"dropout": 0.0} | kwargs)

        def loss(variables):
            output = module.apply(variables, X, LEVEL, train=True)
            assert output.dtype == jnp.float32
            return jnp.mean(output**2)

        return jax.jit(jax.grad(loss))(variables)

    plain, remat, half = gradient(), gradient(remat=True), gradient(dtype="bfloat16")
    for tree in (remat, half):
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(tree))
    norm = lambda tree: float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))))  # noqa: E731
    assert norm(jax.tree.map(jnp.subtract, remat, plain)) < 1e-5 * norm(plain)
    # bfloat16 rounds to 2^-9 = 0.002. About 160 random roundings, forward and backward, add up to sqrt(160) * 0.002 =
    # 0.025; the tolerance has a fourfold margin.
    assert norm(jax.tree.map(jnp.subtract, half, plain)) < 0.1 * norm(plain)


def test_transformer_blocks_are_compiled_once():
    def size(depth):
        module = create("dit", width=16, depth=depth, heads=2)
        params = jax.eval_shape(module.init, jax.random.key(0), X, LEVEL)
        return len(jax.jit(module.apply).lower(params, X, LEVEL).as_text())

    assert size(12) < 1.1 * size(3)


@pytest.mark.slow
def test_edm2_preserves_magnitudes():
    """Every block maps unit variance to about unit variance at initialization (Karras et al. 2024)."""
    module = create("edm2", channels=64, multipliers=(1, 2), num_res_blocks=2, attention_resolutions=(8,))
    x = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    level = jnp.linspace(-1.5, 1.0, 4)
    params = jax.jit(module.init)(jax.random.key(1), x, level)["params"]
    blocks = jax.jit(lambda: module.apply({"params": params}, x, level, capture_intermediates=True)[1])()
    for name, outputs in blocks["intermediates"].items():
        if name != "__call__" and name != "conv_out":
            assert 0.7 < float(jnp.std(outputs["__call__"][0])) < 1.4, name


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("ddpm", {"multipliers": (1, 1, 1, 1, 1)}, "8x8 is not a multiple of 16"),
        ("adm", {"head_channels": 6}, "heads of 6 channels don't divide 16 channels"),
        ("ddpm", {"heads": 3}, "3 heads don't divide 16 channels"),
        ("ncsnpp", {"progressive_input": "resid"}, "Did you mean 'residual'"),
        ("ddpm", {"label_dropout": 1.0}, "0 <= label_dropout < 1"),
        ("dit", {"patch": 3}, "patches of 3 don't divide an image of 8x8"),
        ("dit", {"heads": 3}, "3 heads don't divide 16 channels"),
        ("dit", {"size": "XXL"}, "unknown size 'XXL'"),
        ("edm2", {"attention_resolutions": (16,)}, r"heights are \[8, 4\]"),
        ("ddpm", {"channels": 30}, r"that divides 30 channels, \[1, 2, 3, 5, 6, 10, 15, 30\], got 7"),
        *(
            (name, {"dtype": "bf16"}, "dtype 'bf16'. Did you mean 'bfloat16'")
            for name in ("ddpm", "adm", "edm2", "dit")
        ),
    ],
)
def test_invalid_options_raise(name, kwargs, words):
    module = create(name, **NETWORKS[name] | kwargs)
    with pytest.raises(UserError, match=words):
        jax.eval_shape(module.init, jax.random.key(0), X, LEVEL)


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_of_unconditional_networks_raise(name):
    module = create(name, **NETWORKS[name])
    with pytest.raises(UserError, match="unconditional"):
        jax.eval_shape(module.init, jax.random.key(0), X, LEVEL, jnp.zeros(3, int))


@pytest.mark.slow
def test_classifier_returns_logits():
    kwargs = UNET | {"num_classes": 5, "head_channels": 4, "groups": None}
    module = create("classifier", **kwargs)
    variables = jax.jit(module.init)(jax.random.key(0), X, LEVEL)
    logits = jax.jit(module.apply)(variables, X, LEVEL)
    assert logits.shape == (3, 5)
    assert distance(jax.jit(module.apply)(variables, X[::-1], LEVEL[::-1])[::-1], logits) < IN_FLOAT32


def test_ncsnv2_resize_aligns_corners():
    from score_sde.models.ncsnv2 import resize

    ramp = jnp.broadcast_to(jnp.arange(4.0)[None, :, None, None], (1, 4, 4, 1))
    np.testing.assert_allclose(resize(ramp, (7, 4))[0, :, 0, 0], np.linspace(0, 3, 7), rtol=1e-6)
