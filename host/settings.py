"""Settings as text: the list of `--help-config`, the file of `init`, and the TOML that a run stores."""

from __future__ import annotations

import json
import re
import textwrap
from typing import Any

from host.config import Range, Setting, list_settings

HELP_COLUMN = 34  # where --help-config begins to say which values a setting may have
WIDTH = 100  # columns of a help line
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def settings_text(config: Any) -> str:
    """The text of `--help-config`: of each setting its default as `--set` takes it, its values and its help line."""
    lines = list[str]()
    for name, setting in list_settings(config).items():
        default = setting.value if isinstance(setting.value, str) else json.dumps(setting.value)
        key = f"{name} (unset)" if setting.value is None else f"{name}={default}"
        lines.append(f"{key:<{HELP_COLUMN}}{describe_values(setting)}")
        lines += textwrap.wrap(setting.help, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def describe_values(setting: Setting) -> str:
    """The values that a setting may have, in words."""
    allowed = setting.allowed
    if not isinstance(allowed, Range):
        return " | ".join(allowed or ("true", "false"))
    sample = (setting.value or [0.0])[0] if isinstance(setting.value, list) else setting.value
    kind = "whole number" if isinstance(sample, int) else "number"
    text = f"{kind} from {allowed.low:,.12g} to {allowed.high:,.12g}"
    text += f", a multiple of {allowed.step}" if allowed.step > 1 else ""
    return f"list: each a {text}" if isinstance(setting.value, list) else text


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


def to_toml(config: dict[str, Any]) -> str:
    """TOML of scalars and lists, then one table for each value that is a dict of them; None is left out."""
    tables = {key: value for key, value in config.items() if isinstance(value, dict)}
    lines = [f"{_toml_key(k)} = {toml_value(v)}" for k, v in config.items() if k not in tables and v is not None]
    for name, table in tables.items():
        lines += [
            "",
            f"[{_toml_key(name)}]",
            *(f"{_toml_key(k)} = {toml_value(v)}" for k, v in table.items() if v is not None),
        ]
    return "\n".join(lines) + "\n"


def _toml_key(key: str) -> str:
    return key if BARE_KEY.fullmatch(key) else toml_value(key)


def toml_value(value: Any) -> str:
    """TOML of a scalar, or of a list of them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):  # JSON escapes as TOML does, except DEL, which TOML wants escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    raise TypeError(f"no TOML for {value!r}")
