"""Weightings, predictions and objectives, each with one small network on the digits.

    python launch.py --mode=sweep --config=configs/sweeps/objectives_digits.py --dry_run
    python launch.py --mode=sweep --config=configs/sweeps/objectives_digits.py

The objective ddpm has discrete times. The last three objectives train flow maps, which sample by jumps. docs/sweeps.md
has the results of the 22 trials, which took 48 minutes on two CPU cores that also did other work.
"""

from configs.sweeps.parameterization_digits import SHORT_RUN
from score_sde.sweeps import axis, chain, product, sweep

WEIGHTINGS = ("simple", "likelihood", "min_snr", "sigmoid", "edm")
FLOW_MAP = {
    "sde.name": "flow",
    "model.preconditioning": "angle",
    "model.kwargs.two_times": True,
    "sampling.solver": "flow_map_steps",
    "sampling.denoise": False,
}


def get_config():
    """Return the config."""
    return sweep(
        base="configs/vp_digits.py",
        trials=chain(
            product(axis("loss.weighting", WEIGHTINGS), axis("model.prediction", ("x0", "epsilon", "v"))),
            [{"loss.uncertainty": True}],
            axis("loss.objective", ("implicit", "sliced")),
            [{"sde.name": "ddpm_linear", "loss.objective": "ddpm"}],
            product([FLOW_MAP], axis("loss.objective", ("eulerian", "lagrangian", "progressive"))),
        ),
        fixed=SHORT_RUN,
        metrics=("fd_classifier_1000.mean", "overlap_classifier_1000.precision:max"),
    )
