"""Predictor-corrector sampling."""

from collections.abc import Mapping
from typing import Any

from score_sde.errors import build
from score_sde.randomness import split_rng
from score_sde.solvers.ancestral import ancestral, exponential_sde, reverse_diffusion
from score_sde.solvers.base import Solver, check_one_step
from score_sde.solvers.ddim import ddim
from score_sde.solvers.dpm_solver import dpm_solver_pp
from score_sde.solvers.edm import edm_stochastic
from score_sde.solvers.euler_maruyama import euler_maruyama
from score_sde.solvers.langevin import annealed_langevin, langevin
from score_sde.solvers.runge_kutta import euler, heun, rk4
from score_sde.solvers.stochastic_runge_kutta import stochastic_runge_kutta

PREDICTORS = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpm_solver_pp": dpm_solver_pp,
    "edm_stochastic": edm_stochastic,
    "euler": euler,
    "euler_maruyama": euler_maruyama,
    "exponential_sde": exponential_sde,
    "heun": heun,
    "reverse_diffusion": reverse_diffusion,
    "rk4": rk4,
    "stochastic_runge_kutta": stochastic_runge_kutta,
}
CORRECTORS = {"langevin": langevin, "annealed_langevin": annealed_langevin}


def predictor_corrector(
    predictor: Solver | str = "reverse_diffusion",
    corrector: Solver | str = "langevin",
    predictor_kwargs: Mapping[str, Any] | None = None,
    corrector_kwargs: Mapping[str, Any] | None = None,
) -> Solver:
    """Return a predictor step from t to t_next followed by corrector steps at t_next (Song et al. 2021, Algorithm 1).

    Args:
      predictor: Solver, or a key of `PREDICTORS`.
      corrector: Solver that stays at t_next, or a key of `CORRECTORS`.
      predictor_kwargs: Keyword arguments of a predictor that is given by name.
      corrector_kwargs: Keyword arguments of a corrector that is given by name.

    Raises:
      UserError: if a name or keyword is unknown, or the predictor is a multistep method, which recomputes x from its
        history and so undoes the correction.
    """
    predict, correct = (
        solver if isinstance(solver, Solver) else build(role, table, solver, dict(kwargs or {}))
        for role, table, solver, kwargs in (
            ("predictor", PREDICTORS, predictor, predictor_kwargs),
            ("corrector", CORRECTORS, corrector, corrector_kwargs),
        )
    )

    check_one_step(predict, "predictor_corrector's corrector", "predictor")

    def step(sde, denoiser, state, t, t_next, rng):
        predictor_rng, corrector_rng = _split_between(rng, predict.stochastic, correct.stochastic)
        state = predict.step(sde, denoiser, state, t, t_next, predictor_rng)
        corrected = correct.step(sde, denoiser, correct.init(state.x), t, t_next, corrector_rng)
        return state._replace(x=corrected.x)

    return Solver(
        init=predict.init,
        step=step,
        nfe_per_step=predict.nfe_per_step + correct.nfe_per_step,
        stochastic=predict.stochastic or correct.stochastic,
        requires_nonzero_alpha=predict.requires_nonzero_alpha or correct.requires_nonzero_alpha,
        reverse_sde=False,
    )


def _split_between(rng, *stochastic: bool) -> list:
    """Return one rng for each stochastic solver and None for the others."""
    rngs = iter(split_rng(rng, sum(stochastic)) if any(stochastic) else ())
    return [next(rngs) if draws_noise else None for draws_noise in stochastic]
