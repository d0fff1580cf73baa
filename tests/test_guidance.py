"""Guidance on a labelled Gaussian mixture, of which the classifier and every tilted score are known."""

import itertools
from contextlib import suppress

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.guidance import (
    autoguided,
    class_log_prob,
    classifier_free,
    classifier_free_labeled,
    classifier_guided,
    shift_score,
    x0_log_prob,
)
from score_sde.models import create
from score_sde.parameterization import (
    PREDICTIONS,
    Prediction,
    check_parameterization,
    make_denoiser,
    round_trip_prediction,
)
from score_sde.sde import SDES, from_schedule, lift, log_snr, prior_sample, vp
from score_sde.solvers import SOLVERS, solve, time_grid
from tests import mixtures
from tests.thinned import WITH_DENOISERS, thinned

CLASS = 1
PARTS = {"means": mixtures.MEANS.tolist(), "stds": mixtures.STDS.tolist(), "weights": mixtures.WEIGHTS.tolist()}
EXACT = create("mixture", **PARTS)


def labelled(sde):
    """labels -> the exact denoiser of those components; -1 is the whole mixture."""
    return lambda labels: make_denoiser(
        lambda x, level: EXACT.apply({}, x, level, labels), sde, preconditioning="log_snr"
    )


def unconditional(sde):
    return labelled(sde)(None)


def class_scores(sde, x, t):
    """log w_k p_t(x | k), (batch, 3), written out."""
    alpha, sigma = (jnp.broadcast_to(f(jnp.asarray(t, float)), x.shape[:1])[:, None] for f in (sde.alpha, sde.sigma))
    variance = alpha**2 * mixtures.STDS[None] ** 2 + sigma**2
    squares = jnp.sum((x[:, None] - alpha[..., None] * mixtures.MEANS[None]) ** 2, axis=-1)
    return jnp.log(mixtures.WEIGHTS)[None] - jnp.log(2 * jnp.pi * variance) - 0.5 * squares / variance


def classifier(sde):
    """The exact one: its logits are log w_k p_t(x | k), but for a constant."""
    return lambda x, t: class_scores(sde, x, t)


def labels(n, label=CLASS):
    return jnp.full(n, label)


@pytest.mark.parametrize("name", thinned(SDES, "vp", "flow"))
@pytest.mark.parametrize("scale", thinned((0.5, 1.0, 3.0), 3.0))
def test_the_guided_score_is_that_of_the_tilted_density_at_every_t(name, scale, x64):
    """score = grad [log p_t(x) + scale log p_t(y | x)], by automatic differentiation of closed forms."""
    sde = SDES[name]()
    x = jax.random.normal(jax.random.key(0), (8, 2))
    guided = classifier_guided(unconditional(sde), class_log_prob(classifier(sde), labels(8)), sde, scale)
    free = classifier_free(labelled(sde)(labels(8)), unconditional(sde), scale)

    def tilted(x, t):
        scores = class_scores(sde, x, t)
        whole = jax.nn.logsumexp(scores, axis=1)
        return jnp.sum(whole + scale * (scores[:, CLASS] - whole))

    run = jax.jit(lambda at, t: (jax.grad(tilted)(at, t), guided(at, t), free(at, t)))
    for t in np.linspace(sde.t_min, 0.98 * sde.t_max, 7):
        at = float(jnp.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2)) * x
        expected, *pairs = run(at, t)
        for pair in pairs:
            score = -pair.epsilon / lift(sde.sigma(t), at)
            size = float(jnp.abs(expected).max())
            np.testing.assert_allclose(score, expected, atol=1e-9 * size)
            again = sde.alpha(t) * pair.x0 + sde.sigma(t) * pair.epsilon
            np.testing.assert_allclose(again, at, atol=1e-9 * float(jnp.abs(at).max()))


def truth(n, seed):
    """Samples of the class."""
    rng = np.random.default_rng(seed)
    return mixtures.MEANS[CLASS] + mixtures.STDS[CLASS] * rng.standard_normal((n, 2))


