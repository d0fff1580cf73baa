"""The file that a path to pretrained weights selects."""

import pytest

from score_sde.errors import UserError
from score_sde.experiment.model import exported


def test_a_runs_folder_stands_for_its_newest_export(tmp_path):
    """Also for a copy without the checkpoints, which are much larger; other folders and files are left as they are."""
    assert exported(str(tmp_path), "path") == str(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has not exported its weights"):
        exported(str(tmp_path), "path")
    for step in (100, 20):
        (tmp_path / f"ema_{step:08d}.safetensors").touch()
    newest = str(tmp_path / "ema_00000100.safetensors")
    assert exported(str(tmp_path), "path") == exported(newest, "path") == newest
    (tmp_path / "checkpoints").rmdir()
    assert exported(str(tmp_path), "path") == newest
