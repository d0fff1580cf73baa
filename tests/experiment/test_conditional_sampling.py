"""Classes, guides and tasks from configs and from the command line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import vp_digits_classifier, vp_digits_conditional
from score_sde.errors import UserError
from score_sde.evaluation.accuracy import accuracy
from score_sde.evaluation.image_grid import by_class
from score_sde.evaluation.inverse_problems import Restorations, bicubic, psnr, restoration_metrics
from score_sde.experiment import make_experiment
from score_sde.model import NoisyClassifier
from score_sde.randomness import make_example_rngs
from score_sde.sampling import sample_batches
from score_sde.sde import prior_sample
from score_sde.solvers import ddim, solve, time_grid
from score_sde.training.load import write_weights
from tests.cli import TINY, finish, start

SMALL = {"channels": 8, "multipliers": (1,), "num_res_blocks": 1, "attention_resolutions": (), "dropout": 0.0}
CLASSIFIER = (
    "--config=configs/vp_digits_classifier.py",
    *TINY[1:],
    "--config.model.kwargs.head_channels=8",
    "--config.model.kwargs.groups=4",
    "--config.training.num_steps=10",
)


def config_of(**sampling):
    config = vp_digits_conditional.get_config()
    config.model.kwargs.update(SMALL)
    config.sampling.update({"num_steps": 4, "num_samples": 20, "batch_size": 20, **sampling})
    return config


def small_classifier():
    config = vp_digits_classifier.get_config()
    config.model.kwargs.update(SMALL | {"head_channels": 8, "groups": 4})
    return make_experiment(config, jax.devices()[:1])


def draw(experiment, params):
    (batch,) = experiment.sampler.batches(params)
    return batch.x


@pytest.fixture(scope="module")
def params():
    """Of no training, but such that the network's output depends on its labels."""
    shapes = jax.eval_shape(make_experiment(config_of(), jax.devices()[:1]).training.init_params)
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return tree.unflatten([0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)])


@pytest.mark.slow
def test_scale_zero_is_the_unconditional_sampler_bit_for_bit_and_one_the_conditional(params):
    experiment = make_experiment(config_of(guidance_scale=0.0), jax.devices()[:1])
    times = time_grid(experiment.model.sde, 4)

    def plain(labels_of):
        def run(keys, params, labels):
            sde = experiment.model.sde
            prior_keys, solver_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
            x = jax.vmap(lambda key: prior_sample(sde, key, (8, 8, 1)))(prior_keys)
            denoiser = experiment.model.denoiser(params, labels=labels)
            return solve(ddim(), sde, denoiser, x, times, solver_keys, denoise=True)

        inputs = lambda indices: {"labels": labels_of(indices)}  # noqa: E731
        key, devices = jax.random.split(jax.random.key(0), 3)[2], jax.devices()[:1]
        return next(sample_batches(run, key, 20, 20, devices, arguments={"params": params}, inputs=inputs)).x

    none, own = plain(lambda indices: jnp.full_like(indices, -1)), plain(lambda indices: indices % 10)
    np.testing.assert_array_equal(draw(experiment, params), none)
    np.testing.assert_array_equal(draw(make_experiment(config_of(), jax.devices()[:1]), params), own)
    assert not np.allclose(none, own, atol=1e-2)
    beyond = draw(make_experiment(config_of(guidance_scale=2.0), jax.devices()[:1]), params)
    assert not np.allclose(beyond, own, atol=1e-2)
    limited = config_of(guidance_scale=2.0, guidance_interval=(4.0, 5.0))  # between two times of the grid
    np.testing.assert_allclose(draw(make_experiment(limited, jax.devices()[:1]), params), own, atol=1e-4)


def test_a_label_is_every_samples_class(params):
    own = draw(make_experiment(config_of(), jax.devices()[:1]), params)
    three = make_experiment(config_of(label=3), jax.devices()[:1])
    assert three.sampler.labels(np.arange(4)).tolist() == [3] * 4
    same = draw(three, params)
    np.testing.assert_allclose(same[3], own[3], atol=1e-5)
    assert not np.allclose(same[4], own[4], atol=1e-2)


def test_a_grid_has_a_row_for_each_class():
    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    cells, columns = by_class(images, np.array([0, 1, 2, 0, 1, 2, 0]))
    assert columns == 3
    assert cells.ravel().tolist() == [0, 3, 6, 1, 4, 0, 2, 5, 0]


