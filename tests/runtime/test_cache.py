"""Runs need no folder for a cache."""

import pytest

from score_sde.runtime import cache


@pytest.mark.parametrize("case", ["no home", "a file in the way"])
def test_absent_cache_is_a_temporary_folder(tmp_path, monkeypatch, capsys, case):
    cache._writable_folder.cache_clear()
    if case == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr("pwd.getpwuid", lambda user: {}[user])  # a user without an entry
    else:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    first, second = cache.cache_folder(), cache.cache_folder()
    cache._writable_folder.cache_clear()
    assert first == second and list(first.iterdir()) == []
    (first / "kept").write_text("")
    assert capsys.readouterr().err.count("the cache is lost after this run") == 1
