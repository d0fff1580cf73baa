"""Sample quality of solvers against the number of network evaluations, on one trained run.

    python launch.py --config=configs/vp_digits.py
    python launch.py --mode=sweep --config=configs/sweeps/solvers_digits.py

--config.from_run=DIR selects another run, which must have the config of the base.
"""

from score_sde.sweeps import axis, product, sweep

SOLVERS = ("euler", "ddim", "heun", "dpm_solver_pp", "unipc")


def get_config():
    """Return the config."""
    return sweep(
        base="configs/vp_digits.py",
        trials=product(axis("sampling.solver", SOLVERS), axis("sampling.num_steps", (5, 10, 20))),
        metrics=("fd_classifier_ratio", "nfe"),
        modes=("evaluate",),
        from_run="runs/vp_digits",
    )
