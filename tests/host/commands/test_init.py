"""`init` writes every setting with what it does; the file as written changes nothing."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

import swt
from host.atomic import OutputPathError
from host.commands.init import init_config
from host.config import Config, LiveConfig, apply_overrides, list_settings, load_config, merge
from host.settings import WIDTH, config_toml


def test_the_untouched_file_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "swt.toml"
    swt.init(path, live=False)
    assert load_config(path) == load_config()
    assert f"train --config {path}" in capsys.readouterr().err
    init_config(tmp_path / "live.toml", live=True)
    assert apply_overrides(LiveConfig(), tmp_path / "live.toml", None) == LiveConfig()


@pytest.mark.parametrize("config", [Config(), LiveConfig()], ids=["train", "act"])
def test_every_setting_stands_there_with_its_range_and_help(config: Any) -> None:
    text = config_toml(config)
    flat = " ".join(line.removeprefix("# ") for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= WIDTH + 2
    for name, setting in list_settings(config).items():
        assert " ".join(setting.help.split()) in flat, name
        key = name.partition(".")[2]
        assert f"\n{'# ' if setting.value is None else ''}{key} = " in text, name
    every = text.replace("# unset", "").splitlines()
    freed = [line.removeprefix("# ") if line.startswith("# ") and " = 0.0 " in line else line for line in every]
    assert len([line for line in freed if " = " in line and line[0] != "#"]) == len(list_settings(config))
    merge(config, tomllib.loads("\n".join(freed)), "freed")  # what is unset may be set where it stands


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "swt.toml"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(OutputPathError, match=r"swt\.toml exists: name another file, or delete it"):
        init_config(path, live=False)
    assert path.read_text(encoding="utf-8") == "mine"
    with pytest.raises(OutputPathError, match="does not exist"):
        init_config(tmp_path / "nowhere" / "swt.toml", live=False)
