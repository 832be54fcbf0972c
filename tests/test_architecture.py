"""docs/architecture.md says the truth: imports go down its list of packages, and every package is in it."""

import ast
import re
from pathlib import Path

from tests.tiny import ROOT

PACKAGE = ROOT / "selfreward_jax"
UNRANKED = {"__init__", "__main__"}  # doors without a room


def lines_of_the_list() -> list[set[str]]:
    """The packages and modules of each line, top first."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", text.split("## Packages")[1].split("\n## ")[0], flags=re.MULTILINE)
    return [{name.rstrip("/").removesuffix(".py") for name in re.findall(r"`([\w/.]+)`", row)} for row in rows]


def imported(file: Path) -> set[str]:
    """First parts below the package of all that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "selfreward_jax":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("selfreward_jax."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("selfreward_jax.")}
    return found


def test_every_package_is_in_the_list_and_the_list_has_no_other():
    there = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or any(p.glob("*.py"))} - UNRANKED
    assert set.union(*lines_of_the_list()) == there
    assert not [name for name in there if (PACKAGE / name).is_dir() and not (PACKAGE / name / "__init__.py").exists()]


def test_imports_go_down_the_list():
    rank = {name: n for n, names in enumerate(lines_of_the_list()) for name in names}
    up = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in sorted(PACKAGE.rglob("*.py"))
        if (own := file.relative_to(PACKAGE).parts[0].removesuffix(".py")) not in UNRANKED
        for name in sorted(imported(file))
        if name in rank and rank[name] < rank[own]
    ]
    assert not up, "\n".join(up)
