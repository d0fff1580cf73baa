"""The command line from end to end, and its messages for wrong flags."""

import errno
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import launch
from tests.cli import POINTS, ROOT, TINY, environment, finish, start
from tests.tiny_cifar10 import write_cifar10

# Invalid flags, and words of the error messages.
REFUSED = [
    (("--config.model.name=ncsnpp",), ("preconditioning=log_sigma", "not under 'none'")),
    (
        ("--config=configs/vp_digits.py", "--config.model.pretrained=nowhere.safetensors"),
        ("no weights at nowhere.safetensors",),
    ),
    ((f"--workdir=runs/{'é' * 150}/a",), ("workdir: expected names of at most 255 bytes", "300", "--workdir")),
    (
        ("--config=configs/vp_digits.py", f"--config.model.pretrained={'a' * 300}.pth"),
        ("expected names of files of at most 255 bytes", "(set --config.model.pretrained)"),
    ),
    (
        ("--config=configs/vp_digits.py", "--config.sampling.particles=4"),
        ("particles: without guidance or a task all weights are equal", "--config.sampling.particles=1"),
    ),
    (
        ("--config=configs/vp_digits.py", "--config.sampling.task=inpaint", "--config.sampling.method=twistd"),
        ("unknown method 'twistd'", "Did you mean 'twisted'?"),
    ),
    (
        (
            "--config=configs/vp_digits.py",
            "--config.sampling.task=inpaint",
            "--config.sampling.method=twisted",
            "--config.sampling.particles=4",
        ),
        ("particles: expected a stochastic solver", "--config.sampling.solver=exponential_sde"),
    ),
    (("--config.sampling.t_max=0.2",), ("but the marginal at", "--config.sampling.t_max")),
    (("--config.likelihood.flow_map_steps=-1",), ("must be an integer of at least 0", "flow_map_steps")),
    (
        ("--config=configs/flow_map_digits.py", "--config.model.kwargs.outputs=2"),
        ("learns the mean divergence", "--config.loss.objective=progressive"),
    ),
    (("--mode=evalute",), ("unknown mode", "Did you mean 'evaluate'?")),
    (("--modee=train",), ("Unknown command line flag 'modee'", "Did you mean: mode")),
    (("--config.sampling=heun",), ("sampling: expected a dictionary with any of the keys", "got 'heun'")),
    (('--config.sampling={"solvr": "heun"}',), ("unknown config key", "Did you mean 'sampling.solver'?")),
    (("--config.training.lr=1",), ("Did you mean 'optimizer.learning_rate'?",)),
    (("--config.training.batchsize=8",), ("Did you mean 'training.batch_size'?",)),
    (
        ("--config.model.kwargs.dtype=bf16",),
        ("unknown dtype 'bf16'", "Did you mean 'bfloat16'?", "--config.model.kwargs"),
    ),
    (
        ("--config.model.kwargs.channels=30",),
        ("groups that divides 30 channels", "got 7", "--config.model.kwargs.groups"),
    ),
    (("--mode=plan", "--topology=v5e:4x5"), ("expected even sizes", "--topology=v5e:4x6")),
    (("--config.sed=1",), ("unknown config key 'sed'", "Did you mean 'seed'?")),
    (("--config.sdee.name=vp",), ("unknown config key 'sdee'", "Did you mean 'sde'?")),
    (("--config.sde.nmae=vp",), ("unknown config key 'sde.nmae'", "Did you mean 'sde.name'?")),
    (("--config.sde.name=vpp",), ("unknown SDE 'vpp'", "Did you mean 'vp'?", "--config.sde.name")),
    (("--config.sde.kwargs.beta_mx=3",), ("'vp' has no argument 'beta_mx'", "Did you mean 'beta_max'?")),
    (("--config.sde.kwargs.beta_max=0.01",), ("need 0 < beta_min < beta_max", "beta_max=0.01")),
    (("--config.seed.kwargs.a=3",), ("unknown config key 'seed.kwargs'",)),
    (("--config.model.name=ddpmp",), ("unknown model", "Did you mean 'ddpmpp'?")),
    (("--config.model.kwargs.chanels=4",), ("no argument 'chanels'", "Did you mean 'channels'?")),
    (("--config.model.kwargs.channels=many",), ("'channels': 'many'", "--config.model.kwargs")),
    (("--config.sde.kwargs.beta_max=many",), ("'vp' can't take {'beta_max': 'many'}", "--config.sde.kwargs")),
    (("--config.model.kwargs.multipliers=1,1,1,1,1",), ("8x8 is not a multiple of 16",)),
    (
        ("--config.model.prediction=eps",),
        ("unknown prediction", "Did you mean 'epsilon'? Known: epsilon, score, v, velocity, x0"),
    ),
    (("--config.sde.name=flow",), ("zero terminal SNR", "--config.model.prediction to v, x0 or velocity")),
    (("--config.sde.name=flow", "--config.model.preconditioning=edm"), ("alpha = 0",)),
    (("--config.model.preconditioning=edm", "--config.model.prediction=v"), ("'v' has no effect",)),
    (("--config.sde.kwargs.beta_max=3",), ("the prior is N(0, sigma(t_max)^2)", "log-SNR")),
    (("--config.sde.name=ve", "--config.sde.kwargs.sigma_max=2"), ("but the marginal at",)),
    (("--config.loss.weighting=min_snr", "--config.loss.weighting_kwargs.gama=2"), ("Did you mean 'gamma'?",)),
    (
        ("--config.loss.time_sampler=log_normal", "--config.loss.time_sampler_kwargs.mean=big"),
        ("the loss can't be computed with {'time_sampler_kwargs': {'mean': 'big'}}",),
    ),
    (("--config.loss.weighting_kwargs.gamma=2",), ("weighting 'simple' has no argument 'gamma'. It takes none.",)),
    (("--config.loss.weighing_kwargs.gamma=2",), ("Did you mean 'loss.weighting_kwargs'?",)),
    (("--config.loss.weighting=min_snr", "--config.loss.weighting_kwargs.gamma=-2"), ("need gamma > 0",)),
    (("--config.sampling.solver=dpm_solver",), ("unknown solver", "Did you mean 'dpm_solver_pp'?")),
    (
        ("--config.sampling.solver=unipc", "--config.sampling.kwargs.order=4"),
        ("the order must be one of (1, 2, 3), got 4",),
    ),
    (("--config.sampling.solver=unipc", "--config.sampling.kwargs.reach=big"), ("can't take {'reach': 'big'}",)),
    (("--config.sampling.solver=unipc", "--config.sampling.kwargs.ordr=2"), ("Did you mean 'order'?",)),
    (("--config.sampling.solver=adaptive", "--config.sampling.kwargs.rtol=small"), ("can't take {'rtol': 'small'}",)),
    (("--config.sampling.solver=adaptive", "--config.sampling.kwargs.method=rk45"), ("unknown method 'rk45'",)),
    (("--config.sampling.spacing=karas",), ("unknown spacing", "Did you mean 'karras'?")),
    (("--config.sampling.spacing=karras", "--config.sampling.spacing_kwargs.roh=3"), ("Did you mean 'rho'?",)),
    (("--config.sampling.end=0",), ("unknown end of a grid '0'", "--config.sampling.end")),
    (("--config.sampling.threshold=dynamc",), ("unknown threshold", "Did you mean 'dynamic'?")),
    (
        ("--config.sampling.threshold=dynamic", "--config.sampling.threshold_kwargs.percentile=120"),
        ("need 0 < percentile <= 100",),
    ),
    (
        ("--config.sde.name=flow", "--config.model.prediction=v", "--config.sampling.solver=adaptive_sde"),
        ("alpha reaches 0 there",),
    ),
    (
        ("--config.sampling.solver=predictor_corrector", "--config.sampling.kwargs.corrector=langevn"),
        ("unknown corrector 'langevn'", "Did you mean 'langevin'?"),
    ),
    (("--mode=likelihood", "--config.likelihood.divergence=exat"), ("Did you mean 'exact'?",)),
    (("--mode=certify", "--config.certify.reference_steps=1"), ("reference_steps >= 2",)),
    (("--config.loss.objective=explicit",), ("which is known of mixture and subspace",)),
    (("--config.loss.objective=ddpm",), ("this SDE has none", "ddpm_linear or ddpm_cosine")),
    (
        ("--config.sde.name=ddpm_linear", "--config.loss.objective=ddpm", "--config.model.preconditioning=edm"),
        ("a chain's network takes its timestep n",),
    ),
    (
        ("--config.sde.name=ddpm_linear", "--config.loss.objective=ddpm", "--config.loss.weighting=edm"),
        ("has no weighting, so 'edm' has no effect",),
    ),
    (
        ("--config.sde.name=ddpm_linear", "--config.loss.objective=ddpm", "--config.loss.time_sampler=importance"),
        ("requires uniform timesteps",),
    ),
    (("--config.sde.name=ddpm_linear", "--config.loss.objective=ddpm_hybrid"), ("takes 2 output(s)", "outputs=2")),
    (("--config.model.kwargs.outputs=2",), ("takes 1 output(s)",)),
    (
        ("--config.sde.name=ddpm_linear", "--config.loss.objective=ddpm", "--config.sampling.num_steps=1000"),
        ("at most 999",),
    ),
    (
        ("--config.sde.name=flow", "--config.model.prediction=v", "--config.sampling.solver=euler_maruyama"),
        ("alpha reaches 0 there",),
    ),
    (
        ("--config.sde.name=flow", "--config.model.prediction=v", "--config.loss.time_sampler=importance"),
        ("uniform in log-SNR, which is infinite at t = 1.0",),
    ),
    (("--config.loss.t_min=0.0", "--config.loss.time_sampler=importance"), ("infinite at t = 0.0",)),
    (("--config.data.sigma_data=0.0",), ("need sigma_data > 0",)),
    (("--config.data.image_size=0",), ("can't be built", "data of the shape (1,)")),
    (("--config.sampling.label=3",), ("label 3: the network is unconditional",)),
    (
        ("--config.model.kwargs.num_classes=10", "--config.sampling.label=10"),
        ("label 10: the network has the classes 0 to 9",),
    ),
    (
        ("--config.model.pretrained=x.safetensors", "--config.sde.name=ve"),
        ("decided by the weights", "model.kwargs.channels", ", sde.name", "can be given", "model.kwargs.dtype"),
    ),
    (("--config.loss.objective=classification",), ("expected both or neither for classification",)),
    (("--config=configs/vp_digits_classifier.py", "--mode=sample"), ("a classifier has nothing to sample",)),
    (("--config.sampling.task_kwargs.share=0.5",), ("there is no task", "--config.sampling.task")),
    (
        ("--config=configs/toy2d.py", "--config.sampling.task=inpaint"),
        ("tasks are of images, the data have the shape (2,)",),
    ),
    (("--config.training.strategy=fsdb",), ("unknown strategy", "Did you mean 'fsdp'?")),
    (("--config.training.on_nonfinite=skp",), ("Did you mean 'skip'?",)),
    (("--config.training.grad_accum_steps=3",), ("batch of 8 doesn't divide among 1 devices times 3 microbatches",)),
    (("--config.training.keep_every=15",), ("keep_every=15 is not a multiple of checkpoint_every=10",)),
    (("--config.sampling.ema_decay=0.5",), ("no average of decay 0.5 is kept",)),
    (("--config.optimizer.schedule=cosin",), ("Did you mean 'cosine'?",)),
    (("--mode=plan", "--topology=v5f:2x2"), ("unknown chip 'v5f'",)),
    (("--config.loss.weighting=smple",), ("Did you mean 'simple'?",)),
    (("--config.loss.objective=slice",), ("unknown objective", "Did you mean 'sliced'?")),
    (("--config.loss.time_sampler=uniforn",), ("Did you mean 'uniform'?",)),
    (("--config.loss.t_min=2.0",), ("0 <= t_min < 1.0",)),
    (("--config.data.name=digit",), ("unknown data set", "Did you mean 'digits'?")),
    (("--config.data.channels=3",), ("1 channels, not 3",)),
    (("--config.sampling.solver=dim",), ("unknown solver", "Did you mean 'ddim'?", "--config.sampling.solver")),
    (("--config.sampling.spacing=quadratc",), ("Did you mean 'quadratic'?",)),
    (("--config.sampling.batch_size=0",), ("batch_size must be an integer of at least 1",)),
    (("--config.evaluation.num_samples=0",), ("num_samples must be an integer of at least 2",)),
    (("--config.seed=-1",), ("seed must be 0 or more",)),
    (("--config.training.ema_decay=1.0",), ("0 <= ema_decay < 1",)),
    (("--config.model.kwargs.dropout=1.5",), ("0 <= dropout < 1",)),
    (("--config.model.kwargs.channels=2",), ("can't be built",)),
    (("--config.optimizer.kwargs.learning_rate=1",), ("--config.optimizer.learning_rate",)),
    (("--config.optimizer.name=adan",), ("Did you mean 'adam'?",)),
    (("--config.optimizer.learning_rate=-1.0",), ("need a finite learning_rate > 0",)),
    (("--config.training.batch_size=many",), ("training.batch_size: expected an integer, got 'many'",)),
    (("--config.training.log_every=0",), ("log_every must be an integer of at least 1",)),
    (("--config.training.steps_per_call=3",), ("num_steps=2000 is not a multiple of steps_per_call=3",)),
    (("--workdir=/proc/nowhere",), ("cannot write to /proc/nowhere",)),
    (("--mode=sample",), ("has no checkpoint",)),
    (("stray",), ("unexpected argument 'stray'",)),
    (("--config=configs/ve_cifar10.py:ncsnp_deep",), ("unknown variant", "Did you mean 'ncsnpp_deep'?")),
    (("--config=configs/vp_digits.py:x",), ("takes no variant",)),
    (("--config.likelihood.t_min=1.0",), ("0 <= t_min < 1",)),
    (("--config=configs/vp_digit.py",), ("no config file", "Did you mean 'configs/vp_digits.py'?")),
]

