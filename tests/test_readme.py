"""What the README says can be done can be: commands are parsed or run, links lead somewhere, diffs apply."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from tests.cli import ROOT, environment, parse

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line for kind, block in BLOCKS for line in block.splitlines() if kind in ("bash", "") and "launch.py" in line
]
ADDITIONS = re.findall(r"```diff\n(.*?)```\n\n```bash\n(.*?)\n```", README, re.DOTALL)
NOT_OURS = ("configs/sweeps/mine.py", "configs/ve/cifar10_ncsnpp_continuous.py")  # an example, and score_sde's
LAPTOP = [
    line for kind, block in BLOCKS for line in block.splitlines() if kind == "bash" and line.startswith(".venv/bin/")
]
# What makes a benchmark short; the table of real runs takes no time.
SHORT = {
    "train_step": "--model=digits --batch=2 --rounds=1 --peer=",
    "sampling": "--model=digits --batch=2 --rounds=1 --num_steps=2 --solver=ddim --noadaptive --peer=none",
    "convolution": "--rounds=1",
    "data": "--size=500 --batches=2",
    "guidance": "--samples=40 --scales=0,2",
    "real_runs": "",
    "inverse_problems": "--samples=20 --steps=4 --dimensions=2 --nomixture",
    "solver_convergence": "",
}
# What makes a command short: a perceptron or a small U-Net, few steps, few samples.
BRIEF = {
    "toy2d": "model.kwargs.features=(8,) training.num_steps=50 training.sample_every=50 training.log_every=50 "
    "training.checkpoint_every=50 sampling.num_steps=5 sampling.num_samples=50 evaluation.num_samples=50",
    "mixture": "sampling.num_steps=5 sampling.num_samples=50 evaluation.num_samples=50 evaluation.diagnostics_levels=2",
    "digits": "model.kwargs.channels=8 model.kwargs.multipliers=(1,) model.kwargs.num_res_blocks=1 "
    "model.kwargs.attention_resolutions=() training.num_steps=20 training.log_every=10 training.checkpoint_every=10 "
    "training.sample_every=20 sampling.num_steps=4 sampling.num_samples=48 sampling.batch_size=48 "
    "evaluation.num_samples=48 evaluation.diagnostics_levels=2 evaluation.diagnostics_images=8 "
    "likelihood.num_examples=4 "
    "likelihood.vlb_num_steps=4 likelihood.rtol=0.1 likelihood.atol=0.1 certify.num_samples=2 certify.nfe=(4,) "
    "certify.spacings=('karras',) certify.reference_steps=8 certify.sde_num_steps=(2,4,8)",
}


def words_of(command):
    """The words behind launch.py; a comment and what runs it elsewhere are left out."""
    return shlex.split(
        command.split("   #")[0].split('"')[-2] if command.startswith("gcloud") else command, comments=True
    )


def test_there_is_something_to_test():
    assert len(COMMANDS) > 30
    assert len(ADDITIONS) == 4
    assert len(LAPTOP) > 35


def test_every_command_is_understood():
    behind = []
    for command in COMMANDS:
        words = words_of(command)
        behind.append(words[next(i for i, word in enumerate(words) if word.endswith("launch.py")) :])
    understood = parse(behind)
    assert len(understood) == len(behind)
    for command, words, said in zip(COMMANDS, behind, understood, strict=True):
        assert said.get("rest") == words[:1], (command, said)
        assert said["mode"] in (*launch.MODES, "sweep")


def test_benchmarks_files_and_links_are_there():
    for path in re.findall(r"benchmarks/\w+\.py|configs/[\w/]+\.py(?![\w/])", README):
        assert (ROOT / path).is_file() or path in NOT_OURS, path
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    headings = re.findall(r"^#+ (.*)", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors
    for path in re.findall(r"`(score_sde/[\w/.]+)`", README):
        assert (ROOT / path).exists(), path


def test_make_has_the_targets_that_are_named():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= set(targets)


def test_the_additions_are_short():
    for diff, _ in ADDITIONS:
        assert sum(re.match(r"[+-](?![+-]{2})", line) is not None for line in diff.splitlines()) < 20


@pytest.fixture
def tree(tmp_path):
    """A copy of the code with the additions applied."""
    tree = tmp_path / "tree"
    for part in ("score_sde", "configs", "launch.py"):
        source = ROOT / part
        shutil.copytree(source, tree / part) if source.is_dir() else shutil.copy(source, tree / part)
    for diff, _ in ADDITIONS:
        subprocess.run(["git", "apply", "--unidiff-zero", "-"], input=diff, text=True, cwd=tree, check=True)
    return tree


def test_the_additions_apply_together(tree):
    for diff, _ in ADDITIONS:
        for path, changes in re.findall(r"^\+\+\+ b/(.*)\n((?:[@+-](?!--).*\n)*)", diff, re.MULTILINE):
            text = (tree / path).read_text()
            added = re.findall(r"^\+(.+)$", changes, re.MULTILINE)
            assert added and set(added) <= set(text.splitlines()), path
            compile(text, path, "exec")


@pytest.mark.slow
def test_the_additions_run(tree):
    for _, command in ADDITIONS:
        (config,) = re.findall(r"configs/(\w+)\.py", command)
        run(command, tree, [flag for flag in brief(config) if "features" not in flag or "linear" not in command])


@pytest.mark.slow
def test_the_commands_run(tmp_path):
    """Those of a laptop, in their order, in one place, each made brief; and those that train are first."""
    for part in ("score_sde", "configs", "benchmarks", "tests", "launch.py"):
        os.symlink(ROOT / part, tmp_path / part)
    printed = ""
    for kind, block in BLOCKS:
        if kind == "text":
            for line in block.splitlines():
                assert shape_of(line) in map(shape_of, printed.splitlines()), line
        if kind == "bash" and block.strip() not in {command for _, command in ADDITIONS}:
            printed = "\n".join(run_briefly(line, tmp_path) for line in block.splitlines() if line in LAPTOP) + "\n..."


def shape_of(line):
    """What of a printed line is the same of a shorter run: its words; of a table's row, the first cell."""
    if line.startswith("|"):
        return line.split("|")[1]
    if line.startswith(("the cheapest within 1%", "nothing here is within 1%", "the reference itself is not")):
        return "what certify concludes"
    return re.sub(r"_[0-9a-f]{16}|[-+]?\d[\d.,]*(e[-+]?\d+)?", "#", line).rstrip(",")


