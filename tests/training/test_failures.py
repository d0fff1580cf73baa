"""Failures in training: damaged checkpoints, a full disk, a nonfinite loss, changed data."""

import errno
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from configs import toy2d
from score_sde.data.examples import Arrays
from score_sde.errors import UserError
from score_sde.evaluation.results import load_results
from score_sde.experiment import make_experiment, modes
from score_sde.experiment.modes import evaluate
from score_sde.runtime import weight_files
from score_sde.training import checkpoints, snapshots
from score_sde.training.data_record import check_inputs, class_names
from score_sde.training.load import CheckpointSpec
from score_sde.training.metrics import MetricsLog, read_log
from score_sde.training.state import TrainState
from score_sde.training.workdir import check_config, check_files, sole_writer
from tests.cli import POINTS, ROOT, environment
from tests.runs import load_params, train
from tests.thinned import thinned


def config(**training):
    config = toy2d.get_config()
    config.model.kwargs = {"features": (8,)}
    config.data.kwargs.num_examples = 100
    config.training.update(
        {
            "batch_size": 8,
            "num_steps": 40,
            "steps_per_call": 1,
            "log_every": 10,
            "checkpoint_every": 10,
            "sample_every": 1000,
            **training,
        }
    )
    config.sampling.num_samples = config.sampling.batch_size = 8
    config.sampling.num_steps = 2
    return config


