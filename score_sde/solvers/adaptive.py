"""The probability flow with steps chosen by the error, each example's own, through Diffrax."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.conditioned import map_examples
from score_sde.errors import UserError, lookup
from score_sde.parameterization import Denoiser, velocity_fn
from score_sde.sde import SDE
from score_sde.solvers.base import MAX_STEPS_EXCEEDED, Solution, most_evaluations

FIRST_STEP = 0.01  # as a part of the whole way
ODE_METHODS: dict[str, Callable[[], diffrax.AbstractSolver]] = {
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
    "dopri8": diffrax.Dopri8,
    "heun": diffrax.Heun,
    "kvaerno3": diffrax.Kvaerno3,  # implicit, for stiff flows of few dimensions: a step solves with the Jacobian
    "kvaerno5": diffrax.Kvaerno5,
}
# Soderlind 2003, "Digital filters in adaptive time-stepping": I, H211PI, H312PID
CONTROLLERS: dict[str, dict[str, Any]] = {
    "i": {"pcoeff": 0.0, "icoeff": 1.0, "dcoeff": 0.0},
    "pi": {"pcoeff": 1 / 6, "icoeff": 1 / 6, "dcoeff": 0.0},
    "pid": {"pcoeff": 1 / 18, "icoeff": 1 / 9, "dcoeff": 1 / 18},
}


class IntegratorOptions(NamedTuple):
    """How an initial value problem is integrated."""

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
    """The probability flow from x at t0 to t1, in one compiled loop.

    Each example has its own steps, accepted by its own error (root mean square over its numbers); the loop runs until
    the last example arrives, and those that have arrived stand still.

    Args:
      sde: the forward process.
      denoiser: (x, t) -> Prediction, with t: (batch,); each example is evaluated with its row of the conditioning.
      x: (batch, *event) at t0.
      rtol, atol: the error of a step may be atol + rtol |x|.
      method: a key of `ODE_METHODS`.
      t0, t1: where it starts and ends; None: sde.t_max and sde.t_min. Ascending times encode.
      controller: how the next step follows from the errors, a key of `CONTROLLERS`.
      max_steps: steps an example may take, accepted and rejected.

    Returns:
      A Solution whose nfe is (batch,), exact; None of an implicit method, because Diffrax doesn't tell how many
      iterations its equations took.

    Raises:
      UserError: method or controller is unknown, a time is out of range, or an example took max_steps or met NaN.
        Under `jax.jit` such an example is NaN: `check_finite` looks at what comes out.
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
    """dy/dt = velocity(t, y) from t0 to t1, for any pytree y of one example.

    Returns:
      (y at t1, evaluations): NaN where the steps didn't suffice; evaluations is None of an implicit method.
    """
    method = ODE_METHODS[options.method]()
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
    arrived = result.result == diffrax.RESULTS.successful
    end = jax.tree.map(lambda path: jnp.where(arrived, path[-1], jnp.nan), result.ys)
    return end, _evaluations(method, result.stats["num_steps"])


def _evaluations(method, steps):
    """The stages of every step, and 1 at first where a step's first stage is the last of the step before."""
    if isinstance(method, diffrax.AbstractImplicitSolver):
        return None
    return method.tableau.fsal + steps * (method.tableau.num_stages - method.tableau.fsal)


def check_options(options: IntegratorOptions, where: str = "--config.sampling.kwargs") -> None:
    """Refuses an unknown method or controller, or a number out of range, before anything is compiled."""
    lookup("method", ODE_METHODS, options.method, f"{where}.method")
    lookup("controller", CONTROLLERS, options.controller, f"{where}.controller")
    if not (options.rtol > 0 and options.atol > 0 and options.max_steps >= 1):
        raise UserError(
            f"adaptive: need rtol > 0, atol > 0 and max_steps >= 1, got {options.rtol}, {options.atol} and {options.max_steps} "
            f"(set {where})"
        )


def check_ends(sde: SDE, t0: float, t1: float) -> None:
    """Refuses times outside the SDE's, or two that are the same."""
    if t0 == t1 or min(t0, t1) < 0 or max(t0, t1) > sde.t_max * (1 + 1e-6):
        raise UserError(f"times must differ and lie within [0, {sde.t_max}], got {t0} and {t1}")


def nonfinite_time(x: jax.Array) -> jax.Array:
    """MAX_STEPS_EXCEEDED if a number of x is NaN or infinite, else NaN: the `nonfinite_at` of a solution."""
    return jnp.where(jnp.all(jnp.isfinite(x)), jnp.nan, MAX_STEPS_EXCEEDED)


def check_converged(solution: Solution, max_steps: int) -> None:
    """Refuses a solution with examples that didn't arrive.

    Raises:
      UserError: with how many, and what may help.
    """
    finite = np.isfinite(np.asarray(solution.x)).reshape(len(solution.x), -1).all(1)
    if not finite.all():
        raise UserError(
            f"{(~finite).sum()} of {len(finite)} examples didn't arrive within max_steps={max_steps}, or met NaN on "
            "the way (set --config.sampling.kwargs.max_steps, larger tolerances, or another method)"
        )


def adaptive(
    rtol: float = 1e-5, atol: float = 1e-5, method: str = "tsit5", controller: str = "i", max_steps: int = 4096
) -> Callable[..., Solution]:
    """`solve_adaptive` as a sampler: (sde, denoiser, x, keys) -> Solution; its arguments and errors."""
    check_options(IntegratorOptions(rtol, atol, method, controller, max_steps))
    return lambda sde, denoiser, x, keys: solve_adaptive(
        sde, denoiser, x, rtol, atol, method, controller=controller, max_steps=max_steps
    )
