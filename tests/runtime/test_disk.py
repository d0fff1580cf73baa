"""Files are whole or absent, and their damage is noticed."""

import multiprocessing
import os
import threading

import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.evaluation.results import check_results_file, load_results, save_results
from score_sde.runtime import weight_files
from score_sde.runtime.disk import (
    locked,
    quarantine,
    read_arrays,
    read_json_object,
    replacing,
    write_arrays,
    write_atomically,
)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "figures.json"
    write_atomically(path, "{}")
    with pytest.raises(OSError), replacing(path) as partial:
        partial.write_text("half")
        raise OSError
    assert path.read_text() == "{}" and [file.name for file in tmp_path.iterdir()] == ["figures.json"]


def test_replaced_file_has_usual_mode(tmp_path):
    (tmp_path / "usual").touch()
    weight_files.write(tmp_path / "a.safetensors", {"a": np.zeros(2)}, "native", {})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_partial_files_are_unique_and_old_ones_go(tmp_path):
    path = tmp_path / "figures.json"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    left_over = tmp_path / "partial_0123456789ab_figures.json"
    left_over.write_text("half")
    write_atomically(path, "3")
    assert left_over.exists()  # another process may be at it
    os.utime(left_over, (0, 0))
    write_atomically(path, "4")
    assert not left_over.exists() and path.read_text() == "4"


def test_every_flipped_bit_of_arrays_is_noticed(tmp_path):
    path, arrays = tmp_path / "arrays.npz", {"x": np.arange(6.0), "nfe": np.arange(2)}
    write_arrays(path, arrays)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        found = read_arrays(path)
        assert found is None or all(np.array_equal(found[name], arrays[name]) for name in arrays), place


def test_every_flipped_bit_of_weights_is_noticed(tmp_path):
    path, tree = tmp_path / "weights.safetensors", {"dense": {"kernel": np.arange(6.0), "bias": np.arange(2.0)}}
    weight_files.write_tree(path, tree, "snapshot", {"step": 1})
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            found = weight_files.read_tree(path)
        except UserError:
            continue
        for name, array in tree["dense"].items():
            np.testing.assert_array_equal(found["dense"][name], array, err_msg=str(place))


def hold(path, taken):
    with locked(path, seconds=0):
        taken.set()
        threading.Event().wait()


def test_a_kill_frees_a_lock(tmp_path):
    context = multiprocessing.get_context("spawn")
    taken = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "lock", taken))
    process.start()
    assert taken.wait(100)
    with locked(tmp_path / "lock", seconds=0) as holder:
        assert holder.startswith(f"process {process.pid} on ")
    process.kill()
    process.join()
    with locked(tmp_path / "lock", seconds=0) as holder:
        assert holder is None


def test_figures_of_modes_that_write_at_once(tmp_path):
    sections = [f"restore_{task}" for task in ("inpaint", "colorize", "super_resolve", "deblur")]
    sections += ["likelihood", "certify", "accuracy", "health"]
    writers = [threading.Thread(target=save_results, args=(tmp_path, {name: {"mean": 1.0}})) for name in sections]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert load_results(tmp_path).keys() == set(sections)


@pytest.mark.parametrize("content", [b"{", b"", b"null", b"\xff\xfe", b"[" * 100_000])
def test_damaged_figures_are_set_aside_before_the_work(tmp_path, content, capsys):
    path = tmp_path / "evaluation.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="can't be read"):
        load_results(tmp_path)
    check_results_file(tmp_path)
    assert not path.exists() and (tmp_path / "damaged" / "evaluation.json.0").read_bytes() == content
    assert "it is kept in" in capsys.readouterr().err
    path.write_bytes(content)  # damaged again meanwhile
    save_results(tmp_path, {"likelihood": {"mean": 1.0}})
    assert read_json_object(path) == {"likelihood": {"mean": 1.0}}
    assert (tmp_path / "damaged" / "evaluation.json.1").read_bytes() == content


def test_set_aside_keeps_all(tmp_path):
    for content in "ab":
        (tmp_path / "x").write_text(content)
        assert quarantine(tmp_path / "x", tmp_path).read_text() == content
