"""`init`: a file of all settings at their defaults, each with what it does and the values that it may have."""

from __future__ import annotations

from pathlib import Path

from host.atomic import OutputPathError, add_path_to_errors, atomic_write, check_writable
from host.config import Config, LiveConfig
from host.console import log, program_command
from host.settings import config_toml


def init_config(path: Path, live: bool) -> None:
    """Write the settings of `train`, or with `live` those of `act`, to a new file."""
    if path.exists():
        raise OutputPathError(f"{path} exists: name another file, or delete it")
    check_writable(path)
    with add_path_to_errors(path), atomic_write(path) as file:
        file.write(config_toml(LiveConfig() if live else Config()).encode())
    words = ("act", "FEED", "--config", path) if live else ("train", "--config", path)
    log(f"{path}: all settings at their defaults; change what you like, then {program_command(*words)}")
