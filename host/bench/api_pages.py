"""Write the API pages of kernels/README.md and models/README.md anew: `python -m host.bench.api_pages`.

A page is what follows a line `<!-- python -m host.bench.api_pages -->`, up to a line `<!-- end -->`.  It has what
modules of other folders import, and what the `__all__` of a folder names.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from host.atomic import atomic_write
from host.bench.process import ROOT

FOLDERS = ("kernels", "models")
PAGE = re.compile(r"(?<=^<!-- python -m host\.bench\.api_pages -->\n).*?(?=^<!-- end -->$)", re.M | re.S)
Definition = ast.FunctionDef | ast.ClassDef


def rewrite(folder: str) -> None:
    """Write the page of `folder` into its README."""
    path = ROOT / folder / "README.md"
    text = PAGE.sub(lambda _: api_page(folder), path.read_text(encoding="utf-8"))
    with atomic_write(path) as file:
        file.write(text.encode())


def api_page(folder: str) -> str:
    """A list for each module: every public function and class, with its parameters and the first line about it."""
    public, page = public_names(ROOT), ""
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        lines = [entry(node) for node in definitions(path) if (name, node.name) in public]
        page += "".join([f"\n**`{name}`**\n\n", *lines]) if lines else ""
    return page + "\n"


def definitions(path: Path) -> list[Definition]:
    """The functions and classes of a module, in their order."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return [node for node in body if isinstance(node, Definition)]


@cache
def public_names(root: Path) -> set[tuple[str, str]]:
    """(file, name) of all that a module of another folder imports, or the `__init__` of its own."""
    sources = [root / "swt.py", *(path for top in (*FOLDERS, "host") for path in (root / top).rglob("*.py"))]
    return {used for path in sources for used in imports(path)} | {used for top in FOLDERS for used in exports(top)}


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(file, name) of each name that a module imports from a file of another folder."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            file = f"{node.module.replace('.', '/')}.py"
            if (ROOT / file).parent != path.parent:
                yield from ((file, alias.name) for alias in node.names)


def exports(folder: str) -> Iterator[tuple[str, str]]:
    """(file, name) of what packages under `folder` import when it is asked for: their table `_MODULES`."""
    for path in (ROOT / folder).rglob("__init__.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MODULES":
                for module, names in ast.literal_eval(node.value).items():
                    yield from ((f"{module.replace('.', '/')}.py", name) for name in names)


def entry(node: Definition) -> str:
    """A line of the page."""
    about = (ast.get_docstring(node) or "").partition("\n")[0]
    if isinstance(node, ast.ClassDef):
        return f"* `class {node.name}`: {about}\n"
    parameters = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
    parameters += [f"*{node.args.vararg.arg}"] if node.args.vararg else []
    parameters += [f"{argument.arg}=" for argument in node.args.kwonlyargs]
    parameters += [f"**{node.args.kwarg.arg}"] if node.args.kwarg else []
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    if any(name.startswith("constructor(") for name in decorators):  # takes the fields of the record that it checks
        parameters = ["**fields"]
    compiled = "".join(f"@{name} " for name in decorators if name in ("kernel", "inlined"))
    result = "" if node.returns is None or ast.unparse(node.returns) == "None" else f" -> {ast.unparse(node.returns)}"
    return f"* `{compiled}{node.name}({', '.join(parameters)}){result}`: {about}\n"


if __name__ == "__main__":
    for folder in FOLDERS:
        rewrite(folder)
