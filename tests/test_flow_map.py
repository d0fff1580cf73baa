"""Flow maps against closed forms: Gaussian data on every SDE, and a mixture in one dimension."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_sde.analytic import gaussian_denoiser, gaussian_flow_map, mixture_denoiser, mixture_flow_map_1d
from score_sde.errors import UserError
from score_sde.evaluation.options import BenchmarkOptions
from score_sde.evaluation.solver_benchmark import deterministic_table
from score_sde.experiment import initializer
from score_sde.flow_map import (
    _kappa,
    angle_grid,
    chord,
    denoising,
    diagonal,
    eulerian,
    jump,
    lagrangian,
    log_likelihood,
    log_prob_change,
    middle,
    progressive,
    t_from_angle,
    velocity_divergence,
)
from score_sde.flow_map import angle as angle_of
from score_sde.model import DiffusionModel
from score_sde.models import create
from score_sde.parameterization import DivergencePrediction, Prediction, velocity_fn
from score_sde.planning.flops import count_flops
from score_sde.randomness import make_example_rngs, noise
from score_sde.sampling import sample
from score_sde.sde import SDES, from_schedule, lift, prior_log_prob, t_from_log_snr, time_derivative
from score_sde.solvers import ddim, flow_map_steps, solve, time_grid
from score_sde.thresholding import clip_x0
from score_sde.time_samplers import uniform
from score_sde.training.loss import FLOW_MAP_OBJECTIVES, Teacher, flow_map_loss
from tests.cli import finish, start
from tests.thinned import thinned

MEAN, STD = 0.4, 0.6
MIXTURE = {"means": (-1.0, 0.5, 2.0), "stds": (0.2, 0.5, 0.1), "weights": (0.5, 0.2, 0.3)}
UNET = {"channels": 8, "multipliers": (1,), "num_res_blocks": 1, "attention_resolutions": ()}
EXACT = 1e-9  # float64 through some hundred operations, and derivatives

trigonometric = from_schedule(jnp.cos, jnp.sin, 1e-3, float(np.pi / 2))
ALL = {name: make() for name, make in SDES.items()} | {"trigonometric": trigonometric}
pytestmark = pytest.mark.usefixtures("x64")
every_sde = pytest.mark.parametrize("name", thinned(ALL, "vp", "flow"))


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
def test_the_gaussian_chord_pair(name):
    """It passes through x and its image under the flow, and ends in the denoiser's pair as r -> t."""
    sde = ALL[name]
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
def test_angles(name):
    sde = ALL[name]
    _, t, r = points(sde)
    close(t_from_angle(sde, angle_of(sde, t)), t)
    close(angle_of(sde, middle(sde, t, r)), 0.5 * (angle_of(sde, t) + angle_of(sde, r)))


def test_gradients_do_not_depend_on_the_sde():
    """At the same angles, and with the same x / sqrt(alpha^2 + sigma^2), every SDE has the losses of vp."""
    theta = jnp.array([[1.5, 0.3], [1.2, 0.9], [0.8, 0.2]])
    x_hat = jnp.linspace(-1, 1, 9).reshape(3, 3)
    wrong = jnp.array([MEAN + 0.3, 1.2 * STD])
    found = []
    for name in ("vp", "flow", "edm"):
        sde = ALL[name]
        t, r = (t_from_angle(sde, theta[:, i]) for i in range(2))
        x = x_hat * jnp.hypot(sde.alpha(t), sde.sigma(t))[:, None]

        def losses(parameters, sde=sde, x=x, t=t, r=r):
            flow_map, denoiser = gaussian_flow_map(sde, *parameters), gaussian_denoiser(sde, MEAN, STD)
            return jnp.stack(
                [
                    eulerian(flow_map, sde, x, t, r, denoiser(x, t)),
                    lagrangian(flow_map, sde, x, t, r, denoiser),
                    progressive(flow_map, sde, x, t, r),
                ]
            )

        found.append(jax.jit(lambda p, losses=losses: (losses(p), jax.jacrev(losses)(p)))(wrong))
    for others in found[1:]:
        jax.tree.map(close, others, found[0])


@every_sde
def test_losses_and_their_gradients_are_zero_at_the_exact_map(name):
    """Of a family of maps with mean and standard deviation as parameters; elsewhere the losses are not zero."""
    sde = ALL[name]
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


