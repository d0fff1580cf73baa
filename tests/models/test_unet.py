"""DDPM++ against the paper's parameter count and against the reference implementation's own numbers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.models import create

ORACLE = (
    Path(__file__).parents[1] / "reference" / "score_sde_ddpmpp.npz"
)  # a small DDPM++ run by score_sde's PyTorch code


def parameter_count(module, shape):
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(shape[:1]))
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables))


def test_the_papers_network_has_the_papers_size():
    count = parameter_count(create("ddpmpp"), (1, 32, 32, 3))
    assert round(count / 1e6, 1) == 61.8


def reference_parameters(archive):
    """score_sde's numbered module list, in order of use, under our names and layouts."""
    modules: dict[int, dict[str, np.ndarray]] = {}
    for key in archive.files:
        if key.startswith("weights/all_modules."):
            number, name = key.removeprefix("weights/all_modules.").split(".", 1)
            modules.setdefault(int(number), {})[name] = archive[key]
    ordered = iter(modules[number] for number in sorted(modules))

    def dense(weights, prefix=""):
        return {"kernel": weights[prefix + "weight"].T, "bias": weights[prefix + "bias"]}

    def convolution(weights, prefix=""):
        return {"kernel": weights[prefix + "weight"].transpose(2, 3, 1, 0), "bias": weights[prefix + "bias"]}

    def norm(weights, prefix=""):
        return {"scale": weights[prefix + "weight"], "bias": weights[prefix + "bias"]}

    def residual(weights):
        shortcut = {"shortcut": convolution(weights, "Conv_2.")} if "Conv_2.weight" in weights else {}
        return {
            "norm_0": norm(weights, "GroupNorm_0."),
            "conv_0": convolution(weights, "Conv_0."),
            "embedding": dense(weights, "Dense_0."),
            "norm_1": norm(weights, "GroupNorm_1."),
            "conv_1": convolution(weights, "Conv_1."),
        } | shortcut

    def attention(weights):
        products = {
            name: {"kernel": weights[f"NIN_{i}.W"][None, None], "bias": weights[f"NIN_{i}.b"]}
            for i, name in enumerate(("query", "key", "value", "out"))
        }
        return {"norm": norm(weights, "GroupNorm_0.")} | products

    order = "down_0_0 down_0_resample down_1_0 down_1_0_attention middle_0 middle_attention middle_1"
    order += " up_1_0 up_1_1 up_1_attention up_1_resample up_0_0 up_0_1"
    parameters = {
        "noise": {"dense_0": dense(next(ordered)), "dense_1": dense(next(ordered))},
        "conv_in": convolution(next(ordered)),
    }
    for name in order.split():
        parameters[name] = (attention if name.endswith("attention") else residual)(next(ordered))
    parameters |= {"norm_out": norm(next(ordered)), "conv_out": convolution(next(ordered))}
    assert next(ordered, None) is None
    return parameters


def test_ddpmpp_is_score_sdes_function():
    archive = np.load(ORACLE)
    options = json.loads(str(archive["config"]))["model"]
    module = create(
        "ddpmpp",
        channels=options["nf"],
        multipliers=tuple(options["ch_mult"]),
        num_res_blocks=options["num_res_blocks"],
        attention_resolutions=tuple(options["attn_resolutions"]),
        dropout=options["dropout"],
    )
    variables = {"params": reference_parameters(archive)}
    output = jax.jit(module.apply)(variables, archive["input"], archive["noise_label"])
    expected = archive["output"]
    # float32 through some 30 layers: relative rounding of 1e-7 a layer, so 1e-5; a tenfold margin.
    assert np.max(np.abs(output - expected)) < 1e-4 * np.std(expected)


@pytest.mark.parametrize(
    ("kwargs", "shape", "words"),
    [
        ({"multipliers": (1, 1, 1)}, (1, 6, 6, 1), "not a multiple of 4"),
        ({"multipliers": (1, 1), "attention_resolutions": (16,)}, (1, 8, 8, 1), r"heights are \[8, 4\]"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_numbers(kwargs, shape, words):
    module = create("ddpmpp", channels=8, num_res_blocks=1, **kwargs)
    with pytest.raises(UserError, match=words):
        parameter_count(module, shape)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'ncsnpp'"):
        create("ncsn++")
    with pytest.raises(UserError, match="Did you mean 'channels'"):
        create("ddpmpp", chanels=3)
