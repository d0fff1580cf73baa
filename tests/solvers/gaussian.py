"""Data N(M, S^2), on which any solver that is affine in (x, noise) is measured in closed form."""

from functools import partial

from score_sde import analytic

M, S = 0.4, 0.6

denoiser = partial(analytic.gaussian_denoiser, mean=M, std=S)
moments = partial(analytic.solver_moments, mean=M, std=S)
error = partial(analytic.solver_error, mean=M, std=S)
flow_error = partial(analytic.flow_error, mean=M, std=S)


def marginal(sde, t):
    """Mean and standard deviation of x_t."""
    return analytic.gaussian_marginal(sde, M, S, t)
