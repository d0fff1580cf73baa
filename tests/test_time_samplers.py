"""The times of a training step: their law, their independence of the batch's split, and the variance they leave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from score_sde.errors import UserError
from score_sde.randomness import make_example_rngs
from score_sde.sde import SDES, edm, flow, log_snr, vp
from score_sde.time_samplers import TIME_SAMPLERS, check_time_sampler, uniform_quantiles
from tests.thinned import thinned

SDE, T_MIN = vp(), 1e-3


def first_times(name, sde, t_min, n=4000, **kwargs):
    """The first example's (time, factor) over n steps; all are independent."""
    sampler = TIME_SAMPLERS[name](**kwargs)
    return jax.vmap(lambda step: sampler(make_example_rngs(jax.random.key(0), step, jnp.arange(2), 16), sde, t_min))(
        jnp.arange(n)
    )


def test_a_draw_does_not_depend_on_how_the_batch_is_split():
    whole = make_example_rngs(jax.random.key(3), 17, jnp.arange(8), 8)
    for make in TIME_SAMPLERS.values():
        halves = [
            make()(make_example_rngs(jax.random.key(3), 17, jnp.arange(first, first + 4), 8), SDE, T_MIN)
            for first in (0, 4)
        ]
        for half, full in zip(zip(*halves, strict=True), make()(whole, SDE, T_MIN), strict=True):
            np.testing.assert_array_equal(np.concatenate(half), full)
    data = jax.random.key_data(jnp.concatenate([whole.time_keys, whole.noise_keys, whole.network_keys]))
    assert len({tuple(row) for row in np.asarray(data)}) == 24  # no key twice


LAWS = {  # each one's distribution function at the time t, from the definition
    "uniform": lambda t, sde: (t - T_MIN) / (sde.t_max - T_MIN),
    "stratified": lambda t, sde: (t - T_MIN) / (sde.t_max - T_MIN),
    "log_normal": lambda t, sde: cut(stats.norm(-1.2, 1.2).cdf, -log_snr(sde, t) / 2, sde),
    "logit_normal": lambda t, sde: cut(stats.norm(0, 1).cdf, np.log(t / (sde.t_max - t)), sde, logit=True),
    "importance": lambda t, sde: (
        (log_snr(sde, T_MIN) - log_snr(sde, t)) / (log_snr(sde, T_MIN) - log_snr(sde, sde.t_max))
    ),
}


def cut(cdf, value, sde, logit=False):
    low = np.log(T_MIN / (sde.t_max - T_MIN)) if logit else -log_snr(sde, T_MIN) / 2
    high = np.inf if logit else -log_snr(sde, sde.t_max) / 2
    return (cdf(value) - cdf(low)) / (cdf(high) - cdf(low))


