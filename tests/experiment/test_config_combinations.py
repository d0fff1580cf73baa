"""Everything in the mathematics is reached from a config: SDEs, predictions, weightings, objectives, exact networks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import ddpm_digits, edm_digits, flow_digits, mixture, subvp_digits, toy2d, ve_digits, vp_digits
from score_sde.data import Dataset
from score_sde.errors import UserError
from score_sde.evaluation.comparison import compare_points
from score_sde.experiment import make_experiment
from score_sde.parameterization import PREDICTIONS
from score_sde.randomness import make_example_rngs
from score_sde.sde import SDES
from score_sde.time_samplers import TIME_SAMPLERS
from score_sde.training.setup import build_train_step, check_data
from score_sde.training.state import initial_state
from score_sde.weightings import WEIGHTINGS
from tests.thinned import thinned

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 8, 1)).astype("float32")


def small(**values):
    """`configs/vp_digits.py` with a perceptron, as --config.<group>.<key>=<value> would change it."""
    config = vp_digits.get_config()
    config.model.name, config.model.kwargs = "mlp", {"features": (8,), "embedding": 4}
    config.sampling.num_steps, config.sampling.batch_size = 4, 8
    with config.unlocked(), config.ignore_type():
        for key, value in values.items():
            group, name = key.split("__")
            config[group][name] = value
    return config


def train_and_sample(experiments, num_steps=3):
    """Trains with every loss for a few steps, in one program, and samples once; all parameters, and the samples."""
    first = experiments[0]
    optimizer = optax.adam(1e-3)

    def train(params, experiment):
        state = optimizer.init(params)
        for step in range(num_steps):
            draw = make_example_rngs(experiment.training.key, step, jnp.arange(8), 8)

            def loss(params, draw=draw, step=step):
                return jnp.mean(experiment.training.loss_fn(params, IMAGES[step], draw))

            updates, state = optimizer.update(jax.grad(loss)(params), state)
            params = optax.apply_updates(params, updates)
        return params

    params = first.training.init_params()
    # Not compiled as a whole: what the experiments have in common, most of it, is then compiled once for all tests.
    results = [train(params, experiment) for experiment in experiments]
    return results, next(first.sampler.batches(results[0], 8)).x


def finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


USUAL = {("vp", "epsilon"), ("flow", "velocity")}  # the others are slow
PAIRS = [
    pytest.param(sde, prediction, marks=() if (sde, prediction) in USUAL else pytest.mark.slow)
    for sde in SDES
    for prediction in PREDICTIONS
]


@pytest.mark.parametrize(("sde", "prediction"), PAIRS)
def test_every_sde_prediction_and_weighting_trains_and_samples(sde, prediction):
    """A few steps with each weighting, then a sample; what makes no sense is refused with the reason."""

    def make(weighting):
        return make_experiment(
            small(sde__name=sde, model__prediction=prediction, loss__weighting=weighting), jax.devices()[:1]
        )

    if sde in ("flow", "vp_cosine") and prediction in ("epsilon", "score"):
        with pytest.raises(UserError, match="zero terminal SNR"):
            make("simple")
        return
    steps = 3 if sde == "vp" else 1
    results, samples = train_and_sample([make(weighting) for weighting in WEIGHTINGS], steps)
    for weighting, trained in zip(WEIGHTINGS, results, strict=True):
        assert finite(trained), weighting
    assert np.isfinite(samples).all()
    if sde != "vp":
        return  # where a weighting's bend lies may be out of the range of times: edm's SNR is hardly above min_snr's
    kernels = [trained["perceptron"]["out"]["kernel"] for trained in results]
    same = {("simple", "snr"), ("snr", "simple")}  # one weighting by two names; all others train otherwise
    for i, a in enumerate(WEIGHTINGS):
        for j, b in enumerate(WEIGHTINGS):
            if i != j and (a, b) not in same:
                assert not np.array_equal(kernels[i], kernels[j]), (a, b)


@pytest.mark.parametrize("preconditioning", thinned(("vp", "ve", "edm", "log_snr"), "edm"))
def test_every_preconditioning_trains_and_samples_under_every_sde(preconditioning):
    for sde in SDES:
        config = small(sde__name=sde, model__preconditioning=preconditioning)
        if sde in ("flow", "vp_cosine"):
            with pytest.raises(UserError, match="alpha = 0"):
                make_experiment(config, jax.devices()[:1])
        else:
            results, samples = train_and_sample([make_experiment(config, jax.devices()[:1])], 2)
            assert finite(results)
            assert np.isfinite(samples).all()


@pytest.mark.slow
def test_every_time_sampler_objective_and_chain_trains():
    """In one program: time samplers, then objectives with their keyword arguments, then the chain's two losses."""
    values = [{"loss__time_sampler": name} for name in TIME_SAMPLERS]
    values += [
        {"loss__objective": "sliced", "loss__objective_kwargs": {"num_projections": 2, "variance_reduced": False}},
        {"loss__objective": "implicit", "loss__objective_kwargs": {"num_probes": 2}},
        {"loss__objective": "implicit", "loss__objective_kwargs": {"exact": True}},
        {"sde__name": "ddpm_linear", "loss__objective": "ddpm"},
        {"sde__name": "ddpm_cosine", "loss__objective": "ddpm", "model__prediction": "v"},
    ]
    experiments = [make_experiment(small(**value), jax.devices()[:1]) for value in values]
    results, _ = train_and_sample(experiments, 2)
    for value, trained in zip(values, results, strict=True):
        assert finite(trained), value
    hybrid = small(
        sde__name="ddpm_linear",
        loss__objective="ddpm_hybrid",
        loss__objective_kwargs={"vlb_weight": 0.01, "levels": 17},
        model__kwargs={"features": (8,), "embedding": 4, "outputs": 2},
    )
    results, samples = train_and_sample([make_experiment(hybrid, jax.devices()[:1])], 2)
    assert finite(results)
    assert samples.shape == (8, 8, 8, 1)


