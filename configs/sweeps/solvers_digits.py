"""Solvers against evaluations of the network, on one trained run: nothing is trained again.

    python launch.py --config=configs/vp_digits.py
    python launch.py --mode=sweep --config=configs/sweeps/solvers_digits.py

Another run's checkpoints: --config.from_run=DIR; it must be of the base's config.
"""

from score_sde.sweeps import axis, product, sweep

SOLVERS = ("euler", "ddim", "heun", "dpm_solver_pp", "unipc")


def get_config():
    return sweep(
        base="configs/vp_digits.py",
        trials=product(axis("sampling.solver", SOLVERS), axis("sampling.num_steps", (5, 10, 20))),
        metrics=("fd_classifier_ratio", "nfe"),
        modes=("evaluate",),
        from_run="runs/vp_digits",
    )
