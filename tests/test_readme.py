"""The README's Python runs as it stands, and the files it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import negbank
from negbank.train import registry

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def python(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


def test_the_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in python(ROOT / "README.md"):
        exec(code, names)
    assert names["ids"].shape == names["log_q"].shape == (256, 16)
    assert names["vectors"].shape == (5, 16)


def test_the_python_of_the_architecture_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = python(ROOT / "docs" / "architecture.md")
    exec(code, {})


def test_the_diff_of_contributing_is_a_sampler(tmp_path, monkeypatch):
    """The added lines, as they stand, are a file that trains."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (diff,) = re.findall(r"```diff\n(.*?)```", text, re.DOTALL)
    added = [line[1:] for line in diff.split("+++ b/train/registry.py")[0].splitlines()[1:]]
    path = tmp_path / "harder_half.py"
    path.write_text("\n".join(added) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.REGISTRY, "negatives", dict(registry.REGISTRY["negatives"]))
    registry.register("negatives", "harder_half", "harder_half:HarderHalf")
    assert '"negbank.samplers.negatives.harder_half:HarderHalf"' in diff
    run = {"steps": 3, "dir": str(tmp_path / "run")}
    found = negbank.fit(torch.randn(80, 8), torch.nn.Linear(8, 4), negatives="harder_half", run=run,
                        batches={"batch_size": 16})  # fmt: skip
    monkeypatch.undo()
    for forget in registry.CACHES:
        forget()
    assert found.summary["steps"] == 3


def test_no_placeholder_is_left():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert not re.search(r"^[A-Z_]{6,}$", path.read_text(), re.MULTILINE), path


def test_what_it_names_exists():
    for name in re.findall(r"\]\((\S+?)\)|`((?:configs|examples|docs)/\S+?)`", TEXT):
        assert (ROOT / (name[0] or name[1])).exists(), name