def run_briefly(command, tmp_path):
    if "benchmarks/" in command:
        return run(command, tmp_path, SHORT[re.findall(r"benchmarks/(\w+)\.py", command)[0]].split())
    config = re.findall(r"configs/[\w/]*?(toy2d|mixture|digits)", command)[0]
    if "--mode=sweep" in command:
        return run(command, tmp_path, [])
    flags = [flag for flag in brief(config) if flag.split("=")[0] not in command]
    if "classifier.py" in command:
        flags = [flag for flag in flags if "model.kwargs" not in flag and "sampling" not in flag]
    if "channels=16" in command or "workdir=runs/v" in command:
        flags = [flag for flag in flags if "channels" not in flag]
    return run(command, tmp_path, flags)


def brief(config):
    return [f"--config.{word}" for word in BRIEF[config].split()]


def run(command, folder, flags):
    words = [sys.executable, *words_of(command)[1:], *flags]
    plain = environment()
    plain.pop("XLA_FLAGS")  # a plan for several devices asks for them itself
    done = subprocess.run(words, cwd=folder, env=plain, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (command, done.stdout[-500:] + done.stderr[-1500:])
    return done.stdout + done.stderr


def test_the_readmes_pictures_are_small():
    for path in Path(ROOT / "notebooks" / "pictures").glob("*.png"):
        assert path.stat().st_size < 500_000, path
