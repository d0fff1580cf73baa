"""The package as others install it: whole, typed, and of use without the repository."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.cli import ROOT, environment

README = (ROOT / "README.md").read_text()
EXAMPLE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_requirements_repeat_the_projects_dependencies():
    """requirements.txt names packages of pyproject.toml with the same bounds, and installs the rest from there."""
    known = {*PROJECT["dependencies"], *(need for extra in PROJECT["optional-dependencies"].values() for need in extra)}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    first, *needs, last = [line for line in lines if not line.startswith("#")]
    assert first.startswith("jax[cuda12]") and {first, *needs} <= known and last == "-e .[train]"


def test_the_library_needs_only_its_core(tmp_path):
    """`import score_sde` where nothing but the core's packages can be imported."""
    train = PROJECT["optional-dependencies"]["train"]
    names = [re.split(r"[>\[]", need)[0] for need in train]
    modules = {"scikit-learn": "sklearn", "tensorflow-datasets": "tensorflow_datasets"}
    needed_by_flax = {"absl-py", "orbax-checkpoint"}
    missing = {modules.get(name, name) for name in names if name not in needed_by_flax}
    hide = f"import sys; sys.modules.update(dict.fromkeys({sorted(missing)!r}))"
    code = f"{hide}; import score_sde; print(score_sde.vp().t_max)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.stdout == "1.0\n", done.stderr


@pytest.mark.slow
def test_a_wheel_is_whole_and_runs_without_the_repository(tmp_path):
    """pip fetches setuptools for the build."""
    source, wheels, site = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
    shutil.copytree(ROOT / "score_sde", source / "score_sde")
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", f"--wheel-dir={wheels}", source], check=True)
    (wheel,) = wheels.glob("score_sde-*-py3-none-any.whl")
    subprocess.run([*pip, "install", "--no-deps", f"--target={site}", wheel], check=True)
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "score_sde").rglob("*.py")} | {"score_sde/py.typed"}
    installed = {str(path.relative_to(site)) for path in (site / "score_sde").rglob("*")}
    assert files == {path for path in installed if Path(path).suffix in (".py", ".typed")}
    code = f"""
from importlib.metadata import metadata
import score_sde
assert score_sde.__file__.startswith({str(site)!r}), score_sde.__file__
said = metadata("score_sde")
needs = [need for need in said.get_all("Requires-Dist") if "extra" not in need]
print(said["Version"], said["License-Expression"], *needs)
{EXAMPLE}
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.split() == [PROJECT["version"], "Apache-2.0", *PROJECT["dependencies"]]
    assert rest == re.findall(r"# prints (.*)", EXAMPLE)