def run(workdir, config, num_devices=1):
    devices = jax.devices()[:num_devices]
    experiment = make_experiment(config, devices)
    check_config(workdir, experiment.config)
    return train(experiment, workdir, devices)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    run(workdir, config())
    return workdir


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("damage", thinned((flip, truncate, Path.unlink), flip))
def test_the_checkpoint_before_a_damaged_one_is_used(finished, tmp_path, damage, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    expected = checkpoints.restore_newest(workdir)
    for step in (40, 30):
        damage(largest(workdir / "checkpoints" / str(step)))
    assert int(checkpoints.restore_newest(workdir)["step"]) == 20  # to sample from, nothing is moved
    assert not (workdir / "damaged").exists()
    run(workdir, config())
    said = capsys.readouterr().err
    assert "the checkpoint of step 40" in said and "the checkpoint of step 30" in said and "from step 20" in said
    assert {path.name for path in (workdir / "damaged").iterdir()} == {"40.0", "30.0"}
    again = checkpoints.restore_newest(workdir)
    jax.tree.map(np.testing.assert_array_equal, again, expected)


def test_flipped_bit_is_noticed_or_harmless(finished, tmp_path):
    """In every file of a checkpoint, one after another."""
    folder, expected = finished / "checkpoints" / "40", checkpoints.restore_newest(finished)
    noticed = []
    for file in (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        copy = tmp_path / "copy" / "checkpoints" / "40"
        shutil.copytree(folder, copy)
        flip(copy / file.relative_to(folder))
        try:
            jax.tree.map(np.testing.assert_array_equal, checkpoints.restore_newest(tmp_path / "copy"), expected)
        except UserError:
            noticed.append(file)
        shutil.rmtree(tmp_path / "copy")
    assert max(folder.rglob("*"), key=lambda path: path.stat().st_size * path.is_file()) in noticed


def test_checksum_changes_with_each_bit(x64):
    arrays = [np.arange(6.0).reshape(2, 3), np.float32([1, 2]), np.array([True, False]), np.int8([3]), np.int32(7)]
    arrays.append(np.asarray(jnp.bfloat16(1.5)))
    for array in arrays:
        (before,) = checkpoints.checksums([array])
        for bit in range(8 * array.nbytes) if array.dtype != bool else (0, 8):
            raw = bytearray(array.tobytes())
            raw[bit // 8] ^= 1 << bit % 8
            (after,) = checkpoints.checksums([np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)])
            assert np.all(np.asarray(before) != np.asarray(after))
    first, second = checkpoints.checksums([np.float32([1, 2]), np.float32([2, 1])])
    assert np.any(np.asarray(first) != np.asarray(second))


def test_checksum_is_equal_for_sharded_arrays():
    x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("devices",))
    sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices")))
    np.testing.assert_array_equal(*map(np.asarray, checkpoints.checksums([x, sharded])))


def test_exchanged_checkpoint_is_noticed(finished, tmp_path, capsys):
    workdir = copy(finished, tmp_path)
    shutil.rmtree(workdir / "checkpoints" / "40")
    shutil.copytree(workdir / "checkpoints" / "20", workdir / "checkpoints" / "40")
    assert int(checkpoints.restore_newest(workdir)["step"]) == 30
    assert "the checkpoint of step 40" in (said := capsys.readouterr().err) and "it holds step 20" in said


def test_when_no_checkpoint_can_be_read_nothing_is_moved(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    for step in steps:
        truncate(largest(workdir / "checkpoints" / str(step)))
    with pytest.raises(UserError, match="none of the checkpoints"):
        run(workdir, config())
    assert len(list((workdir / "checkpoints").iterdir())) == len(steps)


@pytest.mark.slow
def test_which_checkpoints_are_kept(tmp_path):
    """The last, every twentieth, and the best by the loss, which here falls."""
    run(tmp_path / "run", config(num_steps=60, keep_checkpoints=1, keep_every=20))
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"20", "40", "60"}
    for num_steps in (30, 60):  # a resumed run includes the earlier losses
        run(tmp_path / "best", config(num_steps=num_steps, keep_checkpoints=1, keep_best=2))
    records = [json.loads(line) for line in (tmp_path / "best" / "metrics.jsonl").read_text().splitlines()]
    best = sorted(records, key=lambda record: record["loss"])[:2]
    kept = {int(path.name) for path in (tmp_path / "best" / "checkpoints").iterdir()}
    assert kept == {record["step"] for record in best} | {60}


def broken_from(step):
    """A learning rate that makes the parameters infinite after so many steps."""
    made = config()
    made.optimizer.warmup_steps = 0
    made.optimizer.learning_rate = 1e38
    return made


def test_nonfinite_loss_records_its_step_and_examples(tmp_path):
    made = broken_from(0)
    with pytest.raises(UserError, match=r"is not finite from step (1|2|3) on") as error:
        run(tmp_path, made)
    assert "on_nonfinite=skip" in str(error.value) and "No checkpoint was saved" in str(error.value)
    (path,) = tmp_path.glob("nonfinite_*.json")
    figures = json.loads(path.read_text())
    experiment = make_experiment(made, jax.devices()[:1])
    batch = next(experiment.batches(experiment.load("train"), figures["step"]))
    assert figures["examples"] == batch["index"][0].tolist()
    key = jax.random.fold_in(experiment.training.key, figures["step"])
    assert figures["step_key"] == jax.random.key_data(key).tolist()


@pytest.mark.slow
def test_skipped_steps_are_counted_and_may_end_the_run(tmp_path):
    made = broken_from(0)
    made.training.update({"on_nonfinite": "skip", "num_steps": 200})
    with pytest.raises(UserError, match=r"every step is not finite from step (1|2|3) on"):
        run(tmp_path, made)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 0 < records[0]["skipped"] < 1 and np.isfinite(records[0]["loss"])
    assert [record["skipped"] for record in records[1:]] == [1.0] * (len(records) - 1) and len(records) >= 9


@pytest.mark.slow
def test_a_full_disk_is_one_error_and_loses_nothing(tmp_path):
    """On a file system of 900 kB, in a mount name space of its own; where that is not allowed, by the error's name."""
    small = tmp_path / "small"
    small.mkdir()
    flags = " ".join(f"'{flag}'" for flag in (*POINTS, "--config.training.keep_checkpoints=1000"))
    command = f"{sys.executable} launch.py {flags} --workdir={small}/run"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size=900k tmpfs {small} && {command}"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        assert checkpoints._is_full(RuntimeError()) is False
        error = RuntimeError("wrapped")
        error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
        assert checkpoints._is_full(error)
        return
    assert done.returncode == 2, done.stdout + done.stderr
    assert "is full" in done.stderr and "is whole" in done.stderr


def test_an_empty_folder_of_a_step_is_set_aside(finished, tmp_path, capsys):
    workdir = copy(finished, tmp_path)
    (workdir / "checkpoints" / "99").mkdir()
    assert int(checkpoints.restore_newest(workdir)["step"]) == 40
    assert "has finished its 40 steps" in run(workdir, config())
    assert "the checkpoint of step 99" in capsys.readouterr().err
    assert (workdir / "damaged" / "99.0").is_dir() and checkpoints.saved_steps(workdir)[-1] == 40


def test_checkpoint_without_checksums_is_not_verified(finished, tmp_path, capsys):
    """As earlier versions wrote them."""
    state = checkpoints.restore_newest(finished)
    with ocp.CheckpointManager(tmp_path / "checkpoints", item_handlers=ocp.StandardCheckpointHandler()) as manager:
        manager.save(40, args=ocp.args.StandardSave(state))
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore_newest(tmp_path), state)
    assert "without checksums, and isn't verified" in capsys.readouterr().err


