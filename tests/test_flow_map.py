"""Flow maps against closed forms: Gaussian data on every SDE, and a mixture in one dimension."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.analytic import gaussian_denoiser, gaussian_flow_map, mixture_denoiser, mixture_flow_map_1d
from score_sde.flow_map import angle as angle_of
from score_sde.flow_map import chord, diagonal, eulerian, jump, lagrangian, middle, progressive, t_from_angle
from score_sde.parameterization import Prediction, velocity_fn
from score_sde.sde import SDES, from_schedule, t_from_log_snr, time_derivative

MEAN, STD = 0.4, 0.6
MIXTURE = {"means": (-1.0, 0.5, 2.0), "stds": (0.2, 0.5, 0.1), "weights": (0.5, 0.2, 0.3)}
EXACT = 1e-9  # float64 through some hundred operations, and derivatives

trigonometric = from_schedule(jnp.cos, jnp.sin, 1e-3, float(np.pi / 2))
ALL = {name: make() for name, make in SDES.items()} | {"trigonometric": trigonometric}
pytestmark = pytest.mark.usefixtures("x64")
every_sde = pytest.mark.parametrize("sde", ALL.values(), ids=ALL)


def points(sde, n=6):
    """Points x_t with t after r, from log-SNR -4 to 4."""
    rng = np.random.default_rng(0)
    levels = np.sort(rng.uniform(-4, 4, (n, 2)), axis=1)
    t, r = (t_from_log_snr(sde, jnp.asarray(levels[:, i])) for i in range(2))
    x0, epsilon = MEAN + STD * rng.normal(size=(n, 3)), rng.normal(size=(n, 3))
    return sde.alpha(t)[:, None] * x0 + sde.sigma(t)[:, None] * epsilon, t, r


def gaussian(sde):
    return gaussian_flow_map(sde, MEAN, STD), gaussian_denoiser(sde, MEAN, STD)


def close(actual, expected, tolerance=EXACT):
    scale = 1 + np.abs(np.asarray(expected))
    np.testing.assert_array_less(np.abs(np.asarray(actual) - np.asarray(expected)) / scale, tolerance)


@every_sde
def test_the_gaussian_chord_pair(sde):
    """It passes through x and its image under the flow, and ends in the denoiser's pair as r -> t."""
    flow_map, denoiser = gaussian(sde)
    x, t, r = points(sde)
    pair = flow_map(x, t, r)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    close(alpha * pair.x0 + sigma * pair.epsilon, x)
    tau_t, tau_r = (jnp.hypot(sde.alpha(s) * STD, sde.sigma(s))[:, None] for s in (t, r))
    phi = sde.alpha(r)[:, None] * MEAN + tau_r / tau_t * (x - alpha * MEAN)
    close(jump(flow_map, sde, x, t, r), phi)
    jax.tree.map(close, chord(sde, x, phi, t, r), pair)
    jax.tree.map(close, diagonal(flow_map)(x, t), denoiser(x, t))


@every_sde
def test_angles(sde):
    _, t, r = points(sde)
    close(t_from_angle(sde, angle_of(sde, t)), t)
    close(angle_of(sde, middle(sde, t, r)), 0.5 * (angle_of(sde, t) + angle_of(sde, r)))


@every_sde
def test_losses_and_their_gradients_are_zero_at_the_exact_map(sde):
    """Of a family of maps with mean and standard deviation as parameters; elsewhere the losses are not zero."""
    _, denoiser = gaussian(sde)
    x, t, r = points(sde)

    def losses(parameters):
        flow_map = gaussian_flow_map(sde, *parameters)
        return jnp.stack(
            [
                eulerian(flow_map, sde, x, t, r, denoiser(x, t)),
                eulerian(flow_map, sde, x, t, r, denoiser(x, t), diagonal(flow_map)(x, t)),
                lagrangian(flow_map, sde, x, t, r, denoiser),
                lagrangian(flow_map, sde, x, t, r, diagonal(flow_map)),
                progressive(flow_map, sde, x, t, r),
            ]
        )

    values, gradients = jax.jit(lambda p: (losses(p), jax.jacrev(lambda p: losses(p).sum(1))(p)))(
        jnp.array([MEAN, STD])
    )
    assert values.shape == (5, len(x))
    close(values, np.zeros_like(values), EXACT**2 * 100)
    close(gradients, np.zeros_like(gradients), 10 * EXACT)
    wrong = jax.jit(losses)(jnp.array([MEAN + 0.3, STD]))
    assert (np.asarray(wrong)[[0, 1, 2]] > 1e-4).all()  # the others hold for any Gaussian's own map and denoiser
    close(wrong[3:], np.zeros_like(wrong[3:]), EXACT)


