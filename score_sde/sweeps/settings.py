"""What a sweep file in configs/sweeps/ says, as a config whose keys the command line overrides like any other."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from score_sde.errors import UserError
from score_sde.experiment.rules import check_seed
from score_sde.sweeps.axes import Overrides

MODES = ("train", "evaluate", "likelihood", "certify")  # what a trial can be made of


def sweep(
    base: str, trials: Sequence[Overrides], metrics: Sequence[str], fixed: Overrides | None = None, **changes: Any
) -> ConfigDict:
    """The settings of a sweep.

    Args:
      base: the config file that trials change, with its variant after a colon if it has one.
      trials: overrides of each, as `axes` makes them.
      metrics: what is collected: "train.loss" and other keys of metrics.jsonl, or a path into evaluation.json, as
        "likelihood.bits_per_dim.mean"; more is better with ":max" behind it.
      fixed: overrides that all trials share.
      changes: of the values below.

    Returns:
      A ConfigDict; its trials are plain dictionaries.
    """
    settings = {
        "base": base,
        "trials": tuple(trials),
        "fixed": (dict(fixed or {}),),  # in a tuple, as a ConfigDict would take the dots apart
        "metrics": tuple(metrics),
        "seeds": (0,),  # each trial is run with each
        "modes": ("train", "evaluate"),
        "from_run": "",  # a run whose checkpoints are measured, in place of training
        "retries": 2,  # of a trial that fails or is killed
        "concurrent": 0,  # trials at a time; 0: as many as there is room for
        "cpus": 1.0,  # of a host of a trial
        "gpus": 0.0,
        "tpus": 0,  # chips of a host
        "hosts": 1,  # of a trial: its processes, joined by jax.distributed
        "head": "",  # a resource of the first host alone, as TPU-v5litepod-16-head, which reserves a slice
        "stop_metric": "",  # early stopping by ASHA on a key of metrics.jsonl, as "loss"; "": none
        "stop_mode": "min",
        "stop_grace": 100,  # steps before which none is stopped
        "stop_factor": 3,  # 1 in so many goes on at each rung
    }
    unknown = sorted(changes.keys() - settings.keys())
    if unknown:
        raise UserError(f"a sweep has no {', '.join(unknown)}; it has {', '.join(settings)}")
    return ConfigDict(settings | changes)


def check_sweep(config: ConfigDict) -> None:
    """Refuses what can't be a sweep, before any trial is looked at.

    Raises:
      UserError: with what was given, and what to set.
    """
    if "base" not in config or "trials" not in config:
        raise UserError("--mode=sweep takes a file of configs/sweeps/, whose get_config() gives a sweep(...)")
    if not config.trials or not config.seeds:
        raise UserError("a sweep needs trials and seeds, got none (set --config.seeds, or the file's trials)")
    for seed in config.seeds:
        check_seed(seed, "--config.seeds")
    if len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"each seed is run once, got {config.seeds}")
    if not config.modes or set(config.modes) - set(MODES):
        raise UserError(f"a trial is made of {', '.join(MODES)}, got {config.modes}")
    if ("train" in config.modes) == bool(config.from_run):
        raise UserError(
            "trials either train or measure one run's checkpoints: give train in --config.modes, or --config.from_run="
            f"DIR without it; got {config.modes} and {config.from_run!r}"
        )
    for name, least in (("cpus", 0.0), ("gpus", 0.0), ("tpus", 0), ("hosts", 1), ("retries", 0), ("concurrent", 0)):
        if config[name] < least:
            raise UserError(f"a sweep needs {name} >= {least}, got {config[name]} (set --config.{name})")
    if config.stop_metric and (config.stop_factor < 2 or config.stop_grace < 1 or "train" not in config.modes):
        raise UserError(
            "early stopping needs train among --config.modes, stop_factor >= 2 and stop_grace >= 1, got "
            f"{config.stop_factor} and {config.stop_grace} (set --config.stop_factor, --config.stop_grace)"
        )
    if config.stop_mode not in ("min", "max"):
        raise UserError(f"stop_mode is min or max, got {config.stop_mode!r}")
