"""Reverse-time solvers, one family per file. A new one is a function that returns a `Solver`, and a `SOLVERS` entry."""

from collections.abc import Callable

from score_sde.solvers.adaptive import ODE_METHODS, adaptive, solve_adaptive
from score_sde.solvers.adaptive_sde import adaptive_sde, solve_adaptive_sde
from score_sde.solvers.ancestral import ancestral, exponential_sde, reverse_diffusion
from score_sde.solvers.base import (
    Solution,
    Solver,
    check_finite,
    check_one_step,
    check_times,
    evaluation_times,
    most_evaluations,
    solve,
)
from score_sde.solvers.ddim import ddim
from score_sde.solvers.deis import deis
from score_sde.solvers.dpm_solver import dpm_solver_pp, dpm_solver_pp_sde
from score_sde.solvers.edm import edm_stochastic
from score_sde.solvers.euler_maruyama import euler_maruyama
from score_sde.solvers.flow_map_steps import flow_map_steps
from score_sde.solvers.langevin import annealed_langevin, langevin
from score_sde.solvers.predictor_corrector import predictor_corrector
from score_sde.solvers.runge_kutta import euler, heun, rk4
from score_sde.solvers.stochastic_runge_kutta import stochastic_runge_kutta
from score_sde.solvers.time_grids import SPACINGS, snap_to_timesteps, time_grid
from score_sde.solvers.unipc import unipc

SOLVERS: dict[str, Callable[..., Solver]] = {
    # the probability flow
    "euler": euler,
    "heun": heun,
    "rk4": rk4,
    "ddim": ddim,
    "dpm_solver_pp": dpm_solver_pp,
    "unipc": unipc,
    "deis": deis,
    "flow_map_steps": flow_map_steps,
    # the reverse SDE
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral": ancestral,
    "exponential_sde": exponential_sde,
    "stochastic_runge_kutta": stochastic_runge_kutta,
    "dpm_solver_pp_sde": dpm_solver_pp_sde,
    "edm_stochastic": edm_stochastic,
    # Langevin dynamics
    "langevin": langevin,
    "annealed_langevin": annealed_langevin,
    "predictor_corrector": predictor_corrector,
}
# Solvers with adaptive step sizes, called as run(sde, denoiser, x, keys).
ADAPTIVE: dict[str, Callable[..., Callable[..., Solution]]] = {"adaptive": adaptive, "adaptive_sde": adaptive_sde}

__all__ = [
    "ADAPTIVE",
    "ODE_METHODS",
    "SOLVERS",
    "SPACINGS",
    "Solution",
    "Solver",
    "adaptive",
    "adaptive_sde",
    "ancestral",
    "annealed_langevin",
    "check_finite",
    "check_one_step",
    "check_times",
    "ddim",
    "deis",
    "dpm_solver_pp",
    "dpm_solver_pp_sde",
    "edm_stochastic",
    "euler",
    "euler_maruyama",
    "evaluation_times",
    "exponential_sde",
    "flow_map_steps",
    "heun",
    "langevin",
    "most_evaluations",
    "predictor_corrector",
    "reverse_diffusion",
    "rk4",
    "snap_to_timesteps",
    "solve",
    "solve_adaptive",
    "solve_adaptive_sde",
    "stochastic_runge_kutta",
    "time_grid",
    "unipc",
]