DRIVER = """
import os, sys
import launch
for line in sys.stdin:
    argv = eval(line)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.dup2(1, 2)
        sys.argv = argv
        launch.run()
        os._exit(0)
    print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def base_of(flags):
    """Return the base flags: images for networks and data, otherwise points, which build in half the time."""
    if flags[0].startswith("--config=configs/"):
        return ()
    return TINY if any(flag.startswith(("--config.model.", "--config.data.")) for flag in flags) else POINTS


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(REFUSED[::16], id="every sixteenth"),
        pytest.param([case for i, case in enumerate(REFUSED) if i % 16], id="others", marks=pytest.mark.slow),
    ],
)
def test_wrong_flags_get_one_sentence(refused, tmp_path):
    """One process imports once and forks for each case."""
    bases = [base_of(flags) for flags, _ in refused]
    folder = f"--workdir={tmp_path / 'run'}"
    calls = [["launch.py", *base, folder, *flags] for base, (flags, _) in zip(bases, refused, strict=True)]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input="".join(f"{call}\n" for call in calls),
        cwd=ROOT,
        env=environment() | {"PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert not (tmp_path / "run" / "checkpoints").exists(), "something was done before the refusal"
    answers = re.findall(r"(.*?)status (-?\d+)\n", done.stdout, re.DOTALL)
    assert len(answers) == len(refused)
    for (flags, expected), (text, status) in zip(refused, answers, strict=True):
        missing = [words for words in expected if words not in text]
        assert not missing and status == "2", (flags, text)
        assert "Traceback" not in text and len(text.strip().splitlines()) == 1, (flags, text)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_full_disk_is_reported_in_one_sentence(number, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number), "runs/a/evaluation.json")

    monkeypatch.setattr(launch.app, "run", fail)
    full = number == errno.ENOSPC
    with pytest.raises(SystemExit if full else PermissionError) as stopped:
        launch.run()
    if full:
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert "the disk is full" in said and "runs/a/evaluation.json" in said


@pytest.mark.slow
def test_devices_must_divide_the_batch(tmp_path):
    printed = finish(start(tmp_path, *POINTS, "--config.training.batch_size=12", devices=8), expected=2)
    assert "global batch of 12 doesn't divide among 8 devices" in printed


@pytest.mark.slow
def test_a_run_that_diverges_stops_and_saves_nothing_of_it(tmp_path):
    wild = ("--config.optimizer.learning_rate=1e30", "--config.optimizer.warmup_steps=0")
    printed = finish(start(tmp_path, *POINTS, *wild), expected=2)
    assert "is not finite from step 1 on" in printed and "No checkpoint was saved" in printed
    assert not any(path.name.isdigit() for path in (tmp_path / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "sample", "evaluate", "likelihood", "certify", "export"])
@pytest.mark.parametrize("platform", ["cuda", "tpu", "nonsense"])
def test_missing_platform_gets_one_sentence(tmp_path, platform, mode):
    command = [sys.executable, "launch.py", *POINTS, f"--workdir={tmp_path}", f"--mode={mode}"]
    variables = environment() | {"JAX_PLATFORMS": platform}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and f"JAX_PLATFORMS={platform}, got only cpu" in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.strip().splitlines()[-1].startswith("launch.py: devices")


SHORT = ("--config.training.num_steps=20", "--config.training.sample_every=10")


@pytest.mark.slow
def test_train_and_evaluate_write_their_files(tmp_path):
    printed = finish(start(tmp_path, *SHORT, devices=2))
    assert "trained 20 steps" in printed
    assert "2 cpu device(s), batch 8, 4 per device" in printed

    assert json.loads((tmp_path / "config.json").read_text())["training"]["batch_size"] == 8
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [10, 20]
    assert {"loss", "gradient_norm", "images_per_second", "steps_per_second"} <= records[-1].keys()
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"10", "20"}
    for step in (10, 20):
        stem = tmp_path / "samples" / f"step_{step:08d}"
        images = np.load(stem.with_suffix(".npz"))["images"]
        assert (images.shape, images.dtype) == ((10, 8, 8, 1), np.uint8)
        assert Image.open(stem.with_suffix(".png")).mode == "L"

    few = ("--config.evaluation.num_samples=40", "--config.evaluation.num_real=200", "--config.sampling.batch_size=40")
    few += ("--config.evaluation.features=('pixels',)",)
    finish(start(tmp_path, *SHORT, *few, "--mode=evaluate"))
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert (figures["step"], figures["num_samples"]) == (20, 40)
    assert [figures["data"][split]["number"] for split in ("train", "test")] == [200, 200]
    assert figures["fd_pixels_ratio"] > 2  # 20 steps draw no digits


@pytest.mark.slow
def test_finished_run_completes_its_samples_and_refuses_other_settings(tmp_path):
    finish(start(tmp_path, *POINTS, *SHORT))
    picture = tmp_path / "samples" / "step_00000020.png"
    # A run that was killed between its last checkpoint and its last samples writes them when it is started again.
    picture.unlink()
    assert "has finished its 20 steps" in finish(start(tmp_path, *POINTS, *SHORT))
    assert picture.exists()

    misfit = ("--config.training.num_steps=60", "--config.training.log_every=30", "--config.training.sample_every=60")
    misfit += ("--config.training.steps_per_call=30", "--config.training.checkpoint_every=30")
    printed = finish(start(tmp_path, *POINTS, *misfit), expected=2)
    assert "step 20, not a multiple of steps_per_call=30" in printed

    refused = finish(start(tmp_path, *POINTS, *SHORT, "--config.seed=1"), expected=2)
    assert "holds a run of another config: seed was 0, is 1" in refused


@pytest.mark.slow
def test_samples_are_the_same_on_other_devices_and_of_exported_weights(tmp_path):
    finish(start(tmp_path, *SHORT, devices=2))
    stem = tmp_path / "samples" / "step_00000020"
    images = np.load(stem.with_suffix(".npz"))["images"]

    # Samples depend on neither the batch nor the number of devices: 10 in batches of 8 on 2 devices, of 6 on 3.
    # A rounding of float32 may move a value across the middle between two of the 256 levels.
    drawn = images.astype(int)
    printed = finish(start(tmp_path, *SHORT, "--mode=sample", "--config.sampling.batch_size=5", devices=3))
    assert "10 samples of step 20" in printed
    again = np.load(stem.with_suffix(".npz"))["images"].astype(int)
    assert np.abs(drawn - again).max() <= 1

    # The exported EMA gives the same samples; its metadata describe the network.
    assert "ema_00000020.safetensors" in finish(start(tmp_path, *SHORT, "--mode=export"))
    other = ("--mode=sample", "--config=configs/flow_digits.py", *[flag for flag in TINY if ".sampling." in flag])
    weights = f"--config.model.pretrained={tmp_path / 'ema_00000020.safetensors'}"
    assert "10 samples of step 0" in finish(start(tmp_path / "adopted", *other, weights))
    again = np.load(tmp_path / "adopted" / "samples" / "step_00000000.npz")["images"].astype(int)
    assert np.abs(drawn - again).max() <= 1


@pytest.mark.slow
def test_an_exact_network_is_accepted_by_every_mode(tmp_path):
    """Nothing to train: sample and evaluate need no checkpoint, train says so; a picture and numbers each time."""
    mixture = ("--config=configs/mixture.py", "--config.sampling.num_steps=20", "--config.evaluation.num_samples=500")
    few = ("--config.sampling.num_samples=200", "--config.sampling.batch_size=200")
    assert "200 samples of step 0" in finish(start(tmp_path, *mixture, *few, "--mode=sample"))
    stem = tmp_path / "samples" / "step_00000000"
    samples = np.load(stem.with_suffix(".npz"))["samples"]
    assert (samples.shape, samples.dtype) == ((200, 2), np.float32)
    assert Image.open(stem.with_suffix(".png")).size == (1600, 440)  # data, samples and the score at two noise levels
    assert "nothing to train" in finish(start(tmp_path, *mixture, *few))
    np.testing.assert_array_equal(np.load(stem.with_suffix(".npz"))["samples"], samples)
    finish(start(tmp_path, *mixture, *few, "--mode=evaluate"))
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert figures["num_samples"] == 500
    assert 0 < figures["sliced_wasserstein_samples_train"] < 0.3  # 500 of 2 features: a few times 0.6 / sqrt(500)


@pytest.mark.slow
def test_points_are_trained_on_and_the_run_resumes(tmp_path):
    short = ("--config=configs/toy2d.py", "--config.training.num_steps=20", "--config.training.steps_per_call=10")
    short += tuple(f"--config.training.{every}_every=10" for every in ("log", "checkpoint", "sample"))
    short += (
        "--config.sampling.num_samples=64",
        "--config.sampling.num_steps=4",
        "--config.model.kwargs.features=(8,)",
    )
    printed = finish(start(tmp_path, *short))
    assert "10,000 points of 2 features" in printed
    assert np.load(tmp_path / "samples" / "step_00000020.npz")["samples"].shape == (64, 2)
    longer = (*short, "--config.training.num_steps=30")
    assert "from step 20" in finish(start(tmp_path, *longer))


@pytest.mark.slow
def test_the_cifar10_config_trains_on_a_tiny_set_of_its_format(tmp_path):
    """`configs/vp_cifar10.py` as it is, flips and dropout included, but for the network's width and depth."""
    write_cifar10(tmp_path)
    flags = [
        "--config=configs/vp_cifar10.py",
        f"--config.data.path={tmp_path}",
        "--config.model.kwargs.channels=8",
        "--config.model.kwargs.multipliers=(1,2)",
        "--config.model.kwargs.num_res_blocks=1",
        "--config.training.batch_size=4",
        "--config.training.num_steps=2",
        "--config.sampling.num_steps=2",
        "--config.sampling.num_samples=4",
        "--config.sampling.batch_size=4",
    ]
    command = [sys.executable, "launch.py", *flags, f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "12 images of 32x32x3, 256 levels" in done.stderr
    assert np.load(tmp_path / "run" / "samples" / "step_00000002.npz")["images"].shape == (4, 32, 32, 3)

    (tmp_path / "cifar10").rename(tmp_path / "elsewhere")
    command = [word.replace(str(tmp_path / "run"), str(tmp_path / "other")) for word in command]
    offline = environment() | {"https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(command, cwd=ROOT, env=offline, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert "tfds build cifar10 --file_format=array_record" in done.stderr


@pytest.mark.slow
def test_every_mode_runs_on_one_run(tmp_path):
    """Every mode on one tiny network that is trained on dequantized pixels; each mode finds the files that it needs."""
    flags = (
        "--config.training.num_steps=10",
        "--config.training.sample_every=10",
        "--config.data.dequantize=True",
        "--config.sampling.solver=unipc",
        "--config.sampling.spacing=karras",
        "--config.sampling.end=zero",
        "--config.sampling.threshold=clip",
        "--config.likelihood.num_examples=3",
        "--config.likelihood.vlb_num_steps=5",
        "--config.likelihood.rtol=0.1",
        "--config.likelihood.atol=0.1",
        "--config.certify.num_samples=2",
        "--config.certify.nfe=(4,)",
        "--config.certify.spacings=('karras',)",
        "--config.certify.reference_steps=8",
        "--config.certify.sde_num_steps=(2,4,8)",
        "--config.evaluation.num_samples=40",
        "--config.evaluation.num_real=200",
    )
    for mode in ("train", "sample", "evaluate", "likelihood", "certify"):
        printed = finish(start(tmp_path, *flags, f"--mode={mode}"))
        if mode == "sample":
            assert (tmp_path / "samples" / "step_00000010_denoising.png").is_file()
            assert "trajectories are in" in printed
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert abs(sum(figures["class_shares"]) - 1) < 1e-6
    assert 0 < figures["likelihood"]["bits_per_dim"]["mean"] < 50
    assert {row["solver"] for row in figures["certify"]["deterministic"]} >= {"heun", "unipc 3", "deis 3"}
    adaptive = ("--config.sampling.solver=adaptive", "--config.sampling.kwargs.rtol=0.1", "--mode=sample")
    assert "trajector" not in finish(start(tmp_path, "--config.data.dequantize=True", *adaptive))
