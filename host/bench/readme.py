"""Write the figures of README.md anew: `python -m host.bench.readme [WORD...]` runs the commands with one of the words.

Figures stand between a line `<!-- python swt.py ... -->` with their command and a line `<!-- end -->`.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from host.atomic import atomic_write
from host.bench.process import ROOT

README = Path(__file__).with_name("README.md")
FIGURES = re.compile(r"(?<=^<!-- python )(swt\.py [^\n]+)( -->\n).*?(?=^<!-- end -->$)", re.M | re.S)


def rewrite(path: Path, words: list[str]) -> None:
    """Run the chosen commands of a file; write the figures of each at once, with the commit that was measured."""
    commit = capture("git", "describe", "--always", "--dirty", "--exclude", "*").strip()
    for command in [match[1] for match in FIGURES.finditer(path.read_text(encoding="utf-8"))]:
        if words and not {*words} & {*shlex.split(command)}:
            continue
        is_bench = command.startswith("swt.py bench ")
        output = capture(sys.executable, *shlex.split(command), *(["--markdown"] if is_bench else []))
        figures = output if is_bench else f"```\n$ python {command}\n{output}```\n"

        def replace(match: re.Match[str], command: str = command, figures: str = figures) -> str:
            return f"{command}{match[2]}{figures}\nCommit {commit}.\n" if match[1] == command else match[0]

        text = FIGURES.sub(replace, path.read_text(encoding="utf-8"))
        with atomic_write(path) as file:
            file.write(text.encode())


def markdown_table(lines: list[Any]) -> str:
    """Lines as a Markdown table; a line is (title -> cell), or a text that takes a whole line."""
    titles = next([*line] for line in lines if isinstance(line, dict))
    rows = [
        line if isinstance(line, str) else " | ".join("" if cell is None else str(cell) for cell in line.values())
        for line in lines
    ]
    return "\n".join([f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}", *(f"| {row} |" for row in rows), ""])


def capture(*command: str) -> str:
    """What a command prints; raises CalledProcessError if it fails."""
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    rewrite(README, sys.argv[1:])
