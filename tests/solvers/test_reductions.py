"""One solver is another in a limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import ddpm
from score_sde.sde import SDES, vp
from score_sde.solvers import (
    ancestral,
    ddim,
    deis,
    dpm_solver_pp,
    dpm_solver_pp_sde,
    edm_stochastic,
    euler,
    heun,
    reverse_diffusion,
    rk4,
    snap_to_timesteps,
    solve,
    time_grid,
    unipc,
)
from tests import mixtures
from tests.solvers.gaussian import denoiser
from tests.thinned import thinned


def close(first, second, sde, times, denoise=denoiser, noise=None, rtol=1e-10):
    x = float(sde.sigma(sde.t_max)) * jnp.linspace(-2.0, 2.0, 10).reshape(5, 2)
    if noise is not None:
        noise = jax.random.normal(jax.random.key(0), (len(times) - 1, *x.shape))
    run = jax.jit(lambda x: [solve(solver, sde, denoise(sde), x, times, noise=noise).x for solver in (first, second)])
    ends = run(x)
    np.testing.assert_allclose(*ends, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", thinned(SDES, "vp", "flow"))
def test_ddim_with_eta_one_is_ancestral_sampling_and_the_sde_solver_of_order_one(name, x64):
    sde = SDES[name]()
    times = time_grid(sde, 7, "karras")
    close(ddim(eta=1.0), ancestral(), sde, times, noise=True)
    close(dpm_solver_pp_sde(1), ancestral(), sde, times, noise=True, rtol=1e-6)  # e^-20 stands for alpha = 0


@pytest.mark.parametrize("name", thinned(SDES, "vp", "flow"))
def test_first_orders_are_ddim(name, x64):
    sde = SDES[name]()
    times = time_grid(sde, 7, "karras")
    for solver in (dpm_solver_pp(1), dpm_solver_pp(1, multistep=False)):
        close(ddim(), solver, sde, times, rtol=1e-7)
    if name not in ("flow", "vp_cosine"):
        close(ddim(), deis(1), sde, times)
    if name in ("edm", "flow"):  # x is linear in t along constant (x0, eps)
        close(ddim(), euler(), sde, times)


def test_edm_without_churn_is_heun(x64):
    for name in ("edm", "vp", "flow"):
        sde = SDES[name]()
        close(edm_stochastic(s_churn=0.0), heun(), sde, time_grid(sde, 7, "karras"))


def test_churn_between_levels_where_none_is_allowed_is_heun(x64):
    sde = SDES["edm"]()
    close(edm_stochastic(s_churn=5.0, s_min=100.0), heun(), sde, time_grid(sde, 7, "karras"), noise=True)


def test_edms_gamma_is_the_papers_on_its_grid(x64):
    """x_hat = x + sqrt(t_hat^2 - t^2) s_noise z, t_hat = min(t (1 + s_churn / N), 80), then Heun (Algorithm 2)."""
    sde, churn, s_noise = SDES["edm"](), 2.0, 1.007
    times = time_grid(sde, 10, "karras")
    z = jax.random.normal(jax.random.key(0), (10, 5, 1))
    x = 80 * jnp.linspace(-2.0, 2.0, 5)[:, None]
    result = solve(edm_stochastic(churn, s_noise=s_noise), sde, denoiser(sde), x, times, noise=z)
    for n in range(10):
        t_hat = min(times[n] * (1 + churn / 10), sde.t_max)
        x_hat = x + np.sqrt(t_hat**2 - times[n] ** 2) * s_noise * z[n]
        d = (x_hat - denoiser(sde)(x_hat, t_hat).x0) / t_hat
        euler_x = x_hat + (times[n + 1] - t_hat) * d
        d_next = (euler_x - denoiser(sde)(euler_x, times[n + 1]).x0) / times[n + 1]
        x = x_hat + (times[n + 1] - t_hat) * 0.5 * (d + d_next)
    np.testing.assert_allclose(result.x, x, rtol=1e-9)


def test_unipc_of_order_one_is_the_trapezoid_in_signal_to_noise(x64):
    """x / sigma is corrected by the mean of both ends' predictions, times the change of alpha / sigma."""
    sde = SDES["ve"]()
    times = np.array([0.9, 0.7, 0.5])
    x = jnp.ones((1, 1))
    result = solve(unipc(1), sde, denoiser(sde), x, times).x
    t0, t1, t2 = times
    r = [1 / sde.sigma(t) for t in times]
    m0 = denoiser(sde)(x, t0).x0
    x1 = sde.sigma(t1) * (r[0] * x + (r[1] - r[0]) * m0)
    m1 = denoiser(sde)(x1, t1).x0
    x1 = sde.sigma(t1) * (r[0] * x + (r[1] - r[0]) * 0.5 * (m0 + m1))
    x2 = sde.sigma(t2) * (r[1] * x1 + (r[2] - r[1]) * m1)
    np.testing.assert_allclose(result, x2, rtol=1e-10)


