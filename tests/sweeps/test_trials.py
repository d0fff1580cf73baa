"""Trials of a sweep, errors before any trial starts, and the report of finished trials."""

import csv
import io
import json

import pytest

from score_sde.errors import UserError
from score_sde.experiment import overrides
from score_sde.models import blocks
from score_sde.sweeps import axis, chain, product, sweep, where, zip_axes
from score_sde.sweeps.check import check, estimates
from score_sde.sweeps.progress import lines
from score_sde.sweeps.report import as_cells, as_csv, as_latex, as_markdown, group_by_overrides, write_report
from score_sde.sweeps.settings import check_sweep
from score_sde.sweeps.trials import commands, make_trials, read_state, write_state
from tests.cli import parse
from tests.thinned import thinned

BASE = "configs/vp_digits.py"
SMALL = {"model.kwargs.channels": 8, "model.kwargs.multipliers": (1,), "model.kwargs.attention_resolutions": ()}


def made(trials, workdir, **changes):
    settings = sweep(BASE, trials, changes.pop("metrics", ("train.loss",)), SMALL, **changes)
    check_sweep(settings)
    return make_trials(settings, workdir), settings


def test_axes_combine():
    a, b = axis("a", (1, 2)), axis("b", (3, 4))
    assert product(a, b) == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]
    assert zip_axes(a, b) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert chain(a, b) == [{"a": 1}, {"a": 2}, {"b": 3}, {"b": 4}]
    assert where(a, {"a": 1}, b) == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2}]
    with pytest.raises(UserError, match="two axes of a product set a"):
        product(a, a)
    with pytest.raises(UserError, match="of one length, got 2, 3"):
        zip_axes(a, axis("b", range(3)))


def test_trial_is_identified_by_its_whole_config(tmp_path):
    """An axis that includes the value of the base keeps the existing trials and their folders."""
    first, _ = made(axis("model.prediction", ("x0", "epsilon")), tmp_path, seeds=(0, 1))
    assert [(trial.overrides["model.prediction"], trial.seed) for trial in first] == [
        ("x0", 0),
        ("x0", 1),
        ("epsilon", 0),
        ("epsilon", 1),
    ]
    assert len({trial.folder for trial in first}) == 4
    for trial in first:
        trial.folder.mkdir(parents=True)
    wider = product(axis("model.prediction", ("x0", "epsilon")), axis("sde.name", ("vp", "ve")))
    second, _ = made(wider, tmp_path, seeds=(0, 1, 2))
    assert len(second) == 12
    assert {trial.folder for trial in first} <= {trial.folder for trial in second}
    same, _ = made(axis("model.prediction", ("epsilon", "epsilon")), tmp_path)
    assert len(same) == 1


def test_the_command_line_of_a_trial_gives_its_config(tmp_path):
    values = {"sde.kwargs.beta_max": 10.0, "loss.weighting_kwargs.gamma": 3, "model.prediction": "v"}
    (trial,), settings = made([values | {"data.random_flip": True, "certify.nfe": (4, 8)}], tmp_path)
    (command,) = commands(trial, settings, ["train"])
    (parsed,) = parse([command[1:]])
    assert parsed["config"] == json.loads(json.dumps(trial.config.to_dict()))
    assert parsed["mode"] == "train"


def test_invalid_overrides_raise():
    config = overrides.load(BASE)
    assert overrides.override(config, {"optimizer.learning_rate": 1}).optimizer.learning_rate == 1.0
    for changes, message in (
        ({"model.predction": "x0"}, "unknown config key 'model.predction'. Did you mean 'model.prediction'?"),
        ({"model.prediction": 3}, "model.prediction: expected text, got 3"),
        ({"model": "dit"}, "model: expected a dictionary with any of the keys"),
        ({"model": {"kwargs": {}, "nme": "dit"}}, "unknown config key 'model.nme'. Did you mean 'model.name'?"),
    ):
        with pytest.raises(UserError) as error:
            overrides.override(config, changes)
        assert message in str(error.value)
    with pytest.raises(UserError, match=r"no config file 'configs/none\.py'"):
        overrides.load("configs/none.py")


