"""The order of every solver, measured on Gaussian data against the closed form in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.sde import SDES, vp
from score_sde.solvers import (
    SOLVERS,
    ancestral,
    ddim,
    deis,
    dpm_solver_pp,
    dpm_solver_pp_sde,
    edm_stochastic,
    euler,
    euler_maruyama,
    exponential_sde,
    heun,
    predictor_corrector,
    reverse_diffusion,
    rk4,
    solve,
    stochastic_runge_kutta,
    time_grid,
    unipc,
)
from tests.solvers.gaussian import M, denoiser, error, flow_error
from tests.thinned import WITH_DENOISERS, thinned

DETERMINISTIC = {
    "euler": (euler(), 1),
    "heun": (heun(), 2),
    "rk4": (rk4(), 4),
    "ddim": (ddim(), 1),
    "dpm_solver_pp_1": (dpm_solver_pp(1), 1),
    "dpm_solver_pp_2m": (dpm_solver_pp(2), 2),
    "dpm_solver_pp_3m": (dpm_solver_pp(3), 3),
    "dpm_solver_pp_2s": (dpm_solver_pp(2, multistep=False), 2),
    "dpm_solver_pp_3s": (dpm_solver_pp(3, multistep=False), 3),
    "unipc_1": (unipc(1), 1),
    "unipc_2": (unipc(2), 2),
    "unipc_3": (unipc(3), 3),
    "deis_1": (deis(1), 1),
    "deis_2": (deis(2), 2),
    "deis_3": (deis(3), 3),
    "deis_3_in_t": (deis(3, variable="t"), 3),
}
STOCHASTIC = {
    "euler_maruyama": (euler_maruyama(), 1),
    "reverse_diffusion": (reverse_diffusion(), 1),
    "ancestral": (ancestral(), 1),
    "exponential_sde": (exponential_sde(), 1),
    "dpm_solver_pp_sde_1": (dpm_solver_pp_sde(1), 1),
    "dpm_solver_pp_sde_2": (dpm_solver_pp_sde(2), 2),
    "stochastic_runge_kutta": (stochastic_runge_kutta(), 2),
    "edm_stochastic": (edm_stochastic(s_churn=10.0), 2),
}


def slope(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


@pytest.mark.parametrize("name", thinned(DETERMINISTIC, "euler", "dpm_solver_pp_3s", "unipc_3"))
def test_orders_on_the_probability_flow(name, x64):
    solver, order = DETERMINISTIC[name]
    steps = np.array([32, 64, 128, 256, 512])
    errors = [flow_error(solver, vp(), time_grid(vp(), n, "log_snr")) for n in steps]
    assert slope(steps, errors) > order - 0.2


@pytest.mark.parametrize("name", thinned(STOCHASTIC, "euler_maruyama", "dpm_solver_pp_sde_2", "edm_stochastic"))
def test_weak_orders_on_the_reverse_sde(name, x64):
    """The moments are exact for the scheme: nothing is drawn."""
    solver, order = STOCHASTIC[name]
    steps = np.array([50, 100, 200, 400, 800])
    errors = [error(solver, vp(), time_grid(vp(), n, "quadratic")) for n in steps]
    assert slope(steps, errors) > order - 0.2


@pytest.mark.parametrize("make", [dpm_solver_pp, deis])
def test_a_plain_start_costs_an_order_and_the_corrected_one_does_not(make, x64):
    """From the middle of the process, where x0 changes from the first step on."""
    sde, steps = SDES["ve"](), np.array([32, 64, 128, 256, 512])
    t = 0.5
    assert 0.1 < sde.sigma(t) < 1.0

    def order(corrected):
        grids = [t + np.linspace(0, 1, n + 1) * (0.2 - t) for n in steps]
        return slope(steps, [flow_error(make(3, corrected_start=corrected), sde, times) for times in grids])

    assert order(True) > 2.8
    assert order(False) < 2.3


@pytest.mark.parametrize("process", thinned(("flow", "vp_cosine"), "flow"))
@pytest.mark.parametrize("name", ["dpm_solver_pp_3m", "dpm_solver_pp_3s", "unipc_3"])
def test_order_three_holds_from_zero_terminal_snr(name, process, x64):
    """From alpha = 0, where log-SNR is -inf."""
    sde, steps = SDES[process](), np.array([800, 1600, 3200])
    errors = [flow_error(DETERMINISTIC[name][0], sde, time_grid(sde, n, "quadratic")) for n in steps]
    assert slope(steps, errors) > 2.8


ORDERS = {
    "euler": 1,
    "heun": 2,
    "rk4": 4,
    "ddim": 1,
    "dpm_solver_pp": 2,
    "unipc": 3,
    "deis": 3,
    "euler_maruyama": 1,
    "reverse_diffusion": 1,
    "ancestral": 1,
    "exponential_sde": 1,
    "stochastic_runge_kutta": 2,
    "dpm_solver_pp_sde": 2,
    "edm_stochastic": 2,
}
NEEDS_SIGNAL = {
    "deis",
    "euler_maruyama",
    "reverse_diffusion",
    "exponential_sde",
    "stochastic_runge_kutta",
    "predictor_corrector",  # its default predictor is reverse_diffusion
}


def refuses(name, process):
    return name in NEEDS_SIGNAL and process in ("flow", "vp_cosine")


def run_all(name, process, counts):
    sde, solver = SDES[process](), SOLVERS[name]()
    if refuses(name, process):
        if name != "predictor_corrector":
            return
        solver = predictor_corrector("ancestral", "langevin")

    @jax.jit
    def all_counts(x, key):
        grids = [time_grid(sde, n, "karras") for n in counts] + [time_grid(sde, 2, "log_snr", "zero")]
        return [solve(solver, sde, denoiser(sde), x, times, key).x for times in grids]

    x = M + float(sde.sigma(sde.t_max)) * jnp.linspace(-1.0, 1.0, 3)[:, None]
    assert np.isfinite(all_counts(x, jax.random.key(0))).all()


@pytest.mark.parametrize(
    "name", thinned(WITH_DENOISERS, "heun", "deis", "unipc", "predictor_corrector", "annealed_langevin")
)
def test_every_solver_runs(name):
    run_all(name, "vp", (1, 3))


@pytest.mark.parametrize("process", ["flow", "vp_cosine"])
@pytest.mark.parametrize("name", sorted(NEEDS_SIGNAL))
def test_solvers_that_need_signal_refuse_zero_terminal_snr(name, process):
    sde = SDES[process]()
    with pytest.raises(ValueError, match="alpha reaches 0 there"):
        solve(SOLVERS[name](), sde, denoiser(sde), jnp.ones((2, 1)), time_grid(sde, 5), jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("process", SDES)
@pytest.mark.parametrize("name", WITH_DENOISERS)
def test_every_solver_converges_for_every_sde(name, process, x64):
    run_all(name, process, (1, 2, 3, 5))
    if name in ORDERS and not refuses(name, process):  # from 20 to 80 steps at least a factor 4^order / 2 nearer
        spacing, sde = "karras" if process == "edm" else "log_snr", SDES[process]()
        coarse, fine = (error(SOLVERS[name](), sde, time_grid(sde, n, spacing)) for n in (20, 80))
        assert fine < max(2 * coarse / 4 ** ORDERS[name], 1e-4)


def test_the_table_above_misses_no_solver():
    assert set(WITH_DENOISERS) - set(ORDERS) == {"langevin", "annealed_langevin", "predictor_corrector"}
