"""The README's Python runs as it stands, and the files it names exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_the_python_runs():
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["ids"].shape == names["log_q"].shape == (256, 16)


def test_no_placeholder_is_left():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert not re.search(r"^[A-Z_]{6,}$", path.read_text(), re.MULTILINE), path


def test_what_it_names_exists():
    for name in re.findall(r"\]\((\S+?)\)|`((?:configs|examples|docs)/\S+?)`", TEXT):
        assert (ROOT / (name[0] or name[1])).exists(), name
