"""`pack`: a model and the code that acts, in one file that Python runs: `python swt.pyz act FEED`.

The file is a stored zip with sorted names and fixed dates: equal sources and an equal model give equal bytes.
"""

from __future__ import annotations

import ast
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from host.artifact.model_file import check_selftest, model_bytes, pack_zip, parse_model
from host.atomic import atomic_write, check_not_input
from host.console import log, shell_join

ROOT = Path(__file__).parents[2]
ENTRY_MODULES = (  # imported by `swt.py` for the commands of the packed program
    "host.commands.act",
    "host.commands.doctor",
    "host.commands.reading_flags",
    "host.commands.replay",
    "host.settings",
    "host.stop",
)
MAIN = b"from swt import main\n\nmain()\n"


def pack(model: Path, out: Path) -> None:
    """Write the packed program to `out`, with a model that passes its self-test; OSError names `out`."""
    if out.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(out))
    check_not_input(out, model)
    packed = model_bytes(model)
    checked = parse_model(packed)
    check_selftest(checked)
    data = pack_zip({**packed_sources(), "__main__.py": MAIN, "model.swt": packed})
    try:
        with atomic_write(out) as file:
            file.write(data)
    except OSError as error:  # it names the temporary file
        raise OSError(error.errno, error.strerror, str(out)) from None
    log(f"{out}: {len(data)} bytes, model {checked.sha256[:16]}; try: {shell_join('python', out, 'doctor')}")


def packed_sources() -> dict[str, bytes]:
    """The source files of the packed program by their names in the zip."""
    todo, sources = list(ENTRY_MODULES), dict[str, bytes]()
    while todo:
        module = todo.pop()
        path = Path(*module.split(".")).with_suffix(".py").as_posix()
        if path not in sources and (ROOT / path).is_file():
            sources[path] = (ROOT / path).read_bytes()
            todo += imported_modules(sources[path])
    packages = {f"{folder.as_posix()}/__init__.py" for path in sources for folder in Path(path).parents[:-1]}
    return {**sources, **{path: (ROOT / path).read_bytes() for path in ("swt.py", *packages)}}


def imported_modules(source: bytes) -> Iterator[str]:
    """Every module that the text of a module may import, at its head or in a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