def test_chain_and_continuous_vp_agree(x64):
    """The chain's SDE at its own steps, and vp at the same: closer as the chain is longer (tests/test_ddpm.py: slope
    -1)."""
    differences = []
    for length in (500, 1000, 2000):
        schedule = ddpm.linear_schedule(length, 0.1 / length, 20.0 / length)
        chain = ddpm.to_sde(schedule)
        x = jnp.linspace(-2.0, 2.0, 5)[:, None]
        times = snap_to_timesteps(np.linspace(1.0, 0.02, 51), length)
        results = [solve(ddim(), sde, denoiser(sde), x, times).x for sde in (chain, vp())]
        differences.append(float(np.abs(results[0] - results[1]).max()))
    assert abs(np.polyfit(np.log([500, 1000, 2000]), np.log(differences), 1)[0] + 1) < 0.1
    assert differences[1] < 2e-3


def test_reverse_diffusion_is_the_published_step_of_vp_and_ve():
    """score_sde's x - f + G^2 score + G z, with the chain's sqrt(1 - beta) and beta (vp) or sigma differences (ve)."""
    x, z = jnp.linspace(-1.0, 1.0, 4)[:, None], jax.random.normal(jax.random.key(0), (1, 4, 1))
    t, t_next = 0.51, 0.5
    for name in ("vp", "ve"):
        sde = SDES[name]()
        score = -denoiser(sde)(x, t).epsilon / sde.sigma(t)
        if name == "vp":
            kept = sde.alpha(t) / sde.alpha(t_next)  # sqrt(1 - beta_i)
            f, variance = kept * x - x, 1 - kept**2
        else:
            f, variance = 0.0, sde.sigma(t) ** 2 - sde.sigma(t_next) ** 2
        expected = x - f + variance * score + jnp.sqrt(variance) * z[0]
        result = solve(reverse_diffusion(), sde, denoiser(sde), x, np.array([t, t_next]), noise=z).x
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", thinned(("vp", "edm", "flow"), "vp"))
def test_all_deterministic_solvers_meet_on_a_mixture(name, x64):
    """Different formulas, one flow: 600 steps of each end within 1e-3 of 300 steps of RK4."""
    sde = SDES[name]()
    start = 0.98 if name == "flow" else sde.t_max  # the tests' mixture divides by alpha
    times = start * time_grid(SDES["edm"](), 600, "karras") / 80.0 if name == "edm" else None
    if times is None:
        times = np.concatenate([[start], (grid := time_grid(sde, 600, "log_snr"))[grid < start]])
    x = float(sde.sigma(start)) * jax.random.normal(jax.random.key(0), (8, 2))
    truth = solve(rk4(), sde, mixtures.denoiser(sde), x, times).x
    for solver in (heun(), dpm_solver_pp(3), unipc(3), deis(3)):
        result = solve(solver, sde, mixtures.denoiser(sde), x, times).x
        assert np.abs(result - truth).max() < 1e-3
