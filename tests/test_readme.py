"""README and docs: commands are parsed or run, links resolve, examples run, additions work, tables are current."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache

import pytest

import launch
from docs import generate
from tests.cli import IN_PROCESS, ROOT, compiler_of, environment, parse

# README comes first. Training commands run before all others, whatever their page.
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
BLOCKS = [block for text in PAGES.values() for block in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)]
COMMANDS = [
    line for kind, block in BLOCKS for line in block.splitlines() if kind in ("bash", "") and "launch.py" in line
]
# (file, code, name, dictionary, file of the dictionary, command)
ADDITIONS = [
    addition
    for text in PAGES.values()
    for addition in re.findall(
        r"```python\n# (score_sde/\S+\.py)\n(.*?)```\n\n[^`]*"
        r'`"(\w+)": \w+` to `([A-Z_]+)` in `(\S+\.py)`:\n\n```bash\n(.*?)\n```',
        text,
        re.DOTALL,
    )
]
NOT_OURS = ("configs/sweeps/mine.py", "configs/ve/cifar10_ncsnpp_continuous.py")  # an example, and score_sde's
LAPTOP = [
    line for kind, block in BLOCKS for line in block.splitlines() if kind == "bash" and line.startswith(".venv/bin/")
]
# Flags that make a benchmark short; the table of real runs takes no time.
SHORT = {
    "train_step": "--model=digits --batch=2 --rounds=1 --peer=",
    "sampling": "--model=digits --batch=2 --rounds=1 --num_steps=2 --solver=ddim --noadaptive --peer=none",
    "convolution": "--rounds=1 --shapes=32x8x4",
    "data": "--size=500 --batches=2 --rounds=1",
    "guidance": "--samples=40 --scales=0,2",
    "real_runs": "",
    "inverse_problems": "--samples=20 --steps=4 --dimensions=2 --nomixture --methods=ddrm,dps",
    "solver_convergence": "",
    "dimensions": "--dimensions=2 --predictions=v --steps=100",
}
# Overrides that make a command short: a perceptron or a small U-Net, few steps, few samples.
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
    """Return the words of a command, without its comment and without the program that runs it on other machines."""
    return shlex.split(
        command.split("   #")[0].split('"')[-2] if command.startswith("gcloud") else command, comments=True
    )


def anchors(text):
    headings = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_there_is_something_to_test():
    assert len(COMMANDS) > 30
    assert {dictionary for _, _, _, dictionary, _, _ in ADDITIONS} == {
        "SDES",
        "SOLVERS",
        "WEIGHTINGS",
        "MODELS",
        "DATASETS",
    }
    assert len(LAPTOP) > 35


def test_readme_fits_and_links_every_page():
    readme = PAGES[ROOT / "README.md"]
    assert len(readme.splitlines()) <= 200
    for path in PAGES:
        assert path.name == "README.md" or f"](docs/{path.name}" in readme, path


def test_every_command_is_understood():
    behind = []
    for command in COMMANDS:
        words = words_of(command)
        behind.append(words[next(i for i, word in enumerate(words) if word.endswith("launch.py")) :])
    understood = parse(behind)
    assert len(understood) == len(behind)
    added = {name for _, _, name, _, _, _ in ADDITIONS}
    for command, words, said in zip(COMMANDS, behind, understood, strict=True):
        assert said.get("rest") == words[:1], (command, said)
        assert said["mode"] in (*launch.MODES, "sweep")
    assert all(any(f"={name}" in command for command in COMMANDS) for name in added)


def test_files_links_and_anchors_resolve():
    for page, text in PAGES.items():
        for path in re.findall(r"(?:benchmarks|tests/\w+)/\w+\.py|configs/[\w/]+\.py(?![\w/])", text):
            assert (ROOT / path).is_file() or path in NOT_OURS, (page, path)
        for path in re.findall(r"`(score_sde/[\w/.]+)`", text):
            assert (ROOT / path).exists(), (page, path)
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for path, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", prose):
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), (page, path)
            assert not anchor or anchor in anchors(target.read_text()), (page, path, anchor)


def test_make_has_the_targets_that_are_named():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {name for text in PAGES.values() for name in re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE)}
    assert {"demo", "test"} <= named <= set(targets)


def test_papers_results_are_those_of_the_configs():
    """A config's docstring states the result of its paper."""
    rows = re.findall(r"^\| `(configs/\w+\.py).*\| FID \| ([\d., ]+) \|", PAGES[ROOT / "README.md"], re.MULTILINE)
    assert len(rows) > 5
    for path, results in rows:
        docstring = ast.get_docstring(ast.parse((ROOT / path).read_text()))
        assert all(number in docstring for number in results.split(", ")), path


def test_configuration_page_is_current():
    """`python -m docs.generate` rewrites it."""
    assert generate.PAGE.read_text() == generate.text()


@pytest.mark.slow
def test_python_examples_run():
    """All that are not additions to a file, in one process."""
    examples = [block for kind, block in BLOCKS if kind == "python" and not re.match(r"# \S+\.py\n", block)]
    assert len(examples) >= 2
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(examples)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == re.findall(r"# prints (.*)", "\n".join(examples))


