"""Solvers that choose their own steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.sde import SDES, edm, flow, vp
from score_sde.solvers import ODE_METHODS, check_finite, solve_adaptive, solve_adaptive_sde
from tests.solvers.gaussian import denoiser, marginal
from tests.thinned import thinned


def exact(sde, x, t0, t1):
    (mean_0, std_0), (mean_1, std_1) = marginal(sde, t0), marginal(sde, t1)
    return mean_1 + std_1 / std_0 * (x - mean_0)


def counting(sde, calls):
    data = denoiser(sde)

    def denoise(x, t):
        jax.debug.callback(lambda _: calls.append(1), x)
        return data(x, t)

    return denoise


@pytest.mark.parametrize("method", thinned(ODE_METHODS, "tsit5", "kvaerno3"))
def test_every_method_meets_its_tolerance_and_counts_its_evaluations(method, x64):
    sde, x, calls = vp(), jnp.array([[0.5, -1.0]]), []
    solution = solve_adaptive(sde, counting(sde, calls), x, 1e-6, 1e-6, method)
    jax.effects_barrier()
    assert np.abs(solution.x - exact(sde, x, 1.0, sde.t_min)).max() < 1e-5  # errors of some tens of steps add up
    if method.startswith("kvaerno"):
        assert solution.nfe is None
    else:
        assert solution.nfe.tolist() == [len(calls)]


@pytest.mark.parametrize("controller", thinned(("i", "pi", "pid"), "pi"))
@pytest.mark.parametrize("name", thinned(("edm", "flow"), "flow"))
def test_controllers_and_processes(name, controller, x64):
    sde = SDES[name]()
    x = float(sde.sigma(sde.t_max)) * jnp.linspace(-2.0, 2.0, 6)[:, None]
    run = jax.jit(lambda x: solve_adaptive(sde, denoiser(sde), x, 1e-6, 1e-6, controller=controller))
    solution = run(x)
    assert np.abs(solution.x - exact(sde, x, sde.t_max, sde.t_min)).max() < 2e-5
    assert solution.nfe.shape == (6,) and len(set(solution.nfe.tolist())) > 1  # each example its own steps


@pytest.mark.slow
def test_encoding_is_the_way_back(x64):
    sde = vp()
    x = jnp.linspace(-2.0, 2.0, 3)[:, None]
    latent = solve_adaptive(sde, denoiser(sde), x, t0=sde.t_min, t1=sde.t_max).x
    np.testing.assert_allclose(latent, exact(sde, x, sde.t_min, sde.t_max), atol=1e-4)
    np.testing.assert_allclose(solve_adaptive(sde, denoiser(sde), latent).x, x, atol=1e-4)


def test_an_example_does_not_depend_on_its_batch(x64):
    sde = vp()
    x = jnp.linspace(-2.0, 2.0, 4)[:, None]
    run = jax.jit(lambda x: solve_adaptive(sde, denoiser(sde), x))
    whole, part = run(x), run(x[1:3])
    np.testing.assert_allclose(part.x, whole.x[1:3], rtol=1e-12)
    np.testing.assert_array_equal(part.nfe, whole.nfe[1:3])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "edm"])
def test_the_adaptive_sde_solver_draws_from_the_data(name):
    """In 16 dimensions; the tolerance of 2% a step is larger than the sampling error of 0.4%."""
    sde, n = SDES[name](), 2000
    x = sde.sigma(sde.t_max) * jax.random.normal(jax.random.key(0), (n, 16))
    run = jax.jit(lambda x, key: solve_adaptive_sde(sde, denoiser(sde), x, key))
    solution = run(x, jax.random.key(1))
    mean, std = marginal(sde, sde.t_min)
    assert abs(float(solution.x.mean()) - mean) < 0.02
    assert abs(float(solution.x.std()) / std - 1) < 0.02
    assert solution.nfe.min() < solution.nfe.max() < 2000
    check_finite(solution)


@pytest.mark.slow
def test_a_rejected_step_stays_on_its_path():
    """A finer tolerance refines the same Brownian path: results converge to one, sample by sample."""
    sde = vp()
    x = jax.random.normal(jax.random.key(0), (20, 16))

    def end(tolerance):
        run = jax.jit(lambda x, key: solve_adaptive_sde(sde, denoiser(sde), x, key, rtol=tolerance, atol=tolerance).x)
        return run(x, jax.random.key(1))

    ends = [end(tolerance) for tolerance in (0.1, 0.02, 0.004)]
    coarse, fine = (float(jnp.sqrt(jnp.mean((end - ends[2]) ** 2))) for end in ends[:2])
    assert fine < 0.6 * coarse


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: solve_adaptive(vp(), denoiser(vp()), x, max_steps=3), "max_steps=3"),
        (lambda x: solve_adaptive(vp(), denoiser(vp()), x, method="tsit"), "Did you mean 'tsit5'"),
        (lambda x: solve_adaptive(vp(), denoiser(vp()), x, controller="p"), "unknown controller"),
        (lambda x: solve_adaptive(vp(), denoiser(vp()), x, rtol=0.0), "rtol > 0"),
        (lambda x: solve_adaptive(vp(), denoiser(vp()), x, t0=2.0), r"within \[0, 1.0\]"),
        (lambda x: solve_adaptive_sde(vp(), denoiser(vp()), x, jax.random.key(0), max_steps=3), "max_steps=3"),
        (lambda x: solve_adaptive_sde(vp(), denoiser(vp()), x, jax.random.key(0), atol=0.0), "atol > 0"),
        (lambda x: solve_adaptive_sde(flow(), denoiser(flow()), x, jax.random.key(0)), "alpha reaches 0"),
    ],
)
def test_wrong_arguments_are_refused(call, words):
    with pytest.raises(UserError, match=words):
        call(jnp.ones((2, 1)))


def test_what_did_not_arrive_is_nan_under_jit():
    run = jax.jit(lambda x: solve_adaptive(edm(), denoiser(edm()), x, max_steps=3))
    solution = run(jnp.ones((2, 1)))
    assert np.isnan(solution.x).all()
    with pytest.raises(UserError, match="NaN"):
        check_finite(solution)


def test_too_few_steps_under_jit_are_said_by_name():
    sde = vp()
    solution = jax.jit(lambda x: solve_adaptive(sde, denoiser(sde), x, max_steps=2))(jnp.ones((2, 2)))
    with pytest.raises(UserError, match="exceeded max_steps"):
        check_finite(solution)