def test_eulerian_loss_weights_mean_flow():
    """On `flow` it is |u - v + (t - r) du/dt|^2 s_t^4 / s_r^2, here for a map of other data."""
    sde = SDES["flow"]()
    flow_map, denoiser = gaussian_flow_map(sde, MEAN, 1.2), gaussian_denoiser(sde, MEAN, STD)
    x, t, r = points(sde)

    def u(x, t):
        pair = flow_map(x, t, r)
        return pair.epsilon - pair.x0

    v = velocity_fn(denoiser, sde)(x, t)
    value, derivative = jax.jvp(u, (x, t), (v, jnp.ones_like(t)))
    error = jnp.sum((value - v + (t - r)[:, None] * derivative) ** 2, axis=1)
    weight = ((1 - t) ** 2 + t**2) ** 2 / ((1 - r) ** 2 + r**2)
    close(eulerian(flow_map, sde, x, t, r, denoiser(x, t)), weight * error)


@pytest.mark.parametrize("name", ["vp", "vp_cosine", "flow", "edm"])
def test_losses_at_the_ends(name):
    """alpha = 0 is regular; at sigma = 0 two losses are NaN if sigma has an infinite slope."""
    sde = ALL[name]
    flow_map, denoiser = gaussian(sde)
    x, zero, half, last = jnp.ones((1, 3)), jnp.zeros(1), jnp.array([0.5]) * sde.t_max, jnp.array([sde.t_max])
    for loss in (
        eulerian(flow_map, sde, x, last, half, denoiser(x, last)),
        lagrangian(flow_map, sde, x, last, half, denoiser),
        progressive(flow_map, sde, x, half, zero),
    ):
        close(loss, 0.0)
    steep = name in ("vp", "vp_cosine")
    assert np.isnan(eulerian(flow_map, sde, x, zero, zero, denoiser(x, zero))[0]) == steep
    assert np.isnan(lagrangian(flow_map, sde, x, half, zero, denoiser)[0]) == steep


@pytest.mark.parametrize("std", [0.0, -1.0, np.array([0.5, 0.0, 0.5]), np.nan])
def test_maps_without_spread_raise(std):
    with pytest.raises(UserError, match="gaussian_flow_map: expected std > 0, got"):
        gaussian_flow_map(SDES["vp"](), MEAN, std)
    with pytest.raises(UserError, match="mixture_flow_map_1d: expected std > 0, got"):
        mixture_flow_map_1d(SDES["vp"](), [MEAN, MEAN], [STD, float(np.min(std))])


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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("name", "kwargs", "shape"),
    [
        pytest.param("ddpmpp", UNET, (8, 8, 2), marks=pytest.mark.slow),
        pytest.param("ncsnpp", UNET | {"scale_by_sigma": False}, (8, 8, 2), marks=pytest.mark.slow),
        pytest.param("dit", {"width": 16, "depth": 1, "heads": 2, "num_classes": 3}, (8, 8, 2), marks=pytest.mark.slow),
        ("mlp", {"features": (16, 16)}, (3,)),
    ],
)
def test_a_trained_denoiser_is_a_flow_map(name, kwargs, shape):
    """Weights of a network of one time, with those of a second time new: the pair does not depend on r at first."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *shape)))
    t, r = jnp.array([0.7, 0.5]), jnp.array([0.2, 0.5])
    labels = {"labels": jnp.array([0, 2])} if "num_classes" in kwargs else {}
    old, new = (
        DiffusionModel(create(name, **kwargs, **two), SDES["vp"](), shape, preconditioning="angle")
        for two in ({}, {"two_times": True})
    )
    trained = jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.1 * rng.normal(size=leaf.shape)), old.init(jax.random.key(0))
    )
    params = initializer(lambda: new.init(jax.random.key(1)), trained)()
    denoiser = old.denoiser(trained, **labels)

    @jax.jit
    def evaluate(params):
        flow_map = new.denoiser(params, **labels)
        return flow_map(x, t), flow_map(x, t, r), diagonal(flow_map)(x, t)

    expected = jax.jit(denoiser)(x, t)
    for pair in evaluate(params):
        jax.tree.map(lambda a, b: close(a, b, 1e-5), pair, expected)
    diagonal_pair, chord_pair, _ = evaluate(jax.tree.map(lambda leaf: leaf + 0.1, params))
    assert np.abs(np.asarray(chord_pair.x0) - diagonal_pair.x0)[0].max() > 1e-3
    with pytest.raises(UserError, match="two_times=True"):
        denoiser(x, t, r)


@every_sde
def test_the_exact_map_lands_on_the_flows_end_whatever_the_grid(name):
    sde = ALL[name]
    flow_map, _ = gaussian(sde)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3))) * sde.sigma(sde.t_max)
    ends = [solve(flow_map_steps(), sde, flow_map, x, time_grid(sde, n)) for n in (1, 2, 7)]
    assert [end.nfe for end in ends] == [1, 2, 7]
    times = np.asarray(time_grid(sde, 1))
    exact = jump(flow_map, sde, x, jnp.full(4, times[0]), jnp.full(4, times[-1]))
    for end in ends:
        close(end.x, exact, 1e-5)  # the grids' ends are float32


@pytest.mark.parametrize("std", [0.5, 0.05])
def test_last_jump_ends_at_t_min(std):
    """A grid that ends at 0 gives x at t_min, with the marginal's standard deviation there."""
    sde = SDES["vp"]()
    flow_map, denoiser = gaussian_flow_map(sde, 0.0, std), gaussian_denoiser(sde, 0.0, std)
    tau = lambda t: jnp.hypot(sde.alpha(t) * std, sde.sigma(t))  # noqa: E731
    x = jnp.array([[tau(sde.t_max)]])
    for steps in (1, 2, 4):
        end = solve(flow_map_steps(), sde, flow_map, x, time_grid(sde, steps, end="zero"))
        close(end.x, tau(sde.t_min), EXACT)
        assert end.nfe == steps
    for last in (sde.t_min, 0.5):
        times = np.array([sde.t_max, last])
        expected = denoiser(jnp.array([[tau(last)]]), last).x0
        close(solve(flow_map_steps(), sde, flow_map, x, times, denoise=True).x, expected, EXACT)
    below = solve(flow_map_steps(), sde, flow_map, x, np.array([sde.t_max, sde.t_min / 4, 0.0]))
    close(below.x, tau(sde.t_min / 4), EXACT)  # no jump back to t_min


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_new_noise_keeps_the_distribution(gamma):
    """With the exact map every step ends in the marginal, so 20,000 samples have the data's moments."""
    sde = SDES["vp"]()
    flow_map, _ = gaussian(sde)
    x = jax.random.normal(jax.random.key(0), (20_000, 1))
    end = solve(flow_map_steps(gamma), sde, flow_map, x, time_grid(sde, 4), jax.random.key(1)).x
    assert abs(float(end.mean()) - MEAN) < 4 * STD / np.sqrt(20_000) + 1e-3
    assert abs(float(end.std()) - STD) < 4 * STD / np.sqrt(40_000) + 1e-3
    with pytest.raises(UserError, match="expected 0 <= gamma <= 1, got 2"):
        flow_map_steps(2)


