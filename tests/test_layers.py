"""train → samplers → negbank, never back; faiss in one file; and the installed packages import from anywhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ["negbank", "samplers", "train"]
FILES = [path for package in ORDER for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_imports_a_later_package(path):
    later = ORDER[ORDER.index(path.relative_to(ROOT).parts[0]) + 1 :]
    assert not imported(path) & set(later)
    assert not imported(path) & {"tests", "benchmarks", "examples"}


def test_faiss_is_imported_by_one_file():
    assert [str(p.relative_to(ROOT)) for p in FILES if "faiss" in imported(p)] == ["negbank/index/faiss.py"]


def test_no_junk_rooms():
    assert not [p for p in FILES if p.stem in {"utils", "util", "helpers", "misc", "common"}]


def test_installed_packages_import_from_a_foreign_directory(tmp_path):
    code = (
        "import negbank, negbank.proposals, samplers.negatives, samplers.batches, train.cli, train.run\n"
        "from importlib.metadata import version, entry_points\n"
        "assert version('negbank')\n"
        "(script,) = entry_points(group='console_scripts', name='negbank')\n"
        "assert script.load() is train.cli.main"
    )
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