@pytest.mark.parametrize("name", TIME_SAMPLERS)
@pytest.mark.parametrize("sde_name", thinned(SDES, "edm"))
def test_times_have_the_stated_law(name, sde_name, x64):
    """Kolmogorov and Smirnov's test of 4,000 independent times at 1 in 10,000, in float64, both of two examples."""
    sde = SDES[sde_name]()
    if name == "importance" and sde_name in ("flow", "vp_cosine"):
        with pytest.raises(UserError, match=r"infinite at t = 1\.0"):
            check_time_sampler(name, sde, T_MIN)
        return
    check_time_sampler(name, sde, T_MIN)
    times, _ = first_times(name, sde, T_MIN)
    assert times.min() >= T_MIN
    assert times.max() <= sde.t_max
    for example in np.asarray(times).T:
        assert stats.kstest(np.asarray(LAWS[name](example, sde)), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("stratified", [False, True])
def test_fractions_are_uniform(stratified):
    steps = jnp.arange(4000)
    found = jax.vmap(
        lambda n: uniform_quantiles(make_example_rngs(jax.random.key(0), n, jnp.arange(2), 16), stratified)
    )(steps)
    assert found.min() >= 0
    assert found.max() < 1
    for example in found.T:
        assert abs(example.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 4000)
        assert abs(example.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / 4000)


@pytest.mark.parametrize("name", ["log_normal", "logit_normal", "importance", "uniform"])
def test_stratified_draws_put_one_in_each_stratum(name):
    draw = make_example_rngs(jax.random.key(0), 5, jnp.arange(64), 64)
    np.testing.assert_array_equal(np.sort(np.floor(np.asarray(uniform_quantiles(draw, True)) * 64)), np.arange(64))
    times, _ = TIME_SAMPLERS[name](stratified=True)(draw, edm(), T_MIN)
    rank = np.asarray(LAWS[name](np.asarray(times, np.float64), edm()))
    assert np.abs(np.sort(rank) * 64 - np.arange(64) - 0.5).max() < 0.51


def integrand(t):
    """g^2 / sigma^2 times a smooth irreducible error, that of data N(0, 0.5^2): what likelihood training averages."""
    signal = 0.25 * SDE.alpha(t) ** 2
    return (SDE.diffusion(t) / SDE.sigma(t)) ** 2 * signal / (signal + SDE.sigma(t) ** 2)


def batch_means(name, f, batch=32, draws=4000, **kwargs):
    sampler = TIME_SAMPLERS[name](**kwargs)

    def mean(n):
        t, factor = sampler(make_example_rngs(jax.random.key(0), n, jnp.arange(batch), batch), SDE, T_MIN)
        return jnp.mean(factor * f(t))

    return np.asarray(jax.vmap(mean)(jnp.arange(draws)), np.float64)


def test_importance_times_keep_the_mean_and_lower_the_variance():
    t = np.geomspace(T_MIN, 1.0, 200_001)
    mean = np.trapezoid(integrand(t), t) / (1 - T_MIN)
    means = {name: batch_means(name, integrand) for name in ("uniform", "importance")}
    means["both"] = batch_means("importance", integrand, stratified=True)
    for name, values in means.items():
        assert abs(values.mean() - mean) < 4 * values.std() / np.sqrt(len(values)), name
    # The estimator's second moment is E_p[(f u / p)^2]; with p = uniform it is the integral of f^2.
    density = (SDE.diffusion(t) / SDE.sigma(t)) ** 2
    density = density / np.trapezoid(density, t)
    predicted = {
        "uniform": np.trapezoid(integrand(t) ** 2, t) / (1 - T_MIN) - mean**2,
        "importance": np.trapezoid(integrand(t) ** 2 / density, t) / (1 - T_MIN) ** 2 - mean**2,
    }
    for name, variance in predicted.items():
        kurtosis = stats.kurtosis(means[name], fisher=False)  # a variance's relative error is sqrt((kurtosis - 1) / n)
        assert abs(32 * means[name].var() / variance - 1) < 4 * np.sqrt((kurtosis - 1) / 4000)
    assert means["importance"].var() < means["uniform"].var() / 20
    assert means["both"].var() < means["importance"].var() / 20


def test_stratified_times_lower_the_variance_of_the_loss():
    """Of a batch's mean of a smooth f(t), here g^2 / sigma^2 from 0.05 on: from var(f) / B to (f(1) - f(0))^2 / (12
    B^2).

    The latter is Euler and Maclaurin's first term: the mean over a grid shifted by u is off by (u - 1/2) times
    (f(1) - f(0)) / B.
    """
    batch = 32

    def f(t):
        t = 0.05 + 0.95 * (t - T_MIN) / (1 - T_MIN)
        return (SDE.diffusion(t) / SDE.sigma(t)) ** 2

    ends = np.asarray(f(np.array([T_MIN, 1.0])))
    expected = {
        "uniform": f(np.linspace(T_MIN, 1, 10_001)).var() / batch,
        "stratified": (ends[1] - ends[0]) ** 2 / 12 / batch**2,
    }
    for name, variance in expected.items():  # a variance of 4000 draws is known to 4 sqrt(2 / 4000) = 9%; then 1 / B
        assert abs(batch_means(name, f).var() / variance - 1) < 0.09 + 1 / batch
    assert expected["stratified"] < expected["uniform"] / 3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: check_time_sampler("uniform", vp(), 2.0), "expected 0 <= t_min < 1.0"),
        (lambda: check_time_sampler("importance", vp(), 0.0), "infinite at t = 0.0.*set t_min or time_sampler"),
        (lambda: check_time_sampler("importance", flow(), 1e-3), "infinite at t = 1.0.*set sde or time_sampler"),
        (lambda: TIME_SAMPLERS["log_normal"](std=0.0), "log_normal: expected std > 0"),
        (lambda: TIME_SAMPLERS["logit_normal"](std=-1.0), "logit_normal: expected std > 0"),
    ],
)
def test_what_has_no_law_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()
