"""train → samplers → negbank, never back, no circle; faiss in one place; and the packages import from anywhere."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ["negbank", "samplers", "train"]
FILES = [path for package in ORDER for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(module: str) -> str:
    """The folder that an installed module is in."""
    parts = module.split(".")
    return parts[1] if parts[0] == "negbank" and len(parts) > 1 and parts[1] in ORDER else parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_imports_a_later_package(path):
    if path in (ROOT / "negbank/__main__.py", ROOT / "negbank/__init__.py"):
        return  # the command line, and the shop window, whose names load their files when asked for
    later = ORDER[ORDER.index(path.relative_to(ROOT).parts[0]) + 1 :]
    assert not {layer(module) for module in imported(path)} & {*later, "tests", "benchmarks", "examples"}


def module(path: Path) -> str:
    """The name that a file is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join((*(("negbank",) if parts[0] != "negbank" else ()), *parts)).removesuffix(".__init__")


def test_no_file_imports_itself_by_way_of_others():
    files = {module(path) for path in FILES}
    graph = {}
    for path in FILES:
        nearest = (next((n for n in (m, m.rpartition(".")[0]) if n in files), "") for m in imported(path))
        graph[module(path)] = {name for name in nearest if name}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


def test_runs_know_no_studies():
    inside = [ROOT / "train/studies", ROOT / "train/commands"]
    users = {p for p in FILES if any(m.startswith("negbank.train.studies") for m in imported(p))}
    assert not {p for p in users if not any(p.is_relative_to(folder) for folder in inside)}


def test_faiss_is_imported_by_the_index_alone():
    found = {str(p.relative_to(ROOT)) for p in FILES if "faiss" in map(layer, imported(p))}
    assert found == {f"negbank/index/{name}.py" for name in ("faiss", "factory", "faiss_gpu")}


def test_every_folder_is_installed_under_one_name():
    listed = re.findall(r'^  "(negbank[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in FILES}
    assert set(listed) == {f if f.startswith("negbank") else f"negbank.{f}" for f in folders}


def test_no_junk_rooms():
    assert not [p for p in FILES if p.stem in {"utils", "util", "helpers", "misc", "common"}]


def test_installed_packages_import_from_a_foreign_directory(tmp_path):
    code = (
        "import negbank.proposals, negbank.samplers.negatives, negbank.samplers.batches, negbank.train.run\n"
        "import negbank.train.commands, negbank.__main__\n"
        "from importlib.metadata import version, entry_points\n"
        "assert version('negbank')\n"
        "(script,) = entry_points(group='console_scripts', name='negbank')\n"
        "assert script.load() is negbank.train.commands.main"
    )
    for shadow in ("train", "samplers"):  # a user's own files of these names
        (tmp_path / f"{shadow}.py").write_text("raise SystemExit('shadowed')")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert "usage" in subprocess.check_output([sys.executable, "-m", "negbank", "--help"], cwd=tmp_path, text=True)
