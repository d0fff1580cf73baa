"""Conditioning in a batch: each example keeps its label, guide and scale, whatever maps over examples."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import models
from score_sde.conditioned import conditioned, count_evaluations, map_examples
from score_sde.errors import UserError
from score_sde.guidance import autoguided, class_log_prob, classifier_free, classifier_free_labeled, classifier_guided
from score_sde.likelihood import decode, encode, log_likelihood
from score_sde.models.network import apply_fn
from score_sde.parameterization import Prediction, make_denoiser
from score_sde.sde import edm, flow, prior_sample, vp
from score_sde.solvers import ddim, heun, solve, solve_adaptive, solve_adaptive_sde, time_grid

LABELS = jnp.array([0, 2, 1, 2])
SCALES = jnp.array([1.5, 0.5, 2.0, 3.0])
MEANS = [[-1.0, 0.5], [1.0, 0.0], [0.0, -1.0]]


def mixture_denoiser(sde, labels):
    model = models.create("mixture", means=MEANS, stds=[0.3, 0.2, 0.4])
    return make_denoiser(apply_fn(model, {}, labels=labels), sde, preconditioning="log_snr")


def logits(sde, x, t):
    """log p_t(x | class) of the mixture's components, by their closed form."""
    alpha, sigma = (jnp.reshape(coef(t), (-1, 1)) for coef in (sde.alpha, sde.sigma))
    variance = (alpha * jnp.array([[0.3, 0.2, 0.4]])) ** 2 + sigma**2
    squares = jnp.sum((x[:, None] - alpha[..., None] * jnp.array([MEANS])) ** 2, axis=2)
    return -0.5 * squares / variance - jnp.log(variance)


def guided_by_classifier(sde, denoiser_of, labels, scales):
    return classifier_guided(
        denoiser_of(-jnp.ones_like(labels)), class_log_prob(partial(logits, sde), labels), sde, scales
    )


GUIDED = {
    "conditional": lambda sde, denoiser_of, labels, scales: denoiser_of(labels),
    "classifier": guided_by_classifier,
    "classifier_free": lambda sde, denoiser_of, labels, scales: classifier_free_labeled(
        denoiser_of, labels, scales, interval=(0.1, 0.9), rescale=0.3, sde=sde
    ),
    "autoguided": lambda sde, denoiser_of, labels, scales: autoguided(
        denoiser_of(labels), denoiser_of((labels + 1) % 3), scales
    ),
}


RUNS = {  # (sde, denoiser, x, keys) -> an array with a row per example
    "adaptive": lambda sde, denoiser, x, keys: solve_adaptive(sde, denoiser, x).x,
    "adaptive_sde": lambda sde, denoiser, x, keys: solve_adaptive_sde(sde, denoiser, x, keys, rtol=0.05, atol=0.05).x,
    "exact": lambda sde, denoiser, x, keys: log_likelihood(sde, denoiser, x, divergence="exact").log_prob,
    "hutchinson": lambda sde, denoiser, x, keys: log_likelihood(sde, denoiser, x, keys).log_prob,
    "decode_encoded": lambda sde, denoiser, x, keys: decode(sde, denoiser, encode(sde, denoiser, x)),
}

QUICK = {("classifier_free", "adaptive")}


@pytest.mark.parametrize(
    ("kind", "run"),
    [
        pytest.param(kind, run, marks=() if (kind, run) in QUICK else pytest.mark.slow)
        for kind, run in [*(("conditional", name) for name in RUNS), *((kind, "adaptive") for kind in list(GUIDED)[1:])]
    ],
)
def test_batch_equals_examples_alone(kind, run, x64):
    """In double precision, so that whether a step is accepted is not a matter of rounding."""
    sde, keys = vp(), jax.random.split(jax.random.key(1), 4)
    x = prior_sample(sde, jax.random.key(0), (4, 2)).astype(jnp.float64)

    @jax.jit
    def compiled(x, labels, scales, keys):
        return RUNS[run](sde, GUIDED[kind](sde, partial(mixture_denoiser, sde), labels, scales), x, keys)

    together = compiled(x, LABELS, SCALES, keys)
    for i in range(4):
        alone = compiled(*same_rows((x, LABELS, SCALES, keys), i))
        np.testing.assert_allclose(alone, jnp.stack([together[i]] * 4), atol=1e-9)