def test_what_a_flow_map_is_not_sampled_with():
    model = DiffusionModel(create("mlp", features=(8,)), SDES["vp"](), (2,))
    two = model._replace(module=create("mlp", features=(8,), two_times=True))
    keys, options = (
        jax.random.split(jax.random.key(0), 2),
        {"solver": flow_map_steps(), "times": time_grid(model.sde, 2)},
    )
    with pytest.raises(UserError, match="this network takes one time"):
        sample(model, model.init(keys[0]), keys, **options)
    params = two.init(keys[0])
    drawn = jax.jit(lambda: sample(two, params, keys, **options))()
    assert drawn.x.shape == (2, 2) and np.isfinite(drawn.x).all()
    with pytest.raises(UserError, match="sample: threshold would change a denoiser"):
        sample(two, params, keys, **options, threshold=clip_x0())
    clipped = jax.eval_shape(lambda: sample(two, params, keys, **options | {"solver": ddim(), "threshold": clip_x0()}))
    assert clipped.x.shape == (2, 2)


@pytest.mark.parametrize("objective", FLOW_MAP_OBJECTIVES)
def test_objectives_of_the_exact_network_on_the_diagonal_are_denoising(objective):
    """With diagonal=1 every objective is the error of v^, as `denoising` has it, weighted in angles."""
    sde = SDES["flow"]()
    model = DiffusionModel(create("mlp", features=(8,), two_times=True), sde, (2,), preconditioning="angle")
    params = model.init(jax.random.key(0))
    rngs = make_example_rngs(jax.random.key(1), 0, jnp.arange(4), 4)
    x0 = jax.random.normal(jax.random.key(2), (4, 2))
    loss_fn = flow_map_loss(model, objective, uniform(), 1e-3, diagonal=1.0)
    t = uniform()(rngs, sde, 1e-3)[0]
    epsilon = noise(rngs.noise_keys, x0)
    x = (1 - t)[:, None] * x0 + t[:, None] * epsilon
    expected = denoising(model.denoiser(params), sde, x, t, Prediction(x0, epsilon)) / 2
    close(loss_fn(params, x0, rngs), expected, 1e-5)
    with pytest.raises(UserError, match="expected 0 < diagonal <= 1, got 0"):
        flow_map_loss(model, objective, uniform(), 1e-3, diagonal=0.0)
    if objective != "eulerian":
        with pytest.raises(UserError, match="improved=False has no effect"):
            flow_map_loss(model, objective, uniform(), 1e-3, improved=False)


