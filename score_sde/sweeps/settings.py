"""Settings of a sweep, as a config whose keys the command line can override."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from score_sde.errors import UserError
from score_sde.experiment.rules import check_seed
from score_sde.sweeps.axes import Overrides

MODES = ("train", "evaluate", "likelihood", "certify")  # modes that a trial can run


def sweep(
    base: str, trials: Sequence[Overrides], metrics: Sequence[str], fixed: Overrides | None = None, **changes: Any
) -> ConfigDict:
    """Return the settings of a sweep.

    Args:
      base: Config file that the trials change, with its variant after a colon if it has one.
      trials: Overrides of each trial, as built by `axes`.
      metrics: Metrics to collect: "train.loss" and other keys of metrics.jsonl, or a path into evaluation.json such as
        "likelihood.bits_per_dim.mean". Smaller values are better unless ":max" is appended.
      fixed: Overrides that all trials share.
      changes: Values that replace the defaults below.

    Returns:
      A ConfigDict, whose trials are plain dictionaries.
    """
    settings = {
        "base": base,
        "trials": tuple(trials),
        "fixed": (dict(fixed or {}),),  # in a tuple, because a ConfigDict would split keys at their dots
        "metrics": tuple(metrics),
        "seeds": (0,),  # every trial runs once per seed
        "modes": ("train", "evaluate"),
        "from_run": "",  # a run whose checkpoints are evaluated instead of training
        "retries": 2,  # per trial that fails or is killed
        "concurrent": 0,  # maximum number of concurrent trials; 0: as many as fit
        "cpus": 1.0,  # per host of a trial
        "gpus": 0.0,  # per host
        "tpus": 0,  # chips per host
        "hosts": 1,  # processes per trial, joined by jax.distributed
        "head": "",  # a resource of only the first host, such as TPU-v5litepod-16-head, which reserves a slice
        "stop_metric": "",  # key of metrics.jsonl for early stopping by ASHA, such as "loss"; "": no early stopping
        "stop_mode": "min",
        "stop_grace": 100,  # minimum number of steps before a trial is stopped
        "stop_factor": 3,  # 1 of this many trials continues at each rung
    }
    unknown = sorted(changes.keys() - settings.keys())
    if unknown:
        raise UserError(f"a sweep has no {', '.join(unknown)}; it has {', '.join(settings)}")
    return ConfigDict(settings | changes)


def check_sweep(config: ConfigDict) -> None:
    """Raise UserError unless the settings are those of a valid sweep; the trials themselves are not checked.

    Raises:
      UserError: with the invalid value and the setting to change.
    """
    if "base" not in config or "trials" not in config:
        raise UserError("a sweep needs a config file whose get_config() returns sweep(...), as in configs/sweeps/")
    if not config.trials or not config.seeds:
        raise UserError(
            f"a sweep needs seeds, and trials in its file, got {len(config.seeds)} and {len(config.trials)}", "seeds"
        )
    for seed in config.seeds:
        check_seed(seed, "seeds")
    if len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"each seed is run once, got {config.seeds}", "seeds")
    if not config.modes or set(config.modes) - set(MODES):
        raise UserError(f"modes: expected some of {', '.join(MODES)}, got {config.modes}", "modes")
    if ("train" in config.modes) == bool(config.from_run):
        raise UserError(
            "trials either train or measure one run's checkpoints: expected train in modes, or from_run=DIR without "
            f"it, got {config.modes} and {config.from_run!r}",
            "modes",
            "from_run",
        )
    minimums = {"cpus": 0.0, "gpus": 0.0, "tpus": 0, "hosts": 1, "retries": 0, "concurrent": 0}
    for name, minimum in minimums.items():
        if config[name] < minimum:
            raise UserError(f"a sweep needs {name} >= {minimum}, got {config[name]}", name)
    if config.stop_metric and (config.stop_factor < 2 or config.stop_grace < 1 or "train" not in config.modes):
        raise UserError(
            "early stopping needs train among modes, stop_factor >= 2 and stop_grace >= 1, got "
            f"{config.modes}, {config.stop_factor} and {config.stop_grace}",
            "stop_factor",
            "stop_grace",
        )
    if config.stop_mode not in ("min", "max"):
        raise UserError(f"stop_mode: expected min or max, got {config.stop_mode!r}", "stop_mode")