def same_rows(arrays, i):
    """Return arrays in which example i fills every row, so that no other batch size is compiled."""
    return [jnp.stack([rows[i]] * len(rows)) for rows in arrays]


def test_adaptive_classifier_guidance_reaches_its_classes():
    """Two classes at -1 and 1 with an exact classifier; heun in 200 steps gives these numbers."""
    sde, labels = vp(), jnp.arange(8) % 2
    model = models.create("mixture", means=[[-1.0], [1.0]], stds=[0.3, 0.3])

    def two_logits(x, t):
        alpha, sigma = (jnp.reshape(coef(t), (-1, 1)) for coef in (sde.alpha, sde.sigma))
        return -0.5 * (x - alpha * jnp.array([[-1.0, 1.0]])) ** 2 / ((alpha * 0.3) ** 2 + sigma**2)

    prior = make_denoiser(apply_fn(model, {}), sde, preconditioning="log_snr")
    guided = classifier_guided(prior, class_log_prob(two_logits, labels), sde, 1.0)
    x = prior_sample(sde, jax.random.key(0), (8, 1))
    on_grid = solve(heun(), sde, guided, x, time_grid(sde, 200))
    adaptive = solve_adaptive(sde, guided, x)
    np.testing.assert_allclose(adaptive.x, on_grid.x, atol=2e-3)
    np.testing.assert_array_equal(np.sign(adaptive.x[:, 0]), 2 * labels - 1)
    np.testing.assert_allclose(adaptive.x[:4, 0], [-0.51, 1.61, -1.13, 0.97], atol=0.006)
    assert on_grid.nfe == 2 * 2 * 200 and not np.any(np.asarray(adaptive.nfe) % 2)


def test_other_batch_sizes_raise():
    sde = vp()
    denoiser = mixture_denoiser(sde, LABELS)
    for size in (1, 3, 8):
        with pytest.raises(UserError, match=rf"expected a batch of 4.*got x of shape \({size}, 2\)"):
            denoiser(jnp.zeros((size, 2)), 0.5)
    with pytest.raises(UserError, match="expected a batch of 4"):
        classifier_free(denoiser, mixture_denoiser(sde, None), 2.0)(jnp.zeros((1, 2)), 0.5)


