"""Comparison with the schedulers of diffusers, step by step on an exact mixture, from the same x and noise.

Most of their steps compute in float32, hence the tolerance of 1e-4 of the scale of x; DDPM and DDIM keep float64.
"""

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks.peer_samplers import given_noise, run_scheduler, x0
from score_sde import ddpm
from score_sde.sde import edm, vp
from score_sde.solvers import (
    ancestral,
    ddim,
    deis,
    dpm_solver_pp,
    dpm_solver_pp_sde,
    heun,
    rk4,
    solve,
    time_grid,
    unipc,
)
from score_sde.solvers.exponential import half_log_snr, moments
from tests import mixtures

pytestmark = pytest.mark.peers
SDE, STEPS = vp(), 12
PLAIN = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}  # no lower orders at the end
RNG = np.random.default_rng(0)
X, NOISE = RNG.standard_normal((5, 2)), RNG.standard_normal((STEPS, 5, 2))


def levels(times):
    """sigma / alpha, what their schedulers call sigma."""
    times = jnp.asarray(times)
    return np.asarray(SDE.sigma(times) / SDE.alpha(times), np.float64)


def run(scheduler, times, **how):
    return run_scheduler(scheduler, levels(times), X, **how)


def ours(solver, times, noise=None):
    denoiser = mixtures.denoiser(SDE)
    noise = None if noise is None else jnp.asarray(noise)
    return solve(solver, SDE, denoiser, jnp.asarray(X), times, noise=noise, trajectory=True).trajectory


@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver_multistep(order, x64):
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="sample", solver_order=order, **PLAIN)
    times = time_grid(SDE, STEPS, "log_snr")
    np.testing.assert_allclose(ours(dpm_solver_pp(order, reach=np.inf), times), run(scheduler, times), atol=1e-4)


def test_their_third_order_has_half_of_the_second_difference(x64):
    """So theirs is of order 2: in one step ours is further by (1/2 - (h - 1 + e^-h) / h^2) alpha' D2.

    D2 = h^2 times the second divided difference is half of h^2 x0'', and the integral of the Taylor polynomial's last
    term is psi_2 D2 with psi_2 = 1 - 2 / h + 2 (1 - e^-h) / h^2, twice their coefficient. (DPM-Solver's own singlestep
    code has the 2.)
    """
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="sample", solver_order=3, **PLAIN)
    times = time_grid(SDE, 8, "log_snr")[2:6]
    expected, result = run(scheduler, times), ours(dpm_solver_pp(3, corrected_start=False, reach=np.inf), times)
    np.testing.assert_allclose(result[:3], expected[:3], atol=1e-6)
    places = half_log_snr(SDE, jnp.asarray(times))
    x0s = [mixtures.denoiser(SDE)(result[n], times[n]).x0 for n in range(3)]
    h = places[3] - places[2]
    first, second = ((x0s[n + 1] - x0s[n]) / (places[n + 1] - places[n]) for n in (1, 0))
    d2 = h**2 * (first - second) / (places[2] - places[0])
    missing = 0.5 * moments(h, 3)[2] * SDE.alpha(times[3]) * d2
    assert np.abs(missing).max() > 1e-3
    np.testing.assert_allclose(result[3] - expected[3], missing, atol=1e-6)


def test_so_theirs_measures_order_two_and_ours_three(x64):
    """On the mixture, from the middle of the process, against RK4 on a fine grid."""

    def grid(n):
        return time_grid(SDE, 2 * n, "log_snr")[n:]

    steps = np.array([16, 32, 64, 128])
    truth = ours(rk4(), grid(1024))[-1]
    kind = diffusers.DPMSolverMultistepScheduler
    theirs = [run(kind(prediction_type="sample", solver_order=3, **PLAIN), grid(n))[-1] for n in steps]
    three = [ours(dpm_solver_pp(3), grid(n))[-1] for n in steps]
    errors = [[np.abs(x - truth).max() for x in ends] for ends in (theirs, three)]
    slopes = [-np.polyfit(np.log(steps), np.log(error), 1)[0] for error in errors]
    assert slopes[0] < 2.3, slopes
    assert slopes[1] > 2.8, slopes


def test_sde_dpm_solver(x64, monkeypatch):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="sample", solver_order=2, **PLAIN, algorithm_type="sde-dpmsolver++"
    )
    times = time_grid(SDE, STEPS, "log_snr")
    monkeypatch.setattr(diffusers.schedulers.scheduling_dpmsolver_multistep, "randn_tensor", given_noise(NOISE))
    np.testing.assert_allclose(ours(dpm_solver_pp_sde(2), times, NOISE), run(scheduler, times), atol=1e-4)


