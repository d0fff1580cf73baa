"""Step by step the samplers of k-diffusion, on an exact mixture in float64, from the same x and the same noise."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks.peer_samplers import given_noise, k_diffusion_sampling, x0
from score_sde.sde import edm
from score_sde.solvers import (
    ancestral,
    ddim,
    dpm_solver_pp,
    dpm_solver_pp_sde,
    edm_stochastic,
    euler,
    heun,
    solve,
    time_grid,
)
from tests import mixtures

pytestmark = pytest.mark.peers
SDE, STEPS = edm(), 12
RNG = np.random.default_rng(0)
X, NOISE = 80 * RNG.standard_normal((5, 2)), RNG.standard_normal((STEPS, 5, 2))


def model(x, sigma, **kwargs):
    return x0(x, 1.0, float(sigma[0]))


def theirs(name, times, monkeypatch, noise_sampler=True, **kwargs):
    """Every x that the callback sees, and the last."""
    seen, noise = [], given_noise(NOISE)
    monkeypatch.setattr(torch, "randn_like", noise)
    if noise_sampler:
        kwargs["noise_sampler"] = noise
    function = getattr(k_diffusion_sampling(), name)
    sigmas = torch.tensor(times, dtype=torch.float64)
    last = function(
        model, torch.tensor(X), sigmas, disable=True, callback=lambda step: seen.append(step["x"]), **kwargs
    )
    return np.stack([x.numpy() for x in [*seen, last]])


def ours(solver, times):
    noise = jnp.asarray(NOISE)
    return solve(solver, SDE, mixtures.denoiser(SDE), jnp.asarray(X), times, noise=noise, trajectory=True).trajectory


@pytest.mark.parametrize("end", ["t_min", "zero"])
@pytest.mark.parametrize(
    ("solvers", "name", "kwargs"),
    [
        ((euler(), ddim()), "sample_euler", {}),
        ((heun(), edm_stochastic()), "sample_heun", {}),
        ((ancestral(), ddim(eta=1.0), dpm_solver_pp_sde(1)), "sample_euler_ancestral", {"noise_sampler": True}),
        ((dpm_solver_pp(2),), "sample_dpmpp_2m", {}),
        ((dpm_solver_pp(2, multistep=False),), "sample_dpmpp_2s_ancestral", {"noise_sampler": True, "eta": 0.0}),
        ((dpm_solver_pp_sde(2),), "sample_dpmpp_2m_sde", {"noise_sampler": True}),
    ],
)
def test_samplers_agree_at_every_step(solvers, name, kwargs, end, x64, monkeypatch):
    times = time_grid(SDE, STEPS, "karras", end)
    expected = theirs(name, times, monkeypatch, **({"noise_sampler": False} | kwargs))
    for solver in solvers:
        np.testing.assert_allclose(ours(solver, times), expected, rtol=1e-8, atol=1e-8)


def test_churn_agrees(x64, monkeypatch):
    """Their gamma is s_churn / N; on a grid of N steps from sigma_max to sigma_min so is ours."""
    options = {"s_churn": 3.0, "s_noise": 1.007}
    times = time_grid(SDE, STEPS, "karras")
    expected = theirs("sample_heun", times, monkeypatch, noise_sampler=False, s_tmin=0.05, s_tmax=50.0, **options)
    result = ours(edm_stochastic(s_min=0.05, s_max=50.0, **options), times)
    np.testing.assert_allclose(result[-1], expected[-1], rtol=1e-8, atol=1e-8)


def test_their_karras_grid_is_ours():
    expected = k_diffusion_sampling().get_sigmas_karras(STEPS, 0.002, 80.0).numpy()
    np.testing.assert_allclose(time_grid(SDE, STEPS, "karras", "zero"), expected, rtol=1e-5)
