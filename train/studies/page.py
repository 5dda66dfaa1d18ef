"""HTML pages that load nothing: tables, figures as data, one style."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from negbank import files
from negbank.train.config.differences import flat

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
.answer { font-size: 1.25rem; background: #f0f5fa; border-left: 4px solid #0072b2; padding: .8rem 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
table { display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.how td { text-align: left; white-space: normal; }
td small { color: #666; } img { max-width: 100%; } summary { cursor: pointer; padding: .3rem 0; font-weight: 600; }
"""


def write(path: Path, title: str, parts: Sequence[str]) -> None:
    """A page of parts that are HTML already, under a title that is not."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    files.write(path, f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n')


def image(path: Path, alt: str) -> str:
    """The PNG at `path` inside of the page."""
    return f'<p><img alt="{alt}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"></p>'


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table whose entries are HTML already, under a head that is not."""
    lines = ["<tr>" + "".join(f"<td>{entry}</td>" for entry in row) + "</tr>" for row in body]
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{''.join(lines)}</table>"


def settings(values: Mapping[str, Any]) -> str:
    """The section that lists settings, a line a key."""
    body = [(escape(key), escape(str(value))) for key, value in flat(values).items()]
    return "<h2>Settings</h2>" + table(("key", "value"), body)


def meanings(columns: Mapping[str, tuple[str, str]], where: str) -> str:
    """The section that says what columns mean: key → title and text."""
    body = [(escape(title), key, escape(text)) for key, (title, text) in columns.items()]
    head = ("column", f"in {where}", "what it says")
    return f'<h2>How to read the columns</h2><div class="how">{table(head, body)}</div>'