def test_the_progressive_loss_evaluates_the_long_jump_once():
    """The gradient of a loss takes three forward passes; two more are for the short jumps, which have no gradient."""
    model = DiffusionModel(create("mlp", features=(64, 64), two_times=True), SDES["flow"](), (2,))
    params = model.init(jax.random.key(0))
    x0, times = jax.random.normal(jax.random.key(2), (4, 2)), jnp.full(4, 0.5)
    rngs = make_example_rngs(jax.random.key(1), 0, jnp.arange(4), 4)

    def flops_of_gradient(loss_fn):
        return count_flops(jax.grad(lambda params: jnp.sum(loss_fn(params, x0, rngs))), params)

    forward = count_flops(lambda params: model.denoiser(params)(x0, times, times), params)
    assert flops_of_gradient(flow_map_loss(model, "progressive", uniform(), 1e-3)) <= 5 * forward


def test_a_denoiser_of_one_time_is_refused():
    sde = SDES["vp"]()
    with pytest.raises(UserError, match="got a denoiser"):
        solve(flow_map_steps(), sde, gaussian_denoiser(sde, MEAN, STD), jnp.ones((2, 1)), time_grid(sde, 2))


def test_the_solver_benchmark_counts_a_flow_map_in():
    sde = SDES["vp"]()
    flow_map, _ = gaussian(sde)
    options = BenchmarkOptions(4, (2,), ("uniform",), 50, (2, 4))
    x = jax.random.normal(jax.random.key(0), (4, 2), jnp.float32)
    both = lambda params: lambda x, t, *r: flow_map(x, t, *(r or (t,)))  # noqa: E731
    rows, _ = deterministic_table(sde, both, {}, x, options, {"ddim": ddim, "flow_map_steps": flow_map_steps})
    distances = {row["solver"]: row["distance"] for row in rows}
    assert distances["flow_map_steps"] < 1e-4 < 0.05 < distances["ddim"]


@pytest.mark.slow
def test_a_run_is_distilled(tmp_path):
    """The network of a run, its weights the first ones, and the run as the teacher; then one step and four."""
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    few = ("--config.training.num_steps=20", "--config.training.sample_every=20")
    finish(start(teacher, *few))
    finish(start(teacher, *few, "--mode=export"))
    flags = (
        "--config=configs/flow_map_digits_distill.py",
        f"--config.model.pretrained={teacher}",
        f"--config.loss.objective_kwargs.teacher={teacher}",
        *few,
        "--config.training.batch_size=8",
        "--config.training.checkpoint_every=10",
        "--config.sampling.num_samples=10",
        "--config.sampling.batch_size=10",
    )
    assert "trained 20 steps" in finish(start(student, *flags))
    augmented = ("--config.model.pretrained=", "--config.data.augment=0.1", "--config.model.kwargs.augment_dim=9")
    assert "takes no augmentation labels" in finish(start(student, *flags, *augmented), expected=2)
    for steps in (1, 4):
        said = finish(start(student, *flags, "--mode=sample", f"--config.sampling.num_steps={steps}"))
        assert "10 samples of step 20" in said


