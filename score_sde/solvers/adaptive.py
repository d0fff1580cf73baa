"""The probability flow with adaptive step sizes per example, by Diffrax."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.conditioned import map_examples
from score_sde.errors import UserError, lookup
from score_sde.parameterization import Denoiser, velocity_fn
from score_sde.sde import SDE
from score_sde.solvers.base import MAX_STEPS_EXCEEDED, Solution, most_evaluations

FIRST_STEP = 0.01  # fraction of the integration interval
ODE_METHODS = {  # name -> name of the class in Diffrax
    "tsit5": "Tsit5",
    "dopri5": "Dopri5",
    "dopri8": "Dopri8",
    "heun": "Heun",
    "kvaerno3": "Kvaerno3",  # implicit, for stiff flows in few dimensions; solves with the Jacobian
    "kvaerno5": "Kvaerno5",
}
# Soderlind 2003, "Digital filters in adaptive time-stepping": I, H211PI, H312PID
CONTROLLERS: dict[str, dict[str, Any]] = {
    "i": {"pcoeff": 0.0, "icoeff": 1.0, "dcoeff": 0.0},
    "pi": {"pcoeff": 1 / 6, "icoeff": 1 / 6, "dcoeff": 0.0},
    "pid": {"pcoeff": 1 / 18, "icoeff": 1 / 9, "dcoeff": 1 / 18},
}


class IntegratorOptions(NamedTuple):
    """Tolerances, method and step-size controller of an initial value problem."""

    rtol: float
    atol: float
    method: str
    controller: str
    max_steps: int


def solve_adaptive(
    sde: SDE,
    denoiser: Denoiser,
    x: jax.Array,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "tsit5",
    t0: float | None = None,
    t1: float | None = None,
    controller: str = "i",
    max_steps: int = 4096,
) -> Solution:
    """Integrate the probability flow from x at t0 to t1 in one compiled loop.

    Step sizes are chosen per example from the root mean square of its local error. The loop runs until the last example
    has finished; finished examples do not change.

    Args:
      sde: Forward process.
      denoiser: Denoiser (x, t) -> Prediction with t: (batch,). Each example is evaluated with its row of the
        conditioning.
      x: Points at t0, (batch, *event).
      rtol: Relative tolerance; the local error is at most atol + rtol |x|.
      atol: Absolute tolerance.
      method: Runge-Kutta method, a key of `ODE_METHODS`.
      t0: Start time; None is sde.t_max.
      t1: End time; None is sde.t_min. Ascending times encode.
      controller: Step-size controller, a key of `CONTROLLERS`.
      max_steps: Maximum number of accepted and rejected steps per example.

    Returns:
      Solution with exact nfe per example, (batch,). For implicit methods nfe is None, because Diffrax does not report
      the number of iterations.

    Raises:
      UserError: if method or controller is unknown, a time is out of range, or an example exceeded max_steps or
        diverged. Under `jax.jit` such an example is NaN, which `check_finite` reports.
    """
    options = IntegratorOptions(rtol, atol, method, controller, max_steps)
    t0, t1 = (end if given is None else given for given, end in ((t0, sde.t_max), (t1, sde.t_min)))
    check_options(options)
    check_ends(sde, t0, t1)

    def one(velocity, x):
        return integrate(lambda t, x: velocity(x, t), x, t0, t1, options)

    result, steps = map_examples(one, velocity_fn(denoiser, sde), x)
    nfe = None if steps is None else steps * most_evaluations(denoiser, t0, t1)
    solution = Solution(result, nfe, None, nonfinite_time(result))
    if not isinstance(result, jax.core.Tracer):
        check_converged(solution, max_steps)
    return solution


def integrate(velocity, y, t0: float, t1: float, options: IntegratorOptions):
    """Integrate dy/dt = velocity(t, y) from t0 to t1, for a pytree y of one example.

    Returns:
      Pair (y at t1, evaluations). y is NaN if max_steps was exceeded. evaluations is None for implicit methods.
    """
    import diffrax  # imported here, because the import takes half a second

    method = getattr(diffrax, ODE_METHODS[options.method])()
    dtype = jax.tree.leaves(y)[0].dtype
    first, last = jnp.asarray(t0, dtype), jnp.asarray(t1, dtype)
    result = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: velocity(t, y)),
        method,
        t0=first,
        t1=last,
        dt0=FIRST_STEP * (last - first),
        y0=y,
        stepsize_controller=diffrax.PIDController(
            rtol=options.rtol, atol=options.atol, **CONTROLLERS[options.controller]
        ),
        max_steps=options.max_steps,
        throw=False,
    )
    successful = result.result == diffrax.RESULTS.successful
    end = jax.tree.map(lambda path: jnp.where(successful, path[-1], jnp.nan), result.ys)
    if isinstance(method, diffrax.AbstractImplicitSolver):
        return end, None
    # With FSAL the first stage of a step is the last of the previous step.
    stages, fsal = method.tableau.num_stages, method.tableau.fsal
    return end, fsal + result.stats["num_steps"] * (stages - fsal)


def check_options(options: IntegratorOptions) -> None:
    """Raise UserError unless method and controller are known and the numbers are in range."""
    lookup("method", ODE_METHODS, options.method)
    lookup("controller", CONTROLLERS, options.controller)
    if not (options.rtol > 0 and options.atol > 0 and options.max_steps >= 1):
        raise UserError(
            "adaptive: expected rtol > 0, atol > 0 and max_steps >= 1, got "
            f"{options.rtol}, {options.atol} and {options.max_steps}"
        )


def check_ends(sde: SDE, t0: float, t1: float) -> None:
    """Raise UserError unless the two times differ and are within the range of the SDE."""
    if t0 == t1 or min(t0, t1) < 0 or max(t0, t1) > sde.t_max * (1 + 1e-6):
        raise UserError(f"solve_adaptive: expected different times within [0, {sde.t_max}], got {t0} and {t1}")


def nonfinite_time(x: jax.Array) -> jax.Array:
    """Return the `nonfinite_at` of a solution: MAX_STEPS_EXCEEDED if x has NaN or infinity, otherwise NaN."""
    return jnp.where(jnp.all(jnp.isfinite(x)), jnp.nan, MAX_STEPS_EXCEEDED)


def check_converged(solution: Solution, max_steps: int) -> None:
    """Raise UserError unless all examples of a solution are finite, with the number of those that are not."""
    finite = np.isfinite(np.asarray(solution.x)).reshape(len(solution.x), -1).all(1)
    if not finite.all():
        raise UserError(
            f"{(~finite).sum()} of {len(finite)} examples exceeded max_steps={max_steps} or diverged; allow more "
            "steps, larger tolerances or another method",
            "max_steps",
            "rtol",
            "atol",
            "method",
        )


def adaptive(
    rtol: float = 1e-5, atol: float = 1e-5, method: str = "tsit5", controller: str = "i", max_steps: int = 4096
) -> Callable[..., Solution]:
    """Return `solve_adaptive` as a sampler (sde, denoiser, x, keys) -> Solution; see there for arguments and errors."""
    check_options(IntegratorOptions(rtol, atol, method, controller, max_steps))
    return lambda sde, denoiser, x, keys: solve_adaptive(
        sde, denoiser, x, rtol, atol, method, controller=controller, max_steps=max_steps
    )