def test_a_second_run_in_a_folder_is_refused(tmp_path):
    with sole_writer(tmp_path), pytest.raises(UserError, match=r"is in use: process \d+ on .* trains there"):
        run(tmp_path, config())
    assert not (tmp_path / "config.json").exists()  # nothing of the first is touched


@pytest.mark.parametrize("content", [b"{", b"", b"null", b"\xff"])
def test_a_damaged_config_is_one_sentence(finished, tmp_path, content, capsys):
    workdir = copy(finished, tmp_path)
    (workdir / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json can't be read .*remove that file"):
        run(workdir, config())
    shutil.rmtree(workdir / "checkpoints")
    check_config(workdir, {})  # nothing is trained yet
    assert "it is written again" in capsys.readouterr().err


def test_damaged_lines_of_a_log_are_set_aside(finished, tmp_path, capsys):
    workdir = copy(finished, tmp_path)
    path = workdir / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"\n", b'\n{"loss": 1}\n\xff\nnull\n{"step"\n', 1) + b'{"step": 50, "lo')
    records, damaged = read_log(path)
    assert [record["step"] for record in records] == [10, 20, 30, 40] and damaged == 4
    MetricsLog(workdir, first_step=40).close()
    assert path.read_bytes() == whole
    assert "has 4 line(s) that can't be read" in capsys.readouterr().err
    assert (workdir / "damaged" / "metrics.jsonl.0").is_file()
    MetricsLog(workdir, first_step=30).close()
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])


