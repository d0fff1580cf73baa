"""Reverse-time solvers, one family a file. A new one is a function that makes a `Solver`, and an entry of `SOLVERS`."""

from score_sde.solvers.base import Solution, Solver, check_times, evaluation_times, solve
from score_sde.solvers.ddim import ddim
from score_sde.solvers.euler_maruyama import euler_maruyama
from score_sde.solvers.grids import SPACINGS, time_grid, to_chain

SOLVERS = {"ddim": ddim, "euler_maruyama": euler_maruyama}

__all__ = [
    "SOLVERS",
    "SPACINGS",
    "Solution",
    "Solver",
    "check_times",
    "ddim",
    "euler_maruyama",
    "evaluation_times",
    "solve",
    "time_grid",
    "to_chain",
]
