"""Runge-Kutta methods on the probability flow in t, dx/dt = alpha' x0 + sigma' eps."""

from score_sde.parameterization import velocity_fn
from score_sde.solvers.base import OneStepState, Solver


def euler() -> Solver:
    """Return Euler's method, order 1; 1 NFE per step."""

    def step(sde, denoiser, state, t, t_next, rng):
        return OneStepState(state.x + (t_next - t) * velocity_fn(denoiser, sde)(state.x, t))

    return Solver(init=OneStepState, step=step, nfe_per_step=1)


def heun() -> Solver:
    """Return Heun's method, order 2; 2 NFE per step (Karras et al. 2022, Algorithm 1)."""

    def step(sde, denoiser, state, t, t_next, rng):
        return OneStepState(heun_step(sde, denoiser, state.x, t, t_next))

    return Solver(init=OneStepState, step=step, nfe_per_step=2)


def heun_step(sde, denoiser, x, t, t_next):
    """Return x at t_next after one step of Heun's method from x at t."""
    velocity, dt = velocity_fn(denoiser, sde), t_next - t
    first = velocity(x, t)
    second = velocity(x + dt * first, t_next)
    return x + 0.5 * dt * (first + second)


def rk4() -> Solver:
    """Return the classical Runge-Kutta method, order 4; 4 NFE per step."""

    def step(sde, denoiser, state, t, t_next, rng):
        velocity, x, dt = velocity_fn(denoiser, sde), state.x, t_next - t
        middle = t + 0.5 * dt
        first = velocity(x, t)
        second = velocity(x + 0.5 * dt * first, middle)
        third = velocity(x + 0.5 * dt * second, middle)
        fourth = velocity(x + dt * third, t_next)
        return OneStepState(x + dt / 6 * (first + 2 * second + 2 * third + fourth))

    return Solver(init=OneStepState, step=step, nfe_per_step=4)
