"""What the network predicts, against the process: x0, epsilon, v and velocity x vp, ve, edm and flow, three seeds each.

    python launch.py --mode=sweep --config=configs/sweeps/parameterization_digits.py --dry_run
    python launch.py --mode=sweep --config=configs/sweeps/parameterization_digits.py

A small network, trained briefly on the digits; its table in the README says how long that took. On flow epsilon is left
out: it does not give x0 where no signal is left.
"""

from score_sde.sweeps import axis, chain, product, sweep

BRIEF = {
    "model.kwargs.channels": 16,
    "training.num_steps": 600,
    "training.sample_every": 600,
    "sampling.num_steps": 25,
}


def get_config():
    everywhere = product(
        axis("sde.name", ("vp", "ve", "edm")), axis("model.prediction", ("x0", "epsilon", "v", "velocity"))
    )
    on_flow = product(axis("sde.name", ("flow",)), axis("model.prediction", ("x0", "v", "velocity")))
    return sweep(
        base="configs/vp_digits.py",
        trials=chain(everywhere, on_flow),
        fixed=BRIEF,
        metrics=(
            "fd_classifier_1000.mean",
            "overlap_classifier_1000.precision:max",
            "overlap_classifier_1000.recall:max",
        ),
        seeds=(0, 1, 2),
    )