@pytest.mark.parametrize("name", thinned(SDES, "vp"))
def test_scale_one_draws_from_the_exact_conditional_with_every_sde(name):
    """Both kinds of guidance, from the prior to the data, within the distance of two draws of the truth."""
    sde, n = SDES[name](), 4000
    x = prior_sample(sde, jax.random.key(1), (n, 2))
    times = time_grid(sde, 100, "log_snr" if np.isfinite(log_snr(sde, sde.t_max)) else "quadratic")
    by_classifier = classifier_guided(unconditional(sde), class_log_prob(classifier(sde), labels(n)), sde, 1.0)
    # scale 1 asks the conditional alone; just beside it, both
    free = classifier_free_labeled(labelled(sde), labels(n), jnp.float32(1.0))
    own = np.mean([mixtures.sliced_wasserstein(truth(n, 2 * i), truth(n, 2 * i + 1)) for i in range(8)])
    run = jax.jit(lambda x: [solve(SOLVERS["ddim"](), sde, d, x, times, denoise=True).x for d in (by_classifier, free)])
    for drawn in run(x):
        assert mixtures.sliced_wasserstein(drawn, truth(n, 99)) < 2.5 * own


@pytest.mark.parametrize("solver", thinned(WITH_DENOISERS, "unipc", "predictor_corrector"))
def test_guidance_runs_under_every_solver_and_scale_zero_is_bit_for_bit_without(solver):
    sde, n = vp(), 6
    x = prior_sample(sde, jax.random.key(0), (n, 2))
    times, key = time_grid(sde, 4), jax.random.key(1)
    plain, log_prob = unconditional(sde), class_log_prob(classifier(sde), labels(n))
    denoisers = (
        plain,
        classifier_guided(plain, log_prob, sde, 0.0),
        classifier_free(labelled(sde)(labels(n)), plain, 0.0),
        autoguided(labelled(sde)(labels(n)), plain, 0),
        classifier_guided(plain, log_prob, sde, 2.0),
    )
    run = jax.jit(lambda x: [solve(SOLVERS[solver](), sde, denoiser, x, times, key).x for denoiser in denoisers])
    expected, *unguided, guided = run(x)
    for end in unguided:
        np.testing.assert_array_equal(end, expected)
    assert np.isfinite(guided).all() and not np.allclose(guided, expected, atol=1e-3)


def pairs_that_work():
    """An SDE and a prediction that gives x0 wherever that SDE's time begins."""
    for name, prediction in itertools.product(SDES, PREDICTIONS):
        with suppress(UserError):
            check_parameterization(SDES[name](), prediction, "none")
            yield name, prediction


@pytest.mark.parametrize(
    "pair",
    thinned(pairs_that_work(), ("vp", "epsilon"), ("vp", "v"), ("ve", "score"), ("flow", "velocity")),
    ids="-".join,
)
def test_guided_pair_does_not_depend_on_prediction(pair):
    """The guided pair is the same to rounding for every prediction."""
    name, prediction = pair
    sde = SDES[name]()
    t = 0.3 * sde.t_max
    x = jax.random.normal(jax.random.key(0), (5, 2)) * jnp.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2)
    log_prob = class_log_prob(classifier(sde), labels(5))
    pairs = [
        jax.jit(classifier_guided(denoiser, log_prob, sde, 2.0))(x, t)
        for denoiser in (unconditional(sde), round_trip_prediction(unconditional(sde), sde, prediction))
    ]
    for direct, converted in zip(*pairs, strict=True):  # float32's rounding, times sigma / alpha where eps gives x0
        worst = 20 * 6e-8 * float((sde.sigma(t) / sde.alpha(t) + 1) * jnp.abs(x).max() + jnp.abs(direct).max())
        np.testing.assert_allclose(converted, direct, atol=worst * float(1 + sde.sigma(t) / sde.alpha(t)))