@pytest.mark.slow
def test_invalid_sweeps_raise_before_any_trial_starts(tmp_path):
    for trials, changes, message in (
        ([{"sde.name": "vpp"}], {}, r"the trial 'name vpp' can't be run: unknown SDE 'vpp'.*Did you mean 'vp'"),
        ([{}], {"metrics": ("fd_clasifier_ratio",)}, r"writes 'fd_clasifier_ratio'.*mean 'fd_classifier_ratio'"),
        ([{}], {"metrics": ("likelihood.bits_per_dim.mean",)}, "no mode of train, evaluate writes"),
        ([{}], {"metrics": ("train.los",)}, r"Did you mean 'train\.loss'"),
        ([{}], {"stop_metric": "lss"}, "no training logs 'lss'"),
    ):
        found, settings = made(trials, tmp_path, **changes)
        with pytest.raises(UserError, match=message):
            check(found, settings)
    names = ("fd_classifier_1000.mean", "overlap_pixels_1000.recall:max", "likelihood.bits_per_dim.mean", "nfe")
    check(*made([{}], tmp_path, metrics=names, modes=("train", "evaluate", "likelihood")))
    for changes, message in (
        ({"modes": ("evaluate",)}, "either train or measure one run's checkpoints"),
        ({"modes": ("train", "draw")}, "expected some of train, evaluate"),
        ({"seeds": (1, 1)}, "each seed is run once"),
        ({"cpus": -1.0}, "needs cpus >= 0.0, got -1.0"),
        ({"seed": (1,)}, "a sweep has no seed"),
        ({"stop_metric": "loss", "stop_factor": 1}, "stop_factor >= 2"),
    ):
        with pytest.raises(UserError, match=message):
            made([{}], tmp_path, **changes)
    with pytest.raises(UserError, match="a trial's seed is set by the sweep's seeds"):
        made([{"seed": 3}], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_cost_is_estimated_from_the_network(tmp_path):
    trials, settings = made(axis("training.batch_size", (8, 16)), tmp_path)
    small, large = estimates(trials, settings)
    assert small.parameters == large.parameters
    assert large.flops / small.flops == pytest.approx(2, rel=0.01)
    assert small.seconds > 0


def finished(trial, loss, quality, seconds=36.0):
    write_state(trial.folder, read_state(trial.folder) | {"status": "done", "seconds": seconds, "commit": "abc"})
    (trial.folder / "metrics.jsonl").write_text(json.dumps({"step": 10, "loss": loss}) + '\n{"step": 20, "lo')
    (trial.folder / "evaluation.json").write_text(json.dumps({"quality": {"mean": quality}}))


def test_table_holds_means_over_seeds(tmp_path):
    metrics = ("train.loss", "quality.mean:max")
    trials, settings = made(
        axis("model.prediction", ("x0", "epsilon", "v")), tmp_path, seeds=(0, 1), metrics=metrics, cpus=2.0
    )
    for trial, loss, quality in zip(trials[:4], (1.0, 3.0, 4.0, 4.0), (0.5, 0.5, 0.25, 0.75), strict=True):
        finished(trial, loss, quality)
    write_state(trials[4].folder, read_state(trials[4].folder) | {"status": "failed", "error": "it broke <here>"})
    write_state(trials[5].folder, read_state(trials[5].folder) | {"status": "running", "mode": "train"})
    rows = group_by_overrides(trials, settings)
    head, *body = as_cells(rows, settings)
    assert head == ["model.prediction", "train.loss", "quality.mean", "seeds", "chip-hours", "commit"]
    assert body[0] == ["x0", "**2.0 ± 1.4**", "**0.5**", "2", "0.040", "abc"]
    assert body[1] == ["epsilon", "4", "0.50 ± 0.35", "2", "0.040", "abc"]
    assert body[2] == ["v", "-", "-", "0 (1 failed, 1 running)", "0.000", ""]
    assert "| x0 | **2.0 ± 1.4** |" in as_markdown(rows, settings)
    assert r"\textbf{2.0 $\pm$ 1.4}" in as_latex(rows, settings)
    assert as_latex(rows, settings).count(r"\\") == 4
    table = list(csv.DictReader(io.StringIO(as_csv(rows, settings))))
    assert [line["train.loss"] for line in table] == ["1.0", "3.0", "4.0", "4.0", "", ""]
    assert [line["status"] for line in table][3:] == ["done", "failed", "running"]
    assert lines(trials)[-1].startswith("6 trials: 4 done, 1 running, 1 failed, about 0:36 left")
    page = write_report(trials, settings, tmp_path).read_text()
    assert "it broke &lt;here&gt;" in page and "<b>2.0 ± 1.4</b>" in page
    assert page.count("data:image/png;base64,") == 2  # the axis and the learning curves are embedded
    assert (tmp_path / "axis_model.prediction.png").is_file()


HOSTILE = ("=1+1", "a|b", "_c_", "$d$", "50% & {x}\\y~^#", "**e**", "<script>")


def test_values_are_plain_text_in_every_report(tmp_path):
    trials, settings = made(
        axis("data.path", HOSTILE), tmp_path, metrics=("train.loss", "quality.mean"), modes=("train", "evaluate")
    )
    for trial in trials:
        finished(trial, 1.0, 0.5)
    rows = group_by_overrides(trials, settings)
    table = list(csv.DictReader(io.StringIO(as_csv(rows, settings))))
    assert [line["data.path"] for line in table] == ["'=1+1", *HOSTILE[1:]]
    cells = [line.split(" | ")[0] for line in as_markdown(rows, settings).splitlines()[2:]]
    assert cells[:3] == [r"| =1+1", r"| a\|b", r"| \_c\_"] and cells[5:] == [r"| \*\*e\*\*", r"| \<script\>"]
    cells = [line.split(" & ")[0] for line in as_latex(rows, settings).splitlines()[4:]]
    assert cells[:4] == ["=1+1", r"a\textbar{}b", r"\_c\_", r"\$d\$"]
    assert r"50\% \& \{x\}\textbackslash{}y\textasciitilde{}\textasciicircum{}\#" in as_latex(rows, settings)
    page = write_report(trials, settings, tmp_path).read_text()
    assert "<script>" not in page and "<td>**e**</td>" in page


@pytest.mark.parametrize("content", thinned((b"", b"{", b"\xff\xfe", b"null", b"[" * 100_000, None), b"{", None))
@pytest.mark.parametrize("name", ["trial.json", "evaluation.json", "metrics.jsonl"])
def test_damaged_trial_is_reported(tmp_path, name, content):
    trials, settings = made(
        axis("model.prediction", ("x0", "v")),
        tmp_path,
        metrics=("train.loss", "quality.mean"),
        modes=("train", "evaluate"),
    )
    for trial in trials:
        finished(trial, 1.0, 0.5)
    if content is None:
        (trials[0].folder / name).unlink()
    else:
        (trials[0].folder / name).write_bytes(content)
    rows = group_by_overrides(trials, settings)
    first, second = csv.DictReader(io.StringIO(as_csv(rows, settings)))
    missing = (name, content) == ("trial.json", None)  # it looks like a trial that has not started
    assert first["status"] == ("new" if missing else "damaged") and second["status"] == "done"
    assert first["train.loss"] == "" and second["train.loss"] == "1.0"
    page = write_report(trials, settings, tmp_path).read_text()
    assert missing or f"damaged: {name} can&#x27;t be read" in page
    assert lines(trials)[-1].startswith("2 trials: ")


def test_a_long_value_gives_a_short_folder_name(tmp_path):
    """A name has at most 255 bytes."""
    (trial,), _ = made([{"data.path": "\N{MATHEMATICAL BOLD SMALL A}" * 60}], tmp_path)
    trial.folder.mkdir(parents=True)
    assert len(trial.folder.name.encode()) < 100
    (again,), _ = made([{"data.path": "\N{MATHEMATICAL BOLD SMALL A}" * 60}], tmp_path)
    assert again.folder == trial.folder


@pytest.mark.slow
def test_trials_that_share_a_network_build_it_once(tmp_path, monkeypatch, capsys):
    rates = [1e-4 * (1 + i) for i in range(20)]
    calls = []
    monkeypatch.setattr(blocks.ResidualBlock, "__call__", counted(blocks.ResidualBlock.__call__, calls))
    trials, settings = made(axis("optimizer.learning_rate", rates[:1]), tmp_path)
    check(trials, settings)
    estimates(trials, settings)
    once = len(calls)
    calls.clear()
    trials, settings = made(axis("optimizer.learning_rate", rates), tmp_path, seeds=(0, 1, 2))
    check(trials, settings)
    found = estimates(trials, settings)
    assert len(calls) == once > 0 and len(found) == 60
    assert len({(estimate.parameters, estimate.flops) for estimate in found}) == 1
    assert "check: 100%" in capsys.readouterr().err


@pytest.mark.slow
def test_neither_the_sde_nor_the_prediction_changes_the_cost_of_a_step(tmp_path):
    costs = set()
    for sde, prediction in (("vp", "epsilon"), ("edm", "x0"), ("flow", "v")):
        costs.add(estimates(*made([{"sde.name": sde, "model.prediction": prediction}], tmp_path))[0][:2])
    assert len(costs) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"sde.name": "ddpm_linear", "loss.objective": "ddpm_hybrid"},
        {"model.kwargs.two_times": True, "sampling.solver": "flow_map_steps", "loss.objective": "progressive"},
    ],
    ids=lambda changes: changes["loss.objective"],
)
def test_trials_share_a_network_with_two_outputs(tmp_path, changes):
    rates = axis("optimizer.learning_rate", (1e-4, 2e-4, 3e-4))
    changes = {"model.kwargs.outputs": 2, "sampling.denoise": False} | changes
    trials, settings = made(product([changes], rates), tmp_path)
    check(trials, settings)


def counted(call, calls):
    def count(*args, **kwargs):
        calls.append(call)
        return call(*args, **kwargs)

    return count


def test_invalid_trial_among_valid_ones_raises(tmp_path):
    """The zeros that replace a traced network hide no error of the SDE or the loss."""
    good = axis("sde.kwargs.beta_max", (15.0, 20.0))
    for bad, message in (({"sde.kwargs.beta_max": 0.01}, "beta_min < beta_max"), ({"loss.weighting": "snrr"}, "snrr")):
        trials, settings = made([*good, bad], tmp_path)
        with pytest.raises(UserError, match=message):
            check(trials, settings)
