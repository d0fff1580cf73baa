"""Habits of the old dialect that CONTRIBUTING.md rules out; ruff's pydocstyle checks the rest."""

import re

import pytest

from tests.cli import ROOT

FILES = [ROOT / "launch.py", *(ROOT / "score_sde").rglob("*.py"), *(ROOT / "configs").rglob("*.py")]
HABITS = {
    "a docstring that begins with a relative clause": r'"""(What|How|Where|Of|As|The same)\b',
    "an argument's entry without a noun": r"^\s+\w[\w, ]*: (of|as of|as for|that|whose|where|their|its|likewise)\b",
}


@pytest.mark.parametrize("habit", HABITS)
def test_docstrings_have_nouns_and_verbs(habit):
    found = {path.name: re.findall(HABITS[habit], path.read_text(), re.MULTILINE) for path in FILES}
    assert not {name: hits for name, hits in found.items() if hits}


def test_only_the_border_names_flags():
    """A library file that names a flag would be wrong in a notebook; sweeps write the command lines of their trials."""
    library = [path for path in (ROOT / "score_sde").rglob("*.py") if not {"experiment", "__main__.py"} & {*path.parts}]
    assert [path.name for path in library if "--config" in path.read_text()] == ["trials.py"]