@pytest.mark.slow
def test_a_classifier_learns_and_its_loss_is_the_cross_entropy():
    """Of even logits the loss is log 10; on one batch over and over it falls below that, which is guessing's."""
    experiment = small_classifier()
    assert experiment.sampler is None and isinstance(experiment.model, NoisyClassifier)
    source = experiment.load("train")
    examples = [source.examples[i] for i in range(64)]
    x0 = jnp.stack([example["image"] for example in examples]) / 8.0 - 1.0
    labels = jnp.array([example["label"] for example in examples])
    params = experiment.training.init_params()
    clean = experiment.model.logits(params)(x0, experiment.model.sde.t_min)
    assert clean.shape == (64, 10)
    draw_of = make_example_rngs(jax.random.key(0), 0, jnp.arange(64), 64)
    loss = jax.jit(
        jax.value_and_grad(lambda params: experiment.training.loss_fn(params, x0, draw_of, labels=labels).mean())
    )
    state = experiment.training.optimizer.init(params)
    even = params | {"logits": jax.tree.map(jnp.zeros_like, params["logits"])}
    np.testing.assert_allclose(loss(even)[0], np.log(10), rtol=1e-6)

    @jax.jit
    def step(params, state):
        updates, state = experiment.training.optimizer.update(loss(params)[1], state, params)
        return jax.tree.map(lambda a, b: a + 20 * b, params, updates), state  # past the warm-up

    for _ in range(40):
        params, state = step(params, state)
    assert float(loss(params)[0]) < np.log(10)


@pytest.mark.slow
def test_a_classifier_run_trains_resumes_measures_exports_and_guides(tmp_path):
    classifier = tmp_path / "classifier"
    assert "trained 10 steps" in finish(start(classifier, *CLASSIFIER))
    finish(start(classifier, *CLASSIFIER, "--mode=evaluate"))
    assert "finished its 10 steps" in finish(start(classifier, *CLASSIFIER))
    assert Image.open(classifier / "samples" / "step_00000010.png").size == (600, 400)
    levels = json.loads((classifier / "evaluation.json").read_text())["accuracy"]["levels"]
    assert len(levels) == 11 and levels[0]["num_images"] == 297
    assert all(0 <= level["accuracy"] <= 1 and level["cross_entropy"] > 0 for level in levels)

    guided = (*TINY, "--config.training.num_steps=10", f"--config.sampling.guidance_weights={classifier}")
    assert "has not exported its weights" in finish(start(tmp_path / "run", *guided), expected=2)
    finish(start(classifier, *CLASSIFIER, "--mode=export"))
    assert "trained 10 steps" in finish(start(tmp_path / "run", *guided))
    finish(start(tmp_path / "run", *guided, "--mode=sample", "--config.sampling.guidance_scale=3.0"))
    drawn = np.load(tmp_path / "run" / "samples" / "step_00000010.npz")
    assert drawn["labels"].tolist() == list(range(10)) and drawn["images"].shape == (10, 8, 8, 1)


@pytest.mark.slow
def test_a_guide_of_another_process_shape_or_kind_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()  # a run's folder

    def words(change=lambda config: None, **sampling):
        config = config_of(guidance_weights=str(tmp_path), **sampling)
        change(config)
        with pytest.raises(UserError) as refused:
            make_experiment(config, jax.devices()[:1])
        return str(refused.value)

    def other_process(config):
        config.sde.kwargs = {"beta_max": 15.0}

    def other_size(config):
        config.data.image_size = 16

    assert "has not exported its weights" in words()
    classifier = small_classifier()
    params = classifier.training.init_params()
    write_weights(tmp_path / "ema_00000000.safetensors", params, classifier.config)
    assert "another SDE with other noise levels: vp" in words(other_process)
    assert "data of the shape (8, 8, 1), these are (16, 16, 1)" in words(other_size)
    assert "classifier guidance: need scale >= 0, got -1.0" in words(guidance_scale=-1.0)
    assert "have no effect on guidance by a classifier" in words(guidance_rescale=0.5)
    assert "the network has 5 classes and the guide 10" in words(
        lambda config: config.model.kwargs.update(num_classes=5)
    )
    assert "label 10" in words(label=10)

    guided = make_experiment(config_of(guidance_weights=str(tmp_path)), jax.devices()[:1]).sampler
    assert guided.arguments() is guided.arguments()  # the weights are copied to the device once
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(guided.arguments()))

    levels = accuracy(classifier.model, params, classifier.load("test"), seed=0, batch_size=64, num_images=50_000)
    assert len(levels) == 11 and levels[0]["num_images"] == 297
    assert all(0 <= level["accuracy"] <= 1 and level["cross_entropy"] > 0 for level in levels)


