"""U-Nets: parameter counts of the papers, and invalid options. test_pretrained.py checks their outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.models import create


def parameter_count(module, shape):
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(shape[:1]))
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables))


IMAGENET = {"channels": 256, "multipliers": (1, 1, 2, 2, 4, 4), "num_res_blocks": 2}


@pytest.mark.parametrize(
    ("name", "kwargs", "size", "millions"),
    [
        ("ddpm", {}, 32, 35.7),  # Ho et al. 2020
        ("ddpmpp", {}, 32, 61.8),  # Song et al. 2021
        ("ncsnpp", {}, 32, 62.8),
        ("adm", {"num_classes": 1000, "outputs": 2}, 64, 295.9),  # Dhariwal and Nichol 2021, also the next row
        ("adm", {"num_classes": 1000, "outputs": 2, **IMAGENET}, 256, 553.8),
    ],
)
def test_parameter_counts_match_papers(name, kwargs, size, millions):
    assert round(parameter_count(create(name, **kwargs), (1, size, size, 3)) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("kwargs", "shape", "words"),
    [
        ({"multipliers": (1, 1, 1)}, (1, 6, 6, 1), "not a multiple of 4"),
        ({"multipliers": (1, 1), "attention_resolutions": (16,)}, (1, 8, 8, 1), r"heights are \[8, 4\]"),
    ],
)
def test_invalid_levels_raise(kwargs, shape, words):
    module = create("ddpmpp", channels=8, num_res_blocks=1, **kwargs)
    with pytest.raises(UserError, match=words):
        parameter_count(module, shape)


def test_unknown_names_raise_with_suggestion():
    with pytest.raises(UserError, match="Did you mean 'ncsnpp'"):
        create("ncsnp")
    with pytest.raises(UserError, match="Did you mean 'channels'"):
        create("ddpmpp", chanels=3)