def hybrid(**values):
    chain = {"num_steps": 4, "beta_start": 1e-3, "beta_end": 0.999}  # so that a batch meets n = 0
    network = {"features": (8,), "embedding": 4, "outputs": 2}
    of_chain = {"sde__name": "ddpm_linear", "sde__kwargs": chain, "sampling__num_steps": 3}
    config = small(loss__objective="ddpm_hybrid", model__kwargs=network, **of_chain, **values)
    return make_experiment(config, jax.devices()[:1])


@pytest.mark.slow
def test_decoder_term_has_the_levels_of_the_data():
    pixels = np.random.default_rng(0).integers(0, 17, (16, 8, 8, 1), np.uint8)

    def loss(levels, **values):
        experiment = hybrid(**values)
        state = experiment.training.init_state()
        return float(jax.jit(build_train_step(experiment.training, levels, None))(state, {"image": pixels})[1]["loss"])

    of_data = loss(17)
    assert of_data == loss(17, loss__objective_kwargs={"levels": 17})
    assert of_data < loss(17, loss__objective_kwargs={"levels": 256})  # finer levels are less probable


@pytest.mark.parametrize(
    ("levels", "values", "words"), [(None, {}, "got real numbers"), (17, {"data__dequantize": True}, "got dequantized")]
)
def test_decoder_term_needs_pixels_on_levels(levels, values, words):
    source = Dataset(range(8), (8, 8, 1), levels, 10)
    with pytest.raises(UserError, match=words):
        check_data(hybrid(**values).training, source, 1)


@pytest.mark.parametrize(
    "config",
    thinned(
        (edm_digits, flow_digits, subvp_digits, ve_digits, ddpm_digits, toy2d, mixture), edm_digits, toy2d, mixture
    ),
    ids=lambda c: c.__name__,
)
def test_the_configs_build(config):
    experiment = make_experiment(config.get_config(), jax.devices()[:1])
    draw = make_example_rngs(experiment.training.key, 0, jnp.arange(4), 4)
    params = jax.eval_shape(experiment.training.init_params)
    losses = jax.eval_shape(
        lambda params: experiment.training.loss_fn(params, jnp.ones((4, *experiment.model.event_shape)), draw), params
    )
    assert losses.shape == (4,)