CONDITIONAL = {"num_classes": 10, "label_dropout": 0.1}
INPAINT = {"task": "inpaint", "samples_per_measurement": 5}


@pytest.mark.parametrize(
    ("kwargs", "sampling", "words"),
    [
        ({}, {"guidance_scale": 2.0}, "guidance_scale=2.0, .* have no effect"),
        ({"num_classes": 10}, {"guidance_scale": 2.0}, "guidance_scale=2.0 requires unconditional predictions"),
        (CONDITIONAL, {"guidance_rescale": 0.5}, "guidance_scale=1 disables guidance"),
        (CONDITIONAL, INPAINT | {"guidance_scale": 2.0}, "guidance of a task requires a target class"),
        ({}, {"guidance_family": "edm"}, "there is no guide"),
        ({}, {"task": "sdedit", "task_noise": 0.1}, "sdedit measures nothing"),
        ({}, INPAINT | {"samples_per_measurement": 0}, "samples_per_measurement must be an integer of at least 1"),
        ({"num_classes": 10}, INPAINT, "a task without --config.sampling.label requires unconditional predictions"),
        (CONDITIONAL, {"guidance_scale": 2.0, "guidance_interval": (3.0, 1.0)}, r"0 <= low < high, got \(3.0, 1.0\)"),
        (CONDITIONAL, {"guidance_scale": 2.0, "guidance_interval": (1e3, 1e4)}, "goes from 0.0105 to 152"),
        (CONDITIONAL, {"guidance_scale": 2.0, "guidance_rescale": 2.0}, "0 <= rescale <= 1, got 2.0"),
        (CONDITIONAL, {"label": 10}, "label 10: the network has the classes 0 to 9"),
        ({}, {"guidance_weights": "nowhere"}, "no weights at nowhere .set --config.sampling.guidance_weights"),
        ({}, {"task": "inpant"}, "unknown task 'inpant'.*Did you mean 'inpaint'"),
        ({}, {"task_noise": 0.1}, "there is no task, so its settings have no effect"),
        ({}, INPAINT | {"task_noise": -1.0}, "need noise >= 0, got -1.0"),
        ({}, INPAINT | {"samples_per_measurement": 3}, "20 samples are no whole number of images with 3"),
        ({}, INPAINT | {"task_kwargs": {"mask": "bx"}}, "unknown mask 'bx'.*Did you mean 'box'"),
        ({}, INPAINT | {"task_kwargs": {"mask": "none.npy"}}, "no mask in none.npy"),
        ({}, INPAINT | {"task_kwargs": {"share": 0}}, "need 0 < share < 1, got 0"),
        ({}, {"task": "super_resolve", "task_kwargs": {"factor": 3}}, r"got 3 for \(8, 8, 1\)"),
        ({}, {"task": "super_resolve", "task_kwargs": {"fctor": 2}}, "Did you mean 'factor'"),
        ({}, {"task": "colorize"}, r"images of the shape \(8, 8, 1\) have no colors"),
        ({}, {"task": "deblur", "task_kwargs": {"std": "wide"}}, "need std > 0 and a size"),
        ({}, {"task": "sdedit", "task_kwargs": {"strength": 2}}, "0 < strength <= 1, got 2"),
        ({}, INPAINT | {"method": "pidgm"}, "unknown method 'pidgm'.*Did you mean 'pigdm'"),
        ({}, INPAINT | {"method_kwargs": {"sigma": 1}}, "'pigdm' has no argument 'sigma'"),
        ({}, INPAINT | {"method": "dps", "solver": "unipc"}, "dps changes x between steps"),
        ({}, INPAINT | {"solver": "adaptive"}, "steps along a grid"),
    ],
)
def test_invalid_options_raise_before_sampling(kwargs, sampling, words):
    config = config_of(**sampling)
    config.model.kwargs = SMALL | kwargs
    with pytest.raises(UserError, match=words):
        make_experiment(config, jax.devices()[:1])


