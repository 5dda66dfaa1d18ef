"""What two configurations differ in, key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAY_DIFFER = ("run.dir", "run.checkpoint_every", "run.device", ".root", ".memory_gb", "data.workers")
"""Ends of keys in which a resumed run may differ from its checkpoint: where things are, how often they are saved."""


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any], where: str) -> str:
    """The first keys in which two configurations differ, such as `run.steps: 9 there, 8 now`; '' for one run's."""
    a, b = flat(mine), flat(theirs)
    differ = [k for k in sorted(a | b) if a.get(k) != b.get(k) and not k.endswith(MAY_DIFFER)]
    return "; ".join(f"{k}: {b.get(k)} {where}, {a.get(k)} now" for k in differ[:6])


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted key → value of nested mappings, such as `run.steps` or `proposals[1].k`."""
    if isinstance(value, Mapping) and value:
        inner = {f"{path}.{key}".strip("."): each for key, each in value.items()}
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        inner = {f"{path}[{i}]": each for i, each in enumerate(value)}
    else:
        return {path: value}
    return {key: found for where, each in inner.items() for key, found in flat(each, where).items()}
