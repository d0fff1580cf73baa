"""Predictions x0, epsilon, v and velocity on the SDEs vp, ve, edm and flow, with three seeds each.

    python launch.py --mode=sweep --config=configs/sweeps/parameterization_digits.py --dry_run
    python launch.py --mode=sweep --config=configs/sweeps/parameterization_digits.py

Trains a small network briefly on the digits; docs/sweeps.md shows the results and their cost. flow is not combined with
epsilon, which does not determine x0 at zero terminal SNR.
"""

from score_sde.sweeps import axis, chain, product, sweep

SHORT_RUN = {
    "model.kwargs.channels": 16,
    "training.num_steps": 600,
    "training.sample_every": 600,
    "sampling.num_steps": 25,
}


def get_config():
    """Return the config."""
    most_sdes = product(
        axis("sde.name", ("vp", "ve", "edm")), axis("model.prediction", ("x0", "epsilon", "v", "velocity"))
    )
    on_flow = product(axis("sde.name", ("flow",)), axis("model.prediction", ("x0", "v", "velocity")))
    return sweep(
        base="configs/vp_digits.py",
        trials=chain(most_sdes, on_flow),
        fixed=SHORT_RUN,
        metrics=(
            "fd_classifier_1000.mean",
            "overlap_classifier_1000.precision:max",
            "overlap_classifier_1000.recall:max",
        ),
        seeds=(0, 1, 2),
    )
