"""`init`: a file of all settings at their defaults, each with what it does and the values that it may have."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from host.atomic import OutputPathError, add_path_to_errors, atomic_write, check_writable
from host.config import Config, LiveConfig, describe_values, list_settings
from host.console import log, program_command
from host.training.run_dir import toml_value

WIDTH = 100  # columns of a comment


def init_config(path: Path, live: bool) -> None:
    """Write the settings of `train`, or with `live` those of `act`, to a new file."""
    if path.exists():
        raise OutputPathError(f"{path} exists: name another file, or delete it")
    check_writable(path)
    with add_path_to_errors(path), atomic_write(path) as file:
        file.write(config_toml(LiveConfig() if live else Config()).encode())
    words = ("act", "FEED", "--config", path) if live else ("train", "--config", path)
    log(f"{path}: all settings at their defaults; change what you like, then {program_command(*words)}")


def config_toml(config: Any) -> str:
    """TOML of every setting of `config` below its comment; one that is unset stands in a comment."""
    lines, last = list[str](), ""
    for name, setting in list_settings(config).items():
        section, key = name.split(".")
        if section != last:
            lines += ["", *comment(type(getattr(config, section)).__doc__ or ""), f"[{section}]"]
            last = section
        value = f"# {key} = 0.0  # unset" if setting.value is None else f"{key} = {toml_value(setting.value)}"
        lines += ["", *comment(setting.help), *comment(describe_values(setting)), value]
    return "\n".join(lines[1:]) + "\n"


def comment(text: str) -> list[str]:
    """The paragraphs of `text` as comments."""
    paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    return [f"# {line}" for part in paragraphs for line in textwrap.wrap(part, WIDTH)]