def test_one_call_for_both_gives_what_two_calls_give():
    sde, calls = vp(), []

    def counted(labels):
        def denoiser(x, t):
            calls.append(x.shape[0])
            return labelled(sde)(labels)(x, t)

        return denoiser

    x = jax.random.normal(jax.random.key(0), (4, 2))
    asked = jnp.array([0, 1, 2, -1])
    for t in (0.4, jnp.linspace(0.1, 0.9, 4)):
        calls.clear()
        pair = jax.jit(classifier_free_labeled(counted, asked, 2.5))(x, t)
        assert calls == [8]
        expected = jax.jit(classifier_free(labelled(sde)(asked), unconditional(sde), 2.5))(x, t)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), pair, expected)


def test_a_scale_an_example_is_that_scale():
    sde, x, t = vp(), jax.random.normal(jax.random.key(0), (3, 2)), 0.3
    scales = jnp.array([0.0, 1.0, 2.5])
    together = jax.jit(classifier_free(labelled(sde)(labels(3)), unconditional(sde), scales))(x, t)
    for n, scale in enumerate((0.0, 1.0, 2.5)):
        alone = jax.jit(classifier_free(labelled(sde)(labels(1)), unconditional(sde), scale))(x[n : n + 1], t)
        jax.tree.map(lambda a, b, n=n: np.testing.assert_allclose(a[n : n + 1], b, atol=1e-6), together, alone)


def test_outside_of_its_interval_the_scale_is_one():
    sde, x = vp(), jax.random.normal(jax.random.key(0), (3, 2))
    conditional = labelled(sde)(labels(3))
    everywhere = classifier_free(conditional, unconditional(sde), 3.0)
    limited = jax.jit(classifier_free(conditional, unconditional(sde), 3.0, interval=(0.2, 0.6)))
    for t, expected in ((0.2, conditional), (0.21, everywhere), (0.6, everywhere), (0.61, conditional)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), limited(x, t), expected(x, t))
    mixed = limited(x, jnp.array([0.1, 0.4, 0.9]))
    np.testing.assert_allclose(mixed.x0[1], everywhere(x, 0.4).x0[1], atol=1e-5)
    np.testing.assert_allclose(mixed.x0[0], conditional(x, 0.1).x0[0], atol=1e-5)


def test_rescaling_brings_back_the_conditional_contrast():
    """At rescale 1 the standard deviation over an example is the conditional one's, at 0.5 half the way there."""
    sde, t, n = vp(), 0.5, 4
    x = jax.random.normal(jax.random.key(0), (n, 6))
    strong, weak = (
        lambda x, t, c=c: Prediction(c * jnp.tanh(x), (x - sde.alpha(t) * c * jnp.tanh(x)) / sde.sigma(t))
        for c in (0.8, 0.2)
    )

    def contrast(rescale):
        pair = classifier_free(strong, weak, 4.0, rescale=rescale, sde=sde)(x, t)
        np.testing.assert_allclose(sde.alpha(t) * pair.x0 + sde.sigma(t) * pair.epsilon, x, atol=1e-5)
        return np.std(pair.x0, axis=1)

    plain, own = contrast(0.0), np.std(strong(x, t).x0, axis=1)
    np.testing.assert_allclose(contrast(1.0), own, rtol=1e-5)
    np.testing.assert_allclose(contrast(0.5), 0.5 * (plain + own), rtol=1e-5)


def test_autoguidance_leads_away_from_the_weaker_network():
    """A weaker network that is too wide: at scale 2 x0 lies as far beyond the denoiser's as the weaker one's behind."""
    sde, t, x = vp(), 0.4, jax.random.normal(jax.random.key(0), (5, 2))
    wide = create("mixture", **PARTS | {"stds": [0.4, 0.5, 0.6]})
    weaker = make_denoiser(lambda x, level: wide.apply({}, x, level), sde, preconditioning="log_snr")
    pair, own, other = (d(x, t) for d in (autoguided(unconditional(sde), weaker, 2.0), unconditional(sde), weaker))
    np.testing.assert_allclose(pair.x0 - own.x0, own.x0 - other.x0, atol=1e-5)