def test_a_resume_draws_the_picture_that_a_kill_prevented(finished, tmp_path):
    workdir = copy(finished, tmp_path)
    drawn = np.load(workdir / "samples" / "step_00000040.npz")["samples"]
    shutil.rmtree(workdir / "samples")
    run(workdir, config(num_steps=50, sample_every=40))
    np.testing.assert_allclose(np.load(workdir / "samples" / "step_00000040.npz")["samples"], drawn, atol=1e-6)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run that stored averages of two lengths at the steps 20 and 40."""
    workdir = tmp_path_factory.mktemp("averaged") / "run"
    run(workdir, config(ema_lengths=(0.05, 0.1), snapshot_every=20))
    return workdir


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink, lambda path: path.write_bytes(b"")])
def test_damaged_snapshots_are_refused_or_made_again(averaged, tmp_path, damage):
    workdir = copy(averaged, tmp_path)
    expected = snapshots.reconstruct_ema(workdir, 40, 0.07)
    damage(workdir / "snapshots" / "00000040_0.1.safetensors")
    with pytest.raises(UserError, match=r"00000040_0\.1\.safetensors .*ema_length=0"):
        snapshots.reconstruct_ema(workdir, 40, 0.07)
    run(workdir, config(ema_lengths=(0.05, 0.1), snapshot_every=20))  # of the step that the checkpoint is of
    jax.tree.map(np.testing.assert_array_equal, snapshots.reconstruct_ema(workdir, 40, 0.07), expected)
    damage(workdir / "snapshots" / "00000020_0.05.safetensors")
    with pytest.raises(UserError, match=r"00000020_0\.05\.safetensors"):
        snapshots.reconstruct_ema(workdir, 40, 0.07)


@pytest.mark.parametrize(
    ("target", "attack", "words"),
    [
        (
            "00000040_0.05",
            lambda path: shutil.copy(path.with_name("00000020_0.1.safetensors"), path),
            "holds an EMA of",
        ),
        ("00000030_0.1", lambda path: shutil.copy(path.with_name("00000020_0.1.safetensors"), path), "holds an EMA of"),
        ("00000020_0.05", lambda path: save_file(load_file(path), path), "holds an EMA of step None"),
        ("00000020_0.05", Path.unlink, "is missing"),
        ("00000040_0.1", Path.unlink, "is missing"),
        ("00000020_0.05", lambda path: (path.with_name("index.json").unlink(), path.unlink()), "is missing"),
    ],
)
def test_exchanged_snapshot_raises(averaged, tmp_path, target, attack, words):
    workdir = copy(averaged, tmp_path)
    attack(workdir / "snapshots" / f"{target}.safetensors")
    with pytest.raises(UserError, match=rf"{target}\.safetensors {words}"):
        snapshots.reconstruct_ema(workdir, 40, 0.07)


def test_snapshot_of_other_shapes_raises(averaged, tmp_path):
    workdir = copy(averaged, tmp_path)
    path = workdir / "snapshots" / "00000040_0.1.safetensors"
    names = sorted(file.name for file in path.parent.iterdir())
    small = {"a": np.zeros(2, np.float32)}
    weight_files.write_tree(path, small, "snapshot", {"step": 40, "length": 0.1, "snapshots": names})
    with pytest.raises(UserError, match="arrays of other names or shapes"):
        snapshots.reconstruct_ema(workdir, 40, 0.07)


def test_other_data_are_refused(finished, tmp_path):
    workdir = copy(finished, tmp_path)
    experiment = make_experiment(config(), jax.devices()[:1])
    source = experiment.load("train")
    points, labels = source.examples.images, source.examples.labels
    check_inputs(workdir, source, {}, resumed=True)
    fewer = source._replace(examples=Arrays(points[1:], labels[1:]))
    with pytest.raises(UserError, match="holds a run of other data: 100 examples then, 99 now"):
        check_inputs(workdir, fewer, {}, resumed=True)
    other = source._replace(examples=Arrays(np.concatenate([[points[0] + 1], points[1:]]), labels))
    with pytest.raises(UserError, match="as many examples, but not the same"):
        check_inputs(workdir, other, {}, resumed=True)
    (workdir / "data.json").unlink()  # as in a folder of before there were records
    check_inputs(workdir, other, {}, resumed=True)
    with pytest.raises(UserError, match="not the same"):
        check_inputs(workdir, source, {}, resumed=True)
    check_inputs(workdir, source, {}, resumed=False)


def test_other_weights_raise(finished, tmp_path):
    workdir = copy(finished, tmp_path)
    source = make_experiment(config(), jax.devices()[:1]).load("train")
    weights = {"loss.objective_kwargs.teacher": str(tmp_path / "teacher.safetensors")}
    (tmp_path / "teacher.safetensors").write_bytes(b"first")
    check_inputs(workdir, source, weights, resumed=True)
    check_inputs(workdir, source, weights, resumed=True)
    (tmp_path / "teacher.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match=r"other weights in .*teacher\.safetensors \(loss\.objective_kwargs\.teacher\)"):
        check_inputs(workdir, source, weights, resumed=True)


def test_other_class_names_raise(finished, tmp_path):
    workdir = copy(finished, tmp_path)
    source = make_experiment(config(), jax.devices()[:1]).load("train")
    check_inputs(workdir, source._replace(class_names=("cat", "dog")), {}, resumed=False)
    assert class_names(workdir) == ["cat", "dog"]
    with pytest.raises(UserError, match=r"the classes \['cat', 'dog'\] then, \['dog', 'cat'\] now"):
        check_inputs(workdir, source._replace(class_names=("dog", "cat")), {}, resumed=True)


def test_record_of_earlier_version_is_completed(finished, tmp_path):
    workdir = copy(finished, tmp_path)
    source = make_experiment(config(), jax.devices()[:1]).load("train")
    (workdir / "data.json").write_text('{"examples": 100, "fingerprint": "of 64 examples"}')
    check_inputs(workdir, source, {}, resumed=True)
    assert "sha256" in json.loads((workdir / "data.json").read_text())


def test_folder_in_place_of_file_raises(tmp_path):
    check_files(tmp_path / "new")
    for name in ("evaluation.json", "metrics.jsonl", "samples/step_00000010.png"):
        (tmp_path / name).mkdir(parents=True)
        with pytest.raises(UserError, match=rf"expected .*{name} to be a file, got one of another kind"):
            check_files(tmp_path)
        (tmp_path / name).rmdir()
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match=r"checkpoints to be a folder, got one of another kind"):
        check_files(tmp_path)


def test_a_failure_during_a_save_ends_the_save_first(tmp_path, monkeypatch):
    def fail(self, step, metrics):
        if step == 20:
            raise RuntimeError("a failure")

    monkeypatch.setattr(MetricsLog, "write", fail)
    with pytest.raises(RuntimeError, match="a failure"):
        run(tmp_path, config())
    assert checkpoints.saved_steps(tmp_path) == [10] and int(checkpoints.restore_newest(tmp_path)["step"]) == 10
    monkeypatch.undo()
    assert "trained 40 steps" in run(tmp_path, config())  # the folder is free again


def test_a_folder_that_is_gone_is_one_sentence(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("Directory does not exist")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", fail)
    with pytest.raises(UserError, match=r"no checkpoint can be saved in .*: Directory does not exist"):
        run(tmp_path, config())


@pytest.mark.slow
def test_training_goes_on_under_another_strategy_and_number_of_devices(tmp_path):
    """8 devices, then 4 in shards, then 8 again: the same batches and noise, so the same parameters to rounding."""
    whole, changing = tmp_path / "whole", tmp_path / "changing"
    run(whole, config(num_steps=30), 8)
    for num_steps, devices, strategy in ((10, 8, "pmap"), (20, 4, "fsdp"), (30, 8, "pmap")):
        run(changing, config(num_steps=num_steps, strategy=strategy), devices)
    first, second = (checkpoints.restore_newest(workdir) for workdir in (whole, changing))
    assert int(second["step"]) == 30
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["saves", "restores"])
def test_memory_stays_flat_over_saves_and_restores(tmp_path, what):
    """Of 50 the last 40 keep less than one state, whose 200 arrays are of 24 MiB."""
    params = {f"w{i}": np.full((3 * 2**20 // 100,), float(i), np.float32) for i in range(100)}
    manager = checkpoints.make_manager(tmp_path / "checkpoints", keep=1)

    def state(step):
        tree = jax.tree.map(jnp.asarray, params)
        return TrainState(jnp.int32(step), tree, jax.tree.map(jnp.copy, tree), {}, {})

    with checkpoints.closing(manager):
        for step in range(1, 51):
            if what == "saves" or step == 1:
                checkpoints.save(manager, state(step))
                checkpoints.finish(manager)
            if what == "restores":
                checkpoints.restore_newest(tmp_path)
            if step == 10:
                before = resident()
    assert resident() - before < sum(leaf.nbytes for leaf in jax.tree.leaves(state(0)))


@pytest.mark.slow
def test_memory_stays_flat_over_evaluations(tmp_path):
    """The last 40 of 50 leave less than 1/4 MiB each behind, which a program or an open checkpoint exceeds."""
    made = config(num_steps=10)
    made.evaluation.num_samples = 16
    made.evaluation.num_real = 50
    experiment = make_experiment(made, jax.devices()[:1])
    modes.train(experiment, tmp_path)
    for number in range(50):
        evaluate(experiment, tmp_path)
        if number == 9:
            before = resident()
    assert resident() - before < 40 * 2**18


def empty(path):
    path.write_bytes(b"")


DAMAGES = [flip, truncate, empty, Path.unlink]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_changes_nothing_silently(tmp_path, damage, capsys):
    """Every file of a finished run, one after another: train, sample and evaluate give the same, or say why not.

    Every damage of a file meets one of the four modes, in turn.
    """
    made = config(ema_lengths=(0.05, 0.1), checkpoint_every=20, snapshot_every=20, sample_every=20)
    made.evaluation.num_samples = 8
    devices = jax.devices()[:1]
    experiment, whole = make_experiment(made, devices), tmp_path / "whole"

    def lengthy(workdir):
        return load_params(experiment, workdir, CheckpointSpec(None, 0.0, 0.07))

    def newest(workdir):
        train(experiment, workdir, devices)
        return checkpoints.restore_newest(workdir)

    def evaluated(workdir):
        evaluate(experiment, workdir)
        return {name: value for name, value in load_results(workdir).items() if name != "curve"}

    modes = (lambda workdir: load_params(experiment, workdir), lengthy, evaluated, newest)
    newest(whole)
    evaluated(whole)
    expected = [mode(whole) for mode in modes]
    names = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert len(names) > 30
    for i, name in enumerate(names):
        turn = (i + DAMAGES.index(damage)) % len(modes)
        workdir = tmp_path / "run"
        shutil.copytree(whole, workdir)
        if damage is not flip or (workdir / name).stat().st_size:
            damage(workdir / name)
        capsys.readouterr()
        try:
            check_config(workdir, experiment.config)
            jax.tree.map(np.testing.assert_array_equal, modes[turn](workdir), expected[turn])
        except UserError as error:
            assert "\n" not in str(error), name
        except AssertionError:
            said = capsys.readouterr().err
            assert "can't be read" in said or "is missing" in said, (name, said)
        shutil.rmtree(workdir)
