"""Settings as results keep them: plain values under dotted keys, and what two of them differ in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested settings by key, such as `run.steps` or `proposals[1].k`."""
    if isinstance(value, Mapping) and value:
        inner = {f"{path}.{key}".strip("."): each for key, each in value.items()}
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        inner = {f"{path}[{i}]": each for i, each in enumerate(value)}
    else:
        return {path: value}
    return {key: found for where, each in inner.items() for key, found in flat(each, where).items()}


def differences(mine: Any, theirs: Any, where: str, ignored: Collection[str] = ()) -> str:
    """The first keys in which settings differ, such as `run.steps: 9 there, 8 now`; '' where none does."""
    a, b = flat(mine), flat(theirs)
    differ = [key for key in a | b if a.get(key) != b.get(key) and key not in ignored]
    return "; ".join(f"{key}: {b.get(key)} {where}, {a.get(key)} now" for key in differ[:6])
