"""The API pages of the READMEs are those of the docstrings."""

import ast
from pathlib import Path

import pytest

from host.bench.api_pages import FOLDERS, PAGE, api_page, entry, rewrite
from tests.fixtures.paths import ROOT


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_page_is_current(folder: str) -> None:
    (page,) = PAGE.findall((ROOT / folder / "README.md").read_text(encoding="utf-8"))
    assert page == api_page(folder), "python -m host.bench.api_pages writes it anew"


def test_a_page_has_what_other_folders_use() -> None:
    page = api_page("kernels")
    assert "* `@kernel step(account, trade, bars, t, action, market) -> float`: `step_to_target` to the target" in page
    assert "* `class OnnxNetworks`: ONNX graphs by their names in `NETWORKS`" in page
    assert "* `new_search_config(**fields) -> SearchConfig`:" in page
    assert "expand_leaves" not in page  # the search uses it, nobody else
    assert "* `draw_noise(" in page.replace("@inlined ", "").replace("@kernel ", "")  # `kernels.search` exports it


def test_a_line_has_all_parameters() -> None:
    (node,) = ast.parse("def f(a, /, b, *c, d=1, **e) -> None:\n    'Do it.\\n\\nMore.'").body
    assert isinstance(node, ast.FunctionDef)
    assert entry(node) == "* `f(a, b, *c, d=, **e)`: Do it.\n"


def test_a_page_is_written_between_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path
    monkeypatch.setattr("host.bench.api_pages.ROOT", root)
    for name, text in {
        "kernels/one.py": 'def used(x):\n    """Use x."""\ndef own(): "."',
        "host/two.py": "from kernels.one import used",
        "kernels/README.md": "# A\n<!-- python -m host.bench.api_pages -->\nold\n<!-- end -->\nB\n",
        "swt.py": "",
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    rewrite("kernels")
    page = "\n**`kernels/one.py`**\n\n* `used(x)`: Use x.\n\n"
    written = (root / "kernels/README.md").read_text(encoding="utf-8")
    assert written == f"# A\n<!-- python -m host.bench.api_pages -->\n{page}<!-- end -->\nB\n"
