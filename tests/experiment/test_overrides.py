"""Values that a flag can set to: each gives an experiment or one sentence, never another error."""

import jax
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.experiment import make_experiment
from score_sde.experiment.overrides import load, override, parse
from score_sde.sweeps import sweep
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


def test_dictionary_changes_only_its_keys():
    config = small()
    before = config.to_dict()
    changes = {
        "sampling": {"solver": "heun", "kwargs": {"a": {"b": 1}}},
        "sampling.kwargs": {"a": {"c": 2}},
        "model.kwargs": {"features": (4,)},
        "data": {},
    }
    changed = override(config, changes).to_dict()
    assert config.to_dict() == before
    assert changed["sampling"] == before["sampling"] | {"solver": "heun", "kwargs": {"a": {"b": 1, "c": 2}}}
    assert changed["model"]["kwargs"] == {"features": (4,), "embedding": 4}
    assert {key for key in before if changed[key] != before[key]} == {"sampling", "model"}
    assert override(config, {"model.kwargs": {}, "model.kwargs.a.b": 1}).model.kwargs.to_dict() == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("loss", "edm", "loss: expected a dictionary with any of the keys objective, .*, got 'edm'"),
        ("model.kwargs", 3, "model.kwargs: expected a dictionary"),
        ("seed", {"a": 1}, "seed: expected an integer, got {'a': 1}"),
        ("training.num_steps", None, "expected an integer, got None"),
        ("training.num_steps", True, "expected an integer, got True"),
        ("sampling", {"solvr": "heun"}, "unknown config key 'sampling.solvr'. Did you mean 'sampling.solver'"),
        ("seed.a.b", 1, "unknown config key 'seed.a'"),
        ("lr", 1, "Did you mean 'optimizer.learning_rate'"),
        ("optimizer.lr", 1, "Did you mean 'optimizer.learning_rate'"),
        ("training.batchsize", 1, "Did you mean 'training.batch_size'"),
        ("sampling.steps", 1, "Did you mean 'sampling.num_steps'"),
        ("batch_size", 1, "Did you mean 'likelihood.batch_size' or 'sampling.batch_size' or 'training.batch_size'"),
    ],
)
def test_wrong_key_or_kind_raises(key, value, words):
    with pytest.raises(UserError, match=words):
        override(small(), {key: value})


def test_texts_become_values_of_the_keys_type():
    for key, texts, value in (
        ("data.random_flip", ["true"], True),
        ("data.path", ["3"], "3"),
        ("optimizer.learning_rate", ["1"], 1.0),
        ("training.ema_lengths", ["0.1", "(0.2, 0.3)"], (0.1, 0.2, 0.3)),
        ("evaluation.features", ["pixels"], ("pixels",)),
        ("seed", ["1", "0x10"], 16),
        ("seed", ["many"], "many"),
        ("sampling", ['{"solver": "heun"}'], {"solver": "heun"}),
        ("sampling.kwargs.order", ["2"], 2),
        ("fixed.model.kwargs.depth", ["2"], 2),
    ):
        assert parse(small(), key, texts) == value, key


def test_fixed_keys_of_a_sweep_change():
    settings = sweep("base.py", [{}], ("train.loss",), {"training.num_steps": 10, "seed": 1})
    changed = override(settings, {"fixed.training.num_steps": 20, "fixed": {"model.kwargs.depth": 2}})
    assert changed.fixed == ({"training.num_steps": 20, "seed": 1, "model.kwargs.depth": 2},)
    assert settings.fixed == ({"training.num_steps": 10, "seed": 1},)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import nothing_here", "failed: ModuleNotFoundError: .*line 1"),
        ("def get_config(:", "failed: SyntaxError: .*line 1"),
        ("def get_config(variant): pass", "requires a variant"),
        ("def get_config(): pass", "to return a ConfigDict, got NoneType"),
    ],
)
def test_config_file_that_fails_raises(tmp_path, text, words):
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(UserError, match=words):
        load(str(tmp_path / "config.py"))
