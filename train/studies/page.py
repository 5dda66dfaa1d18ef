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


class Html(str):
    """Markup. Any other text is escaped where it enters a page, so that no name of a file or method can be markup."""


def html(value: Any) -> Html:
    """A value as markup: escaped, unless it is that already."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def paragraph(text: Any, kind: str = "") -> Html:
    """A paragraph, of a class of the style."""
    return Html(f'<p class="{escape(kind)}">{html(text)}</p>' if kind else f"<p>{html(text)}</p>")


def heading(text: Any) -> Html:
    """A heading of a section."""
    return Html(f"<h2>{html(text)}</h2>")


def folded(title: Any, parts: Sequence[Any], *, opened: bool = False) -> Html:
    """Parts under a title that shows and hides them."""
    inner = "".join(map(html, parts))
    return Html(f"<details{' open' * opened}><summary>{html(title)}</summary>{inner}</details>")


def write(path: Path, title: str, parts: Sequence[Any]) -> None:
    """A page of parts under a title."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join(map(html, parts))
    files.write(path, f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n')


def image(path: Path, alt: str) -> Html:
    """The PNG at `path` inside of the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return Html(f'<p><img alt="{escape(alt)}" src="data:image/png;base64,{data}"></p>')


def table(head: Sequence[Any], body: Sequence[Sequence[Any]]) -> Html:
    """A table of entries under a head."""
    lines = ["<tr>" + "".join(f"<td>{html(entry)}</td>" for entry in row) + "</tr>" for row in body]
    return Html(f"<table><tr>{''.join(f'<th>{html(name)}</th>' for name in head)}</tr>{''.join(lines)}</table>")


def settings(values: Mapping[str, Any]) -> Html:
    """The section that lists settings, a line a key."""
    return Html(heading("Settings") + table(("key", "value"), list(flat(values).items())))


def meanings(columns: Mapping[str, tuple[str, str]], where: str) -> Html:
    """The section that says what columns mean: key → title and text."""
    body = [(title, key, text) for key, (title, text) in columns.items()]
    shown = table(("column", f"in {where}", "what it says"), body)
    return Html(f'{heading("How to read the columns")}<div class="how">{shown}</div>')
