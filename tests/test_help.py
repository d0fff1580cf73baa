"""Messages for new users: --help, no arguments, and a wrong file."""

import re

import jax
import pytest
from absl import flags

from score_sde import __main__ as program
from score_sde.errors import UserError
from tests.cli import ROOT


def test_help_fits_a_screen_and_names_every_mode_and_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        program.parse_flags(["launch.py", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") <= 24 and max(map(len, printed.splitlines())) <= 110
    own = {flag.name for flag in flags.FLAGS.flags_by_module_dict()["score_sde.__main__"]}
    assert {*re.findall(r"--(\w+)", printed)} >= own
    assert re.findall(r"^  (\w+)  ", printed, re.MULTILINE) == [*program.MODES, "sweep"]


def test_without_a_config_at_most_ten_lines_name_them_all():
    message = program._which_experiment()
    assert message.count("\n") < 10
    assert program.FIRST in message and (ROOT / program.FIRST).is_file()
    for file in program._config_files():
        assert file.removeprefix("configs/") in message


def test_a_package_without_configs_asks_for_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "CONFIGS", tmp_path / "configs")
    assert "get_config()" in program._which_experiment()
    with pytest.raises(UserError, match=r"^no config file 'my_config.py'\.$"):
        program.parse_flags(["score_sde", "--config=my_config.py"])


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'tpu'\nmore"), AssertionError()])
def test_missing_devices_get_one_sentence(monkeypatch, error):
    def local_devices():
        if jax.config.jax_platforms == "tpu":
            raise error
        return jax.devices("cpu")

    monkeypatch.setattr(jax, "local_devices", local_devices)
    platforms = jax.config.jax_platforms
    jax.config.update("jax_platforms", "tpu")
    try:
        with pytest.raises(UserError, match="expected a platform of JAX_PLATFORMS=tpu, got only cpu on this machine"):
            program._local_devices()
    finally:
        jax.config.update("jax_platforms", platforms)