@pytest.mark.slow
def test_task_does_not_depend_on_batches_or_devices(params):
    """Compare 7 images with 2 completions in batches of 6 on 3 devices, and in one batch on one device."""
    asked = {
        "task": "inpaint",
        "task_noise": 0.1,
        "method": "replacement",
        "samples_per_measurement": 2,
        "num_samples": 14,
    }
    one = make_experiment(config_of(**asked), jax.devices()[:1])
    three = make_experiment(config_of(**asked | {"batch_size": 6}), jax.devices()[:3])
    parts = np.concatenate([batch.x for batch in three.sampler.batches(params, 14)])
    np.testing.assert_allclose(parts, draw(one, params), atol=1e-3)
    more = make_experiment(config_of(**asked | {"num_samples": 20}), jax.devices()[:1]).sampler.measured()
    np.testing.assert_array_equal(more.measurement[:7], one.sampler.measured().measurement)


def test_a_mask_from_a_file_is_read_and_one_of_another_shape_refused(tmp_path):
    seen = np.ones((8, 8))
    seen[2:5, 2:5] = 0
    for name, mask in (("whole.npy", seen), ("small.npy", seen[:4]), ("empty.npy", 0 * seen)):
        np.save(tmp_path / name, mask)
    Image.fromarray((255 * seen).astype(np.uint8)).save(tmp_path / "seen.png")

    def operator(name):
        config = config_of(**INPAINT, task_kwargs={"mask": str(tmp_path / name)})
        return make_experiment(config, jax.devices()[:1]).sampler.task.operator

    for name in ("whole.npy", "seen.png"):
        np.testing.assert_array_equal(operator(name).forward(jnp.ones((1, 8, 8, 1)))[0, ..., 0], seen)
    with pytest.raises(UserError, match=r"mask: its shape is \(4, 8\), the data's \(8, 8, 1\)"):
        operator("small.npy")
    with pytest.raises(UserError, match="0 of 64 features are seen"):
        operator("empty.npy")


@pytest.mark.slow
def test_a_task_from_the_command_line_leaves_pictures_and_figures(tmp_path):
    """Super-resolution with noise, by a network of hardly any training: replacement meets what is measured."""
    short = (*TINY, "--config.training.num_steps=10")
    finish(start(tmp_path, *short))
    task = (
        *short,
        "--config.sampling.task=super_resolve",
        "--config.sampling.task_noise=0.05",
        "--config.sampling.num_samples=12",
        "--config.sampling.samples_per_measurement=3",
        "--config.sampling.method=replacement",
        "--config.sampling.threshold=none",
    )
    assert "step_00000010_super_resolve.png" in finish(start(tmp_path, *task, "--mode=sample"))
    saved = np.load(tmp_path / "samples" / "step_00000010_super_resolve.npz")
    assert saved["truth"].shape == (4, 8, 8, 1) and saved["measured"].shape == (4, 4, 4, 1)
    assert saved["completions"].shape == (4, 3, 8, 8, 1)
    pooled = saved["truth"].reshape(4, 4, 2, 4, 2, 1).mean((2, 4))
    noise = saved["measured"] - pooled
    assert abs(noise.std() / 0.05 - 1) < 4 / np.sqrt(2 * noise.size)
    finish(start(tmp_path, *task, "--mode=evaluate"))
    figures = json.loads((tmp_path / "evaluation.json").read_text())["restore_super_resolve"]
    assert (figures["task"], figures["num_images"], figures["completions"]) == ("super_resolve", 4, 3)
    assert figures["consistency"] < 0.02  # noise^2 / (s^2 + noise^2) = 1% of what the network was off by
    assert figures["psnr_posterior_mean"] > figures["psnr_completions"]


def test_psnr_and_bicubic_are_what_they_are():
    truth = np.zeros((2, 4, 4, 1))
    assert abs(psnr(truth + 0.2, truth) - 10 * np.log10(4 / 0.04)) < 1e-9
    even = np.full((1, 2, 2, 1), 0.3, np.float32)
    np.testing.assert_allclose(bicubic(even, 4), 0.3, rtol=1e-6)


def test_figures_of_perfect_completions():
    config = config_of(task="inpaint", samples_per_measurement=2, label=3)
    experiment = make_experiment(config, jax.devices()[:1])
    source = experiment.load("test")
    truth = np.stack([source.examples[i]["image"] for i in range(10)]) / 8.0 - 1.0
    measured = np.asarray(experiment.sampler.task.operator.forward(jnp.asarray(truth)))
    figures = restoration_metrics(
        experiment.sampler.task,
        Restorations(truth, measured, np.repeat(truth[:, None], 2, 1)),
        experiment.load("train"),
        50,
    )
    assert figures["psnr_posterior_mean"] > 100 and figures["consistency"] < 1e-6
    assert 5 < figures["psnr_mean_image"] < 20
