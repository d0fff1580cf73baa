"""Every experiment in configs/ is built, which traces its loss; of some a train step is traced. Nothing is computed."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs.common_cifar10 import NETWORKS
from score_sde.errors import UserError
from score_sde.experiment import make_experiment
from score_sde.training.setup import build_train_step

ROOT = Path(__file__).parents[1]
VARIANTS = {  # of CIFAR-10, every network with vp, and every other process with one network
    "vp_cifar10": tuple(NETWORKS),
    "subvp_cifar10": ("ddpmpp_deep",),
    "ve_cifar10": ("ncsnpp",),
    "flow_cifar10": ("ncsnpp_deep",),
    "edm_cifar10": ("unconditional", "conditional"),
    "dit_digits": ("jit", "plain"),
    "ddpm_256": ("bedroom", "church", "celebahq"),
    "ve_256": ("ffhq", "celebahq", "bedroom", "church"),
}
MILLIONS = {  # of parameters
    "ddpm_cifar10": 35.7,  # Ho et al. 2020, Appendix B
    "edm_cifar10:unconditional": 55.7,  # what EDM's own network counts
    "ddpm_256:bedroom": 113.7,  # Ho et al.: 114 million
    "vp_cifar10:ddpm": 35.7,
    "vp_cifar10:ddpmpp": 61.8,
}
FILES = [path.stem for path in sorted((ROOT / "configs").glob("*.py")) if not path.stem.startswith(("common", "__"))]
CASES = [name if variant is None else f"{name}:{variant}" for name in FILES for variant in VARIANTS.get(name, (None,))]


def config_of(case):
    name, _, variant = case.partition(":")
    config = importlib.import_module(f"configs.{name}").get_config(*([variant] if variant else []))
    if config.model.pretrained:  # the run of a teacher, which is not here; tests/test_flow_map.py distills one
        config.model.pretrained, config.loss.objective_kwargs = "", {}
    return config


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_config_builds(case):
    experiment = make_experiment(config_of(case), jax.devices()[:1])
    if case in MILLIONS:
        params = jax.eval_shape(experiment.training.init_params)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert round(count / 1e6, 1) == MILLIONS[case], count


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["vp_cifar10:ddpmpp", "ve_cifar10:ncsnpp", "edm_cifar10:conditional", "adm_imagenet64", "flow_map_cifar10"]
)
def test_train_steps_trace(case):
    experiment = make_experiment(config_of(case), jax.devices()[:1])
    state = jax.eval_shape(experiment.training.init_state)
    number = 2 * experiment.training.grad_accum_steps
    levels = 256 if len(experiment.model.event_shape) == 3 else None
    batch = {
        "image": jax.ShapeDtypeStruct((number, *experiment.model.event_shape), jnp.uint8 if levels else jnp.float32),
        "label": jax.ShapeDtypeStruct((number,), jnp.int32),
        "index": jax.ShapeDtypeStruct((number,), jnp.int32),
    }
    after, metrics = jax.eval_shape(build_train_step(experiment.training, levels, None), state, batch)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert metrics["loss"].shape == ()


def test_a_wrong_variant_is_answered_with_the_right_one():
    for case in ("ve_cifar10:ncsnp_deep", "edm_cifar10:conditionl", "ve_256:churc"):
        with pytest.raises(UserError, match=r"Did you mean '(ncsnpp_deep|conditional|church)'"):
            config_of(case)
