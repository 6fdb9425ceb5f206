"""Which module imports which: one way only, and few enough side by side that one finds one's room."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.commands import ROOT

MOST_MODULES = 12


def modules() -> dict[str, Path]:
    files = [*(ROOT / "imgnet").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py"), ROOT / "run.py"]
    parts = {file: file.relative_to(ROOT).with_suffix("").parts for file in files}
    return {".".join(names).removesuffix(".__init__"): file for file, names in parts.items()}


def imports(file: Path, known: dict[str, Path]) -> set[str]:
    """The modules that a file imports, wherever it does so; of a package itself those of its ``__init__``."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: a relative import"
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in named}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(known)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(file, known) for name, file in known.items()}


def test_imports_have_no_cycle(graph: dict[str, set[str]]) -> None:
    assert len(graph) > 100
    assert "imgnet.train" in graph["imgnet.launch.workers.worker"]
    TopologicalSorter(graph).prepare()  # raises a CycleError that names it


def test_packages_import_one_way(graph: dict[str, set[str]]) -> None:
    def package(name: str) -> str:
        return ".".join(name.split(".")[:2])

    between: dict[str, set[str]] = {}
    for name, others in graph.items():
        between.setdefault(package(name), set()).update({package(other) for other in others} - {package(name)})
    TopologicalSorter(between).prepare()


def test_no_folder_is_crowded() -> None:
    crowded = {}
    for folder in {file.parent for file in (ROOT / "imgnet").rglob("*.py")}:
        name, count = str(folder.relative_to(ROOT)), len([*folder.glob("*.py")]) - 1
        if count > MOST_MODULES:
            crowded[name] = count
    assert not crowded