def test_mean_flows_identity():
    """On the straight path E - X is the average velocity u, and u = v - (t - r) du/dt (Geng et al. 2025, eq. 6)."""
    sde = SDES["flow"]()
    flow_map, denoiser = gaussian(sde)
    x, t, r = points(sde)

    def u(x, t):
        pair = flow_map(x, t, r)
        return pair.epsilon - pair.x0

    v = velocity_fn(denoiser, sde)(x, t)
    value, derivative = jax.jvp(u, (x, t), (v, jnp.ones_like(t)))
    close(value, (jump(flow_map, sde, x, t, r) - x) / (r - t)[:, None])
    close(value, v - (t - r)[:, None] * derivative)


def test_the_mean_of_the_eulerian_loss_on_examples_has_the_gradient_of_the_exact_one():
    """The target (x0, eps) of an example is unbiased: at the exact map the mean gradient vanishes as draws grow."""
    sde = SDES["vp"]()
    rng = np.random.default_rng(1)
    n = 200_000
    x0, epsilon = MEAN + STD * rng.normal(size=(n, 1)), rng.normal(size=(n, 1))
    t, r = jnp.full(n, 0.6), jnp.full(n, 0.2)
    x = sde.alpha(t)[:, None] * x0 + sde.sigma(t)[:, None] * epsilon

    def loss(parameters):
        return eulerian(gaussian_flow_map(sde, *parameters), sde, x, t, r, Prediction(x0, epsilon))

    each = jax.jit(jax.jacfwd(loss))(jnp.array([MEAN, STD]))
    error = each.std(0) / np.sqrt(n)
    assert (np.abs(each.mean(0)) < 4 * error).all() and (error < 0.02).all()


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_a_mixtures_map_is_that_of_its_distribution_functions(name):
    """The identities hold with the exact denoiser of the mixture, which is computed on its own."""
    sde = ALL[name]
    flow_map, denoiser = (
        mixture_flow_map_1d(sde, **MIXTURE),
        mixture_denoiser(sde, [[m] for m in MIXTURE["means"]], MIXTURE["stds"], MIXTURE["weights"]),
    )
    rng = np.random.default_rng(2)
    t = t_from_log_snr(sde, jnp.linspace(-3.0, 0.0, 8))
    r = t_from_log_snr(sde, jnp.linspace(0.5, 2.0, 8))
    x0 = jnp.asarray(rng.choice([-1.0, 0.5, 2.0], size=(8, 1)))
    x = sde.alpha(t)[:, None] * x0 + sde.sigma(t)[:, None] * rng.uniform(-1.5, 1.5, (8, 1))
    losses = jax.jit(
        lambda x: (
            eulerian(flow_map, sde, x, t, r, denoiser(x, t)),
            lagrangian(flow_map, sde, x, t, r, denoiser),
            progressive(flow_map, sde, x, t, r),
        )
    )(x)
    for loss in losses:
        close(loss, np.zeros(8), EXACT)
    exact = jnp.log(
        jnp.abs(
            jax.vmap(jax.grad(lambda x, t, r: jump(flow_map, sde, x[None, None], t[None], r[None])[0, 0]))(
                x[:, 0], t, r
            )
        )
    )
    phi = jump(flow_map, sde, x, t, r)
    close(denoiser.log_prob(x, t), denoiser.log_prob(phi, r) + exact, 1e-8)  # the change of variables


def test_rates_of_angles_are_positive():
    for sde in ALL.values():
        _, t, _ = points(sde)
        assert (time_derivative(lambda t, sde=sde: angle_of(sde, t), t) > 0).all()