def test_labels_outside_the_conditioning_raise():
    """A plain function that holds labels can't be mapped over examples: broadcast, it would mix them up."""
    sde, model = vp(), models.create("mixture", means=MEANS, stds=[0.3, 0.2, 0.4])
    hidden = make_denoiser(lambda x, level: model.apply({}, x, level, labels=LABELS), sde, preconditioning="log_snr")
    shift = jnp.ones((4, 2))
    for denoiser in (hidden, lambda x, t: Prediction(x + shift, x)):
        for solver in (solve_adaptive, lambda *args: log_likelihood(*args, divergence="exact")):
            with pytest.raises(UserError, match="works only for 4 examples"):
                solver(sde, denoiser, jax.random.normal(jax.random.key(0), (4, 2)))
    with pytest.raises(ZeroDivisionError):  # an error of the network stays its own
        solve_adaptive(sde, lambda x, t: Prediction(x, x / (1 // 0)), jnp.zeros((4, 2)))


def test_map_examples_gives_each_its_rows():
    carried = conditioned(lambda x, t, a, b: x * a[:, None] + b + t[:, None], jnp.arange(3.0), 5.0)
    found = map_examples(lambda f, x, t: f(x, t), carried, jnp.ones((3, 2)), jnp.array([0.0, 10.0, 20.0]))
    np.testing.assert_array_equal(found, [[5, 5], [16, 16], [27, 27]])
    gradient = jax.grad(lambda x: jnp.sum(map_examples(lambda f, x: f(x, 0.0 * x[0]) ** 2, carried, x)))(
        jnp.ones((3, 2))
    )
    np.testing.assert_allclose(gradient, 2 * np.array([[0, 1, 2]]).T * (np.array([[0, 1, 2]]).T + 5) * np.ones((1, 2)))


def test_evaluations_count_every_network_call():
    """Outside of an interval the conditional network is evaluated alone."""
    sde, x, times = flow(), jnp.ones((4, 2)), time_grid(flow(), 10)
    denoiser_of = partial(mixture_denoiser, sde)
    conditional, unconditional = denoiser_of(LABELS), denoiser_of(-jnp.ones_like(LABELS))
    free = classifier_free_labeled(denoiser_of, LABELS, 2.0)
    limited = classifier_free(conditional, unconditional, 2.0, interval=(0.25, 0.55))
    inside = int(np.sum((times[:-1] > 0.25) & (times[:-1] <= 0.55)))
    assert 0 < inside < 10
    for denoiser, expected in ((conditional, 10), (free, 20), (limited, 10 + inside)):
        assert solve(ddim(), sde, denoiser, x, times).nfe == expected
    assert solve(ddim(), sde, free, x, times, denoise=True).nfe == 22
    assert solve(ddim(), sde, limited, x, times, denoise=True).nfe == 11 + inside
    twice = classifier_guided(free, class_log_prob(partial(logits, sde), LABELS), sde, 1.0)
    assert count_evaluations(twice, np.array([0.5])).tolist() == [3]
    assert count_evaluations(classifier_free(conditional, unconditional, 1.0), np.array([0.5])).tolist() == [1]


NETWORKS = {
    "ddpmpp": {"channels": 16, "multipliers": (1,), "num_res_blocks": 1, "attention_resolutions": ()},
    "adm": {"channels": 64, "multipliers": (1,), "num_res_blocks": 1, "attention_resolutions": ()},
    "edm2": {
        "channels": 16,
        "multipliers": (1,),
        "num_res_blocks": 1,
        "attention_resolutions": (),
        "head_channels": 16,
    },
    "dit": {"width": 16, "depth": 1, "heads": 2},
}


OPTIONS = {"rtol": 1e-3, "atol": 1e-3}
NETWORK_RUNS = {
    "adaptive": lambda sde, denoiser, x, keys: solve_adaptive(sde, denoiser, x, **OPTIONS).x,
    "adaptive_sde": lambda sde, denoiser, x, keys: solve_adaptive_sde(sde, denoiser, x, keys, rtol=0.1, atol=0.1).x,
    "hutchinson": lambda sde, denoiser, x, keys: log_likelihood(sde, denoiser, x, keys, **OPTIONS).log_prob,
    "decode_encoded": lambda sde, denoiser, x, keys: decode(
        sde, denoiser, encode(sde, denoiser, x, **OPTIONS), **OPTIONS
    ),
}


@cache
def network(name):
    """Return a network and its parameters, all of them random."""
    model = models.create(name, num_classes=3, label_dropout=0.1, **NETWORKS[name])
    params = jax.jit(model.init)(jax.random.key(1), jnp.zeros((2, 4, 4, 1)), jnp.zeros(2), LABELS[:2])["params"]
    rng = np.random.default_rng(2)
    return model, jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(p.dtype), params)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "run"),
    [("conditional", name) for name in NETWORK_RUNS] + [(kind, "adaptive") for kind in list(GUIDED)[1:]],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_in_a_batch_equal_examples_alone(name, kind, run, x64):
    """In double precision but for the noise level's embedding, which is float32; on edm, whose flow contracts."""
    sde, keys = edm(), jax.random.split(jax.random.key(1), 2)
    x = prior_sample(sde, jax.random.key(0), (2, 4, 4, 1)).astype(jnp.float64)
    model, params = network(name)

    def denoiser_of(labels):
        return make_denoiser(apply_fn(model, params, labels=labels), sde, preconditioning="edm")

    @jax.jit
    def compiled(x, labels, scales, keys):
        if kind == "classifier":
            mean_logits = lambda x, t: jnp.mean(x, axis=(1, 2)) * jnp.array([[1.0, 2.0, -1.0]])  # noqa: E731
            denoiser = classifier_guided(denoiser_of(labels), class_log_prob(mean_logits, labels), sde, scales)
        else:
            denoiser = GUIDED[kind](sde, denoiser_of, labels, scales)
        return NETWORK_RUNS[run](sde, denoiser, x, keys)

    start = x if run.startswith("adaptive") else x / sde.t_max
    together = compiled(start, LABELS[:2], SCALES[:2], keys)
    for i in range(2):
        alone = compiled(*same_rows((start, LABELS[:2], SCALES[:2], keys), i))
        np.testing.assert_allclose(alone, jnp.stack([together[i], together[i]]), atol=1e-6)
    assert np.abs(compiled(start, (LABELS[:2] + 1) % 3, SCALES[:2], keys) - together).max() > 1e-5, "labels do nothing"