@pytest.mark.parametrize("name", thinned(ALL, "vp"))
def test_the_mean_divergence_of_a_gaussian(name):
    """log tau^, tau^2 = alpha^2 std^2 + sigma^2, changes by it: the losses are 0, and log p in jumps is exact."""
    sde = ALL[name]
    flow_map, denoiser = gaussian(sde)
    x, t, r = points(sde)

    def log_tau(s):
        return jnp.log(jnp.hypot(sde.alpha(s) * STD, sde.sigma(s)) / jnp.hypot(sde.alpha(s), sde.sigma(s)))

    def rate(s):
        return time_derivative(log_tau, s) / time_derivative(lambda s: angle_of(sde, s), s)

    def exact(x, t, r):
        t, r = jnp.broadcast_to(t, x.shape[:1]), jnp.broadcast_to(r, x.shape[:1])
        width = angle_of(sde, r) - angle_of(sde, t)
        mean = jnp.where(width == 0, rate(t), (log_tau(r) - log_tau(t)) / jnp.where(width == 0, 1.0, width))
        return DivergencePrediction(*flow_map(x, t, r), mean / _kappa(sde, t, r))

    close(log_prob_change(exact(x, t, r), sde, t, r), 3 * (log_tau(r) - log_tau(t)))
    probe = jnp.asarray(np.random.default_rng(3).choice([-1.0, 1.0], x.shape))
    divergence = velocity_divergence(denoiser, sde, x, t, probe)
    close(divergence, 3 * rate(t), 1e-8)
    close(denoising(exact, sde, x, t, denoiser(x, t), divergence), np.zeros(len(x)))
    close(progressive(exact, sde, x, t, r), np.zeros(len(x)))
    close(progressive(exact, sde, x, r, t), np.zeros(len(x)))
    wrong = lambda x, t, r: exact(x, t, r)._replace(divergence=exact(x, t, r).divergence + 0.1 * t)  # noqa: E731
    assert (np.asarray(progressive(wrong, sde, x, t, r)) > 1e-9).all()

    start = sde.alpha(sde.t_min) * x
    for steps in (1, 4):
        log_prob, latent = log_likelihood(exact, sde, start, angle_grid(sde, steps))
        at_end = denoiser.log_prob(latent, sde.t_max) - prior_log_prob(sde, latent)
        close(log_prob + at_end, denoiser.log_prob(start, sde.t_min), 1e-4 if name == "flow" else 1e-7)


def test_likelihood_checks_its_times():
    sde = SDES["vp"]()
    x, good = jnp.zeros((2, 3)), np.asarray(angle_grid(sde, 4))
    flow_map = lambda x, t, r: DivergencePrediction(*gaussian(sde)[0](x, t, r), jnp.zeros(len(x)))  # noqa: E731
    assert np.isfinite(log_likelihood(flow_map, sde, x, good)[0]).all()
    run = jax.jit(lambda times: log_likelihood(flow_map, sde, x, times)[0])
    assert np.isfinite(run(good)).all()
    for bad in (good[::-1], good[:-1], np.repeat(good, 2), good - 1e-2, np.append(good, good[-1] + 1)):
        with pytest.raises(UserError, match="expected strictly ascending times from 0 or later to t_max = 1, got"):
            log_likelihood(flow_map, sde, x, bad)
        assert np.isnan(run(bad)).all()
    for bad in (good[-1:], good[0], good[None]):
        with pytest.raises(UserError, match="expected times of shape"):
            log_likelihood(flow_map, sde, x, bad)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_guidance_in_the_target(scale):
    """With diagonal=1 the loss is the error to unconditional + scale (target - unconditional)."""
    sde = SDES["flow"]()
    kwargs = {"width": 16, "depth": 1, "heads": 2, "num_classes": 3, "label_dropout": 0.1, "two_times": True}
    model = DiffusionModel(create("dit", **kwargs), sde, (8, 8, 1), preconditioning="angle")
    params = jax.tree.map(lambda leaf: leaf + 0.05, model.init(jax.random.key(0)))
    rngs = make_example_rngs(jax.random.key(1), 0, jnp.arange(4), 4)
    x0, labels = jax.random.normal(jax.random.key(2), (4, 8, 8, 1)), jnp.array([0, 1, 2, 1])
    loss_fn = flow_map_loss(model, "progressive", uniform(), 1e-3, diagonal=1.0, guidance_scale=scale)
    t, epsilon = uniform()(rngs, sde, 1e-3)[0], noise(rngs.noise_keys, x0)
    x = lift(1 - t, x0) * x0 + lift(t, x0) * epsilon

    @jax.jit
    def both(params):
        weak = model.denoiser(params, labels=jnp.full(4, -1))(x, t)
        target = Prediction(*(b + scale * (a - b) for a, b in zip((x0, epsilon), weak, strict=True)))
        flow_map = model.denoiser(params, labels=labels, dropout_keys=rngs.network_keys)
        return loss_fn(params, x0, rngs, labels=labels), denoising(flow_map, sde, x, t, target) / 64

    close(*both(params), 1e-5)
    unlabeled = model._replace(module=create("mlp", features=(8,), two_times=True))
    with pytest.raises(UserError, match="guidance_scale requires a class-conditional network"):
        flow_map_loss(unlabeled, "progressive", uniform(), 1e-3, guidance_scale=2.0)