@pytest.mark.parametrize("order", [2, 3])
def test_dpm_solver_singlestep(order, x64):
    """Their steps stop at the nodes within ours: at halves, or at thirds, of each step in log-SNR."""
    scheduler = diffusers.DPMSolverSinglestepScheduler(prediction_type="sample", solver_order=order, **PLAIN)
    fine = time_grid(SDE, STEPS, "log_snr")
    result = ours(dpm_solver_pp(order, multistep=False), fine[::order])
    np.testing.assert_allclose(result, run(scheduler, fine)[::order], atol=1e-4)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order, variant, x64):
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="sample", solver_order=order, **PLAIN, solver_type=variant
    )
    times = time_grid(SDE, STEPS, "log_snr")
    np.testing.assert_allclose(ours(unipc(order, variant, reach=np.inf), times), run(scheduler, times), atol=1e-4)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order, x64):
    scheduler = diffusers.DEISMultistepScheduler(prediction_type="sample", solver_order=order, lower_order_final=False)
    times = time_grid(SDE, STEPS, "karras")
    np.testing.assert_allclose(
        ours(deis(order, corrected_start=False, reach=np.inf), times), run(scheduler, times), atol=1e-4
    )


def test_our_reach_stands_for_their_lower_orders_at_the_end(x64):
    """Of five steps that grow towards the data: the same law to a few percent, and far from that of full order."""
    times = time_grid(SDE, 5, "quadratic")
    options = {"prediction_type": "sample", "solver_order": 3, "final_sigmas_type": "sigma_min"}
    theirs = run(diffusers.UniPCMultistepScheduler(**options, lower_order_final=True), times)[-1]
    within, far = (ours(unipc(3, reach=reach), times)[-1] for reach in (3.0, np.inf))
    assert np.abs(within - theirs).max() < 0.1 < np.abs(far - theirs).max()


def test_euler(x64):
    """On x / alpha in sigma / alpha, where Euler's step is DDIM's."""
    times = time_grid(SDE, STEPS, "karras")
    path = run(diffusers.EulerDiscreteScheduler(prediction_type="sample"), times, scaled=False)
    np.testing.assert_allclose(ours(ddim(), times), path, atol=1e-4)


def test_heun(x64):
    """Theirs walks sigma; ours, on the SDE whose t is sigma, is the same."""
    sde = edm()
    times = time_grid(sde, STEPS, "karras")
    scheduler = diffusers.HeunDiscreteScheduler(prediction_type="epsilon")
    twice = [times[0], *np.repeat(times[1:-1], 2), times[-1]]  # their step to each level is two calls
    x = X * 80 / np.sqrt(1 + 80**2)
    path = run_scheduler(scheduler, twice, x, scaled=False, epsilon=True, num_steps=STEPS)
    result = solve(heun(), sde, mixtures.denoiser(sde), jnp.asarray(80 * X), times[:-1]).x
    np.testing.assert_allclose(result / np.sqrt(1 + times[-2] ** 2), path[2 * (STEPS - 1)], atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "eta", "solver"),
    [
        (diffusers.DDPMScheduler, None, ancestral()),
        (diffusers.DDIMScheduler, 0.0, ddim()),
        (diffusers.DDIMScheduler, 0.5, ddim(0.5)),
        (diffusers.DDIMScheduler, 1.0, ddim(1.0)),
    ],
)
def test_ddpm_and_ddim_on_the_chain(kind, eta, solver, x64, monkeypatch):
    """10 of the chain's 1,000 steps, 900 down to 0, in float64: alphas_cumprod is replaced by our own table."""
    scheduler = kind(prediction_type="sample", clip_sample=False, num_train_timesteps=1000)
    scheduler.set_timesteps(10)
    chain = ddpm.linear_schedule()
    table = np.asarray(chain.alphas_cumprod, np.float64)
    scheduler.alphas_cumprod = torch.tensor(table)
    module = {"DDPMScheduler": "scheduling_ddpm", "DDIMScheduler": "scheduling_ddim"}[kind.__name__]
    monkeypatch.setattr(getattr(diffusers.schedulers, module), "randn_tensor", given_noise(NOISE))
    steps = scheduler.timesteps.tolist()
    assert steps == list(range(900, -1, -100))
    x, path = torch.tensor(X), [X]
    for n in steps[:-1]:
        alpha, sigma = np.sqrt(table[n]), np.sqrt(1 - table[n])
        options = {} if eta is None else {"eta": eta}
        x = scheduler.step(x0(x, alpha, sigma), n, x, **options).prev_sample
        path.append(x.numpy())
    sde = ddpm.to_sde(chain)
    result = solve(
        solver,
        sde,
        mixtures.denoiser(sde),
        jnp.asarray(X),
        np.array(steps) / 999,
        noise=jnp.asarray(NOISE[:9]),
        trajectory=True,
    ).trajectory
    np.testing.assert_allclose(result, np.stack(path), rtol=1e-8, atol=1e-8)
