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


def test_extras_are_what_the_requirements_say():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    files = {"cuda12": "requirements.txt", "tpu": "requirements-tpu.txt"}
    assert extras.keys() == files.keys()
    for extra, file in files.items():
        lines = (ROOT / file).read_text().splitlines()
        assert [line for line in lines if line.startswith("jax")] == extras[extra]


@pytest.mark.slow
def test_a_wheel_is_whole_and_runs_without_the_repository(tmp_path):
    """pip fetches setuptools for the build."""
    source, wheels, site = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
    shutil.copytree(ROOT / "score_sde", source / "score_sde")
    for file in ("pyproject.toml", "README.md", "LICENSE", "requirements-base.txt"):
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
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    first, *rest = done.stdout.splitlines()
    needed = [line.split("#")[0].strip() for line in (ROOT / "requirements-base.txt").read_text().splitlines()]
    assert first.split() == [version, "Apache-2.0", *filter(None, needed)]
    assert rest == re.findall(r"# prints (.*)", EXAMPLE)
