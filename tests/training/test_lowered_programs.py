"""The train step as lowered for GPUs and TPUs, which needs neither: precision, layouts, donation, no host calls."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from configs import vp_digits
from score_sde.experiment import make_experiment
from score_sde.training.setup import build_train_step
from score_sde.training.step import scan_steps
from tests.thinned import thinned

UNET = {"channels": 32, "multipliers": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,), "dropout": 0.1}
NETWORKS = {
    "ddpmpp": UNET,
    "adm": UNET | {"head_channels": 32},
    "edm2": UNET | {"head_channels": 16},
    "dit": {"width": 32, "depth": 3, "heads": 2, "dropout": 0.1},
}
LAYOUTS = {  # of the forward pass, and of JAX's gradients with respect to the input and the kernel
    "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]",
    "[b, 0, 1, f]x[0, 1, o, i]->[b, 0, 1, f]",
    "[f, 0, 1, b]x[i, 0, 1, o]->[0, 1, b, f]",
}


def lower(name):
    """The program for both platforms of two steps in bfloat16, and the number of arrays in the state."""
    config = vp_digits.get_config()
    config.model.name, config.model.kwargs = name, NETWORKS[name] | {"dtype": "bfloat16"}
    if name == "edm2":
        config.model.preconditioning = "edm"
    experiment = make_experiment(config, jax.devices()[:1])
    state = jax.eval_shape(experiment.training.init_state)
    batch = {
        "image": jax.ShapeDtypeStruct((2, 8, 8, 8, 1), jnp.uint8),
        "index": jax.ShapeDtypeStruct((2, 8), jnp.int32),
    }
    step = partial(scan_steps, build_train_step(experiment.training, 17, None))
    traced = jax.jit(step, donate_argnums=0).trace(state, batch)
    platforms = ("cuda", "tpu")
    texts = {platform: traced.lower(lowering_platforms=(platform,)).as_text() for platform in platforms}
    return texts, len(jax.tree.leaves(state))


def operands(text, operation):
    """(Shape, dtype) of both operands of each such operation, and its line."""
    for line in text.splitlines():
        if f"stablehlo.{operation}" in line:
            types = re.search(r": \(tensor<(.*?)>, tensor<(.*?)>\) ->", line).groups()
            parts = [part.split("x") for part in types]
            yield [([int(size) for size in part[:-1]], part[-1]) for part in parts], line


@pytest.mark.parametrize("name", thinned(NETWORKS, "ddpmpp"))
def test_a_step_in_bfloat16_is_what_accelerators_are_fast_at(name):
    texts, num_arrays = lower(name)
    assert texts["cuda"] == texts["tpu"]  # so no branch for one platform can differ
    text = texts["cuda"]

    convolutions = list(operands(text, "convolution"))
    assert bool(convolutions) == (name != "dit")
    for pair, line in convolutions:
        assert {dtype for _, dtype in pair} == {"bf16"}, line
        assert re.search(r"dim_numbers = (.*?), window", line).group(1) in LAYOUTS, line
    for pair, line in operands(text, "dot_general"):
        dtypes = {dtype for _, dtype in pair}
        if len(dtypes) == 2:  # the gradient of an attention's softmax, which is in float32: (queries, keys)
            assert [shape.count(16) for shape, dtype in pair if dtype == "f32"] == [2], line
        if dtypes == {"f32"}:  # of the embedding: vectors per example, not activations per position
            assert all(sum(size > 1 for size in shape) <= 2 for shape, _ in pair), line

    assert len(re.findall(r"tf.aliasing_output|jax.buffer_donor", text)) == num_arrays  # the state is updated in place
    targets = set(re.findall(r"custom_call @([\w.]+)", text))
    assert not {target for target in targets if "callback" in target or "host" in target.lower()}, targets
    assert not re.search(r"stablehlo\.(infeed|outfeed|send|recv)\b", text)
    assert "f64" not in text