@pytest.mark.slow
def test_explicit_score_matching_trains_on_a_mixture():
    """The one objective that needs the truth: with an exact network it is zero, which the denoising loss is not."""
    losses = {}
    for objective in ("explicit", "denoising"):
        config = mixture.get_config()
        config.loss.objective = objective
        experiment = make_experiment(config, jax.devices()[:1])
        x0 = jnp.asarray(experiment.load("train").examples.images[:64])
        draw = make_example_rngs(experiment.training.key, 0, jnp.arange(64), 64)
        losses[objective] = experiment.training.loss_fn({}, x0, draw)
    assert losses["explicit"].max() < 1e-6
    assert losses["denoising"].mean() > 0.05


@pytest.mark.parametrize("sde", thinned([*SDES, "ddpm_linear"], "vp", "ddpm_linear"))
@pytest.mark.parametrize("prediction", thinned(("v", "x0"), "v"))
def test_an_exact_network_draws_the_mixture(sde, prediction):
    """From the config to samples: no farther from the data than 1.5 times a second draw of data is."""
    config = mixture.get_config()
    config.sde.name, config.model.prediction = sde, prediction
    config.sampling.spacing = "quadratic"  # finer where t, and for edm sigma, is small
    if sde == "ve":
        config.sampling.num_steps = 400
    experiment = make_experiment(config, jax.devices()[:1])
    assert not experiment.training.trainable
    samples = np.concatenate([batch.x for batch in experiment.sampler.batches(experiment.training.init_params(), 4000)])
    train, test = (experiment.load(split).examples.images[:4000] for split in ("train", "test"))
    assert compare_points(samples, train, test)["sliced_wasserstein_ratio"] < 1.5


def test_exact_networks_are_shown_what_they_need():
    config = mixture.get_config()
    config.model.preconditioning = "edm"
    with pytest.raises(UserError, match="'edm' has no effect"):
        make_experiment(config, jax.devices()[:1])


@pytest.mark.slow
def test_labels_reach_the_network_in_training_and_are_hidden_by_option():
    """The labels change the loss of a network with classes, but not where all are hidden; without classes none does."""
    kwargs = {"channels": 4, "multipliers": (1,), "num_res_blocks": 1, "attention_resolutions": (), "dropout": 0.0}
    draw = make_example_rngs(jax.random.key(0), 0, jnp.arange(8), 8)
    labels = jnp.arange(8)

    def losses(**options):
        config = small(model__name="ddpmpp", model__kwargs=kwargs | options)
        experiment = make_experiment(config, jax.devices()[:1])
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(experiment.training.init_params)
        params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes)
        loss = jax.jit(lambda given: experiment.training.loss_fn(params, IMAGES[0], draw, labels=given))
        told, untold = loss(labels), loss(None)
        return np.asarray(told), np.asarray(untold)

    told, untold = losses(num_classes=10)
    assert np.abs(told - untold).min() > 1e-6
    np.testing.assert_array_equal(*losses(num_classes=10, label_dropout=0.9999999))


@pytest.mark.slow
def test_network_is_conditioned_on_augmentations():
    """A train step updates the embedding of every augmentation label; a network without one raises an error."""
    kwargs = {"channels": 4, "multipliers": (1,), "num_res_blocks": 1, "attention_resolutions": (), "dropout": 0.0}
    with pytest.raises(UserError, match=r"augment_dim=9"):
        make_experiment(small(model__name="ddpmpp", model__kwargs=kwargs, data__augment=0.5), jax.devices()[:1])
    config = small(model__name="ddpmpp", model__kwargs=kwargs | {"augment_dim": 9}, data__augment=0.5)
    experiment = make_experiment(config, jax.devices()[:1])
    rng = np.random.default_rng(0)  # away from layers of zeros, through which no gradient passes
    shapes = jax.eval_shape(experiment.training.init_params)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes)
    state = initial_state(params, experiment.training.optimizer, experiment.training.ema)
    batch = {"image": rng.integers(0, 17, (8, *experiment.model.event_shape), np.uint8)}
    train_step = jax.jit(build_train_step(experiment.training, 17, None))
    for _ in range(2):  # the rate is 0 in the first
        state, metrics = train_step(state, batch)
    assert np.isfinite(float(metrics["loss"]))
    moved = state.params["noise"]["augment"]["kernel"] - params["noise"]["augment"]["kernel"]
    assert float(jnp.abs(moved).max(1).min()) > 0  # each of the nine numbers
