"""Values that a flag can set to: each gives an experiment or one sentence, never another error."""

import jax
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.experiment import make_experiment
from tests.experiment.test_config_combinations import small

VALUES = {
    bool: (True, False),
    int: (-1, 0, 2**70),
    float: (-1.0, 0.0, 1e300, float("nan"), float("inf")),
    str: ("", "nothing", "with 'quotes' ± and spaces"),
    tuple: ((), (1, "a"), (-1,), (float("nan"), 1), ("x",)),
    dict: ({"a": 1}, {"channels": -1}, {"beta_max": "x"}, {"features": ("a",)}, {"gamma": float("nan")}),
}


def test_generated_overrides_build_or_raise_one_sentence():
    rng = np.random.default_rng(0)
    plain = small().to_dict()
    keys = [(group, key) for group, values in plain.items() if isinstance(values, dict) for key in values]
    raised = 0
    for n in rng.permutation(len(keys))[:60]:
        group, key = keys[n]
        kind = next((kind for kind in VALUES if isinstance(plain[group][key], kind)), dict)
        value = VALUES[kind][rng.integers(len(VALUES[kind]))]
        try:
            make_experiment(small(**{f"{group}__{key}": value}), jax.devices()[:1])
        except UserError as error:
            raised += 1
            assert "\n" not in str(error), (group, key, value)
        except Exception as error:
            raise AssertionError(f"{group}.{key}={value!r}") from error
    assert raised > 15


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70])
def test_seeds_that_would_wrap_raise(seed):
    config = small()
    config.seed = seed
    with pytest.raises(UserError, match="0 or more and below 2"):
        make_experiment(config, jax.devices()[:1])