def test_an_energy_on_clean_data_pulls_samples_to_where_it_is_low():
    """E(x0) = 20 (first coordinate - 0.7)^2 on the mixture: the samples' mean energy falls."""
    sde, n = vp(), 500
    x = prior_sample(sde, jax.random.key(0), (n, 2))

    def energy(x0):
        return 20 * (x0[:, 0] - 0.7) ** 2

    plain = unconditional(sde)
    guided = classifier_guided(plain, x0_log_prob(plain, lambda x0: -energy(x0)), sde, 1.0)
    ends = [
        jax.jit(lambda x, d=d: solve(SOLVERS["ddim"](), sde, d, x, time_grid(sde, 100)).x)(x) for d in (plain, guided)
    ]
    before, after = (float(energy(end).mean()) for end in ends)
    assert after < 0.2 * before


@pytest.mark.parametrize("sde", [SDES["flow"](), from_schedule(jnp.cos, jnp.sin, 1e-3, float(np.pi / 2))])
def test_a_shift_of_the_score_is_continuous_where_alpha_vanishes(sde):
    """At t_max x0 is that of the class, although sigma^2 / alpha is infinite there and the gradient 0."""
    assert sde.alpha(jnp.float32(sde.t_max)) == 0 and sde.diffusion(jnp.float32(sde.t_max)) == jnp.inf
    x = jax.random.normal(jax.random.key(0), (4, 2))
    guided = classifier_guided(unconditional(sde), class_log_prob(classifier(sde), labels(4)), sde, 1.0)
    end = guided(x, sde.t_max)
    np.testing.assert_allclose(end.x0, np.broadcast_to(mixtures.MEANS[CLASS], (4, 2)), atol=5e-3)  # alpha is 1e-3 there
    np.testing.assert_allclose(end.epsilon, x, atol=1e-6)
    still = shift_score(Prediction(x, x), lambda x, t: jnp.zeros_like(x), x, sde.t_max, sde)
    np.testing.assert_array_equal(still.x0, x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d, s: classifier_guided(d, None, s, -1.0), "classifier guidance: need scale >= 0, got -1.0"),
        (lambda d, s: classifier_guided(d, None, s, jnp.array([1.0, -2.0])), "need scale >= 0"),
        (lambda d, s: autoguided(d, d, -0.5), "autoguidance: need scale >= 0, got -0.5"),
        (lambda d, s: classifier_free(d, d, 2.0, interval=(0.5, 0.5)), "0 <= low < high"),
        (lambda d, s: classifier_free(d, d, 2.0, interval=(-1.0, 0.5)), "0 <= low < high"),
        (lambda d, s: classifier_free(d, d, 2.0, rescale=1.5), "0 <= rescale <= 1, got 1.5"),
        (lambda d, s: classifier_free(d, d, 2.0, rescale=0.5), "requires the SDE"),
    ],
)
def test_invalid_arguments_raise(make, words):
    sde = vp()
    with pytest.raises(UserError, match=words):
        make(unconditional(sde), sde)


def test_a_negative_scale_leads_away_from_the_class():
    sde, x = vp(), jnp.zeros((2, 2))
    conditional, plain = labelled(sde)(labels(2)), unconditional(sde)
    away = classifier_free(conditional, plain, -1.0)(x, 0.3).x0 - plain(x, 0.3).x0
    assert float(jnp.vdot(away, conditional(x, 0.3).x0 - plain(x, 0.3).x0)) < 0


def test_labels_outside_of_the_classes_are_named():
    sde, x = vp(), jnp.zeros((3, 2))
    with pytest.raises(UserError, match="expected 0 to 2, or -1 for no class, got 3, 7"):
        class_log_prob(classifier(sde), jnp.array([3, 7, 0]))(x, 0.3)
    quiet = class_log_prob(classifier(sde), jnp.array([-1, -1, -1]))
    np.testing.assert_array_equal(jax.grad(lambda x: quiet(x, 0.3).sum())(x), 0.0)
