"""HTML pages that load nothing: tables, figures as data, one style."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

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


def page(title: str, parts: Sequence[str]) -> str:
    """A page of parts that are HTML already, under a title that is not."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def image(path: Path, alt: str) -> str:
    """The PNG at `path` inside of the page."""
    return f'<p><img alt="{alt}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"></p>'


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{''.join(lines)}</table>"


def settings_rows(value: Any, path: str = "") -> list[tuple[str, str]]:
    """One line a key; a list's mappings one line each."""
    if isinstance(value, Mapping) and "]" not in path:
        return [pair for k, inner in value.items() for pair in settings_rows(inner, f"{path}.{k}".strip("."))]
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return [pair for i, inner in enumerate(value) for pair in settings_rows(inner, f"{path}[{i}]")]
    inner = value.items() if isinstance(value, Mapping) else None
    text = str(value) if inner is None else ", ".join(f"{k} {v}" for k, v in inner if v is not None)
    return [(escape(path), escape(text))]