def test_the_map_of_a_mixture_keeps_digits_in_both_tails():
    sde, x = SDES["flow"](), np.array([[-12.0], [-9.0], [0.5], [9.0], [12.0]])
    t, r = jnp.full(5, 0.9), jnp.full(5, 0.1)
    of_parts = mixture_flow_map_1d(sde, np.zeros(2), np.ones(2), np.array([0.3, 0.7]))
    x = x * float(jnp.hypot(0.9, 0.1))
    close(jump(of_parts, sde, x, t, r), jump(gaussian_flow_map(sde, 0.0, 1.0), sde, x, t, r))


def test_teachers_that_do_not_fit_raise():
    """Teachers with other classes, without an unconditional prediction, or with discrete times."""
    sde, times = SDES["flow"](), uniform(stratified=True)

    def model(num_classes, label_dropout=0.1, **changes):
        module = create("dit", width=8, depth=1, heads=1, num_classes=num_classes, label_dropout=label_dropout)
        return DiffusionModel(module, sde, (8, 8, 1), **changes)

    def train(student, teacher, **options):
        flow_map_loss(student, "progressive", times, 1e-3, teacher=teacher and Teacher(teacher, {}), **options)

    for student, teacher in ((model(10), model(5)), (model(0), model(10, 0.0)), (model(10), model(0))):
        with pytest.raises(UserError, match="classes and this network"):
            train(student, teacher)
    for student, teacher in ((model(10), model(10, 0.0)), (model(0), model(10)), (model(0), model(0))):
        train(student, teacher)
    with pytest.raises(UserError, match="trained at the timesteps of a chain only"):
        train(model(0), model(0, timesteps=object()))
    for scale in (0.0, -1.0):
        with pytest.raises(UserError, match="trains nothing"):
            train(model(10), None, guidance_scale=scale)
        train(model(10), model(10), guidance_scale=scale)


@pytest.mark.slow
def test_training_reaches_the_exact_map():
    """One step of a map distilled from independent mixtures: within 1% of their standard deviation, falling."""
    dimension, num_steps = 2, 16_000
    sde, parts = SDES["flow"](), {"means": (-1.0, 1.0), "stds": (0.4, 0.4), "weights": (0.4, 0.6)}
    with jax.enable_x64(False):
        means = tuple(itertools.product(parts["means"], repeat=dimension))
        weights = tuple(np.prod(pair) for pair in itertools.product(parts["weights"], repeat=dimension))
        mixture = create("mixture", means=means, stds=(0.4,) * len(means), weights=weights)
        teacher = Teacher(DiffusionModel(mixture, sde, (dimension,), "v"), {})
        model = DiffusionModel(
            create("mlp", features=(128, 128, 128), two_times=True), sde, (dimension,), preconditioning="angle"
        )
        loss_fn = flow_map_loss(model, "eulerian", uniform(stratified=True), 1e-3, teacher=teacher)
        batch = 512
        optimizer = optax.chain(
            optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
        )

        def step(carry, n):
            params, state = carry
            first, second, third = jax.random.split(jax.random.fold_in(jax.random.key(1), n), 3)
            component = jax.random.bernoulli(first, 0.6, (batch, dimension))
            x0 = jnp.where(component, 1.0, -1.0) + 0.4 * jax.random.normal(second, (batch, dimension))
            rngs = make_example_rngs(third, 0, jnp.arange(batch), batch)
            gradient = jax.grad(lambda params: loss_fn(params, x0, rngs).mean())(params)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        run = jax.jit(lambda carry, first: jax.lax.scan(step, carry, first + jnp.arange(num_steps // 4))[0])
        x = jax.random.normal(jax.random.key(5), (2000, dimension))
        t, r = jnp.full(2000, sde.t_max), jnp.full(2000, sde.t_min)
        exact = jump(mixture_flow_map_1d(sde, **parts), sde, x, t, r)
        params = model.init(jax.random.key(0))
        carry, errors = (params, optimizer.init(params)), []
        for quarter in range(4):
            carry = run(carry, quarter * (num_steps // 4))
            error = jump(model.denoiser(carry[0]), sde, x, t, r) - exact
            errors.append(float(jnp.sqrt(jnp.mean(error**2)) / exact.std()))
    assert errors[-1] < 0.01 and errors[-1] < 0.5 * errors[0], errors