def test_the_additions_are_short():
    for _, code, *_ in ADDITIONS:
        assert len(code.splitlines()) < 20


@pytest.fixture
def tree(tmp_path):
    """A copy of the code with the additions, each made as its text describes."""
    tree = tmp_path / "tree"
    for part in ("score_sde", "configs", "launch.py"):
        source = ROOT / part
        shutil.copytree(source, tree / part) if source.is_dir() else shutil.copy(source, tree / part)
    for file, code, name, dictionary, table_file, _ in {addition[2]: addition for addition in ADDITIONS}.values():
        defined = re.search(r"^(?:def|class) (\w+)", code, re.MULTILINE).group(1)
        if file == table_file:
            above = code
        else:
            (tree / file).write_text(f"{(tree / file).read_text()}\n\n{code}")
            above = f"from {file.removesuffix('.py').replace('/', '.')} import {defined}\n"
        text = (tree / table_file).read_text()
        (start,) = re.findall(rf"^{dictionary}\b.*?\{{", text, re.MULTILINE)
        (tree / table_file).write_text(text.replace(start, f'{above}\n\n{start}"{name}": {defined}, '))
    return tree


def test_the_additions_apply_together(tree):
    tables = {
        f"{file.removesuffix('.py').replace('/', '.').removesuffix('.__init__')}:{dictionary}:{name}"
        for _, _, name, dictionary, file, _ in ADDITIONS
    }
    code = f"""
from importlib import import_module
for entry in {sorted(tables)}:
    module, dictionary, name = entry.split(":")
    assert name in getattr(import_module(module), dictionary), entry
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_readme_and_extending_have_the_same_solver():
    codes = {}
    for _, code, name, *_ in ADDITIONS:
        codes.setdefault(name, set()).add(code)
    assert all(len(different) == 1 for different in codes.values())


@pytest.mark.slow
def test_the_additions_run(tree):
    for command in dict.fromkeys(command for *_, command in ADDITIONS):
        (config,) = re.findall(r"configs/(\w+)\.py", command)
        run(command, tree, [flag for flag in brief(config) if "features" not in flag or "linear" not in command])


@pytest.mark.slow
def test_the_commands_run(tmp_path):
    """Each laptop command runs once, made short, in one folder; those that train run first."""
    for part in ("score_sde", "configs", "benchmarks", "tests", "launch.py"):
        os.symlink(ROOT / part, tmp_path / part)
    added = {command for *_, command in ADDITIONS}
    blocks = [(kind, block) for kind, block in BLOCKS if kind in ("bash", "text") and block.strip() not in added]
    commands = [line for kind, block in blocks if kind == "bash" for line in block.splitlines() if line in LAPTOP]
    output = {line: run_briefly(line, tmp_path) for line in sorted(dict.fromkeys(commands), key=rank)}
    printed = ""
    for kind, block in blocks:
        if kind == "text":
            for line in block.splitlines():
                assert shape_of(line) in map(shape_of, printed.splitlines()), line
        else:
            printed = "\n".join(output[line] for line in block.splitlines() if line in LAPTOP) + "\n..."


def rank(command):
    """Return the position of a command among those that depend on each other; sorting is stable."""
    if "real_runs" in command or "guidance_weights" in command:
        return 3
    if "benchmarks/" in command:
        return 2
    return 1 if "--mode=" in command else 0


def shape_of(line):
    """Return the words of a printed line, which a shorter run also prints; of a row of a table, its first cell."""
    if line.startswith("|"):
        return line.split("|")[1]
    if line.startswith(("the cheapest within 1%", "nothing here is within 1%", "the reference itself is not")):
        return "what certify concludes"
    return re.sub(r"_[0-9a-f]{16}|[-+]?\d[\d.,]*(e[-+]?\d+)?", "#", line).rstrip(",")


def run_briefly(command, tmp_path):
    if "benchmarks/" in command:
        short = SHORT[re.findall(r"benchmarks/(\w+)\.py", command)[0]].split()
        names = {flag.split("=")[0] for flag in short}
        kept = [word for word in words_of(command) if word.split("=")[0] not in names]
        return run_once((*kept, *short), tmp_path)
    config = re.findall(r"configs/[\w/]*?(toy2d|mixture|digits|demo)", command)[0].replace("demo", "digits")
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


@cache
def run_once(words, folder):
    """Run a shortened benchmark, which several commands may have become."""
    return run(shlex.join(words), folder, [])


def run(command, folder, flags):
    words = [sys.executable, *words_of(command)[1:], *flags]
    compiler = IN_PROCESS if "benchmarks/" in command else compiler_of(words)
    plain = environment() | {"XLA_FLAGS": compiler}  # a plan for several devices asks for them
    done = subprocess.run(words, cwd=folder, env=plain, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, (command, done.stdout[-500:] + done.stderr[-1500:])
    return done.stdout + done.stderr


def test_the_readmes_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").glob("*.png"))
    assert pictures
    for path in pictures:
        assert path.stat().st_size < 500_000, path
        assert any(f"images/{path.name}" in text for text in PAGES.values()), path
