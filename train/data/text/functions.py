"""Documented functions in Python files: what each says it does, and how it does it.

def area(r):                             query     "The area of a circle."
    \"\"\"The area of a circle. ...\"\"\"   →     document  "def area(r):\\n    return pi * r * r"
    return pi * r * r
"""

from __future__ import annotations

import ast
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

WORDS = range(4, 41)
"""How many words a query may have."""
LARGEST = 1 << 20
"""Bytes of a file that is read; larger ones are made by machines."""


class Function(NamedTuple):
    """The first sentence of a docstring, the signature and body without it, and the function's name."""

    query: str
    document: str
    name: str


def functions(source: str) -> Iterator[Function]:
    """The functions of a file that have a docstring and a body. A file that is no Python of this version has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes, which are not ours
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    lines = source.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        doc = node.body[0]
        if not (isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)):
            continue
        query = sentence(doc.value.value)
        if len(query.split()) in WORDS and doc.lineno > node.lineno:
            kept = [*lines[node.lineno - 1 : doc.lineno - 1], *lines[doc.end_lineno : node.end_lineno]]
            yield Function(query, textwrap.dedent("\n".join(kept)), node.name)


def sentence(docstring: str) -> str:
    """The first sentence of a docstring's first paragraph, in one line."""
    paragraph = " ".join(docstring.strip().partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".")


def read(root: Path, paths: Sequence[Path]) -> list[list[Function]]:
    """Those of each file, named "file:function". A file in another encoding, or gone meanwhile, has none."""
    found = []
    for path in paths:
        try:
            source = path.read_text("utf-8")
        except (UnicodeDecodeError, OSError):
            source = ""
        place = path.relative_to(root).as_posix()
        found.append([each._replace(name=f"{place}:{each.name}") for each in functions(source)])
    return found
