"""What a benchmark needs beyond `negbank[train]`, said before any work."""

from __future__ import annotations

import importlib.util


def need(extra: str, *modules: str) -> None:
    """End the program unless the modules can be imported, with the extra of negbank that brings them."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"needs {', '.join(missing)}: pip install 'negbank[{extra}]'")
