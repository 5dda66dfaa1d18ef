"""What `key=value` overrides change in a file's mapping, before anything is held to a schema.

Overriding a `type`, on the
command line or in a method of a comparison, drops the options of the old type that the new one does not know, so that
one override is enough to change a method; overriding one of run.steps and run.epochs drops the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from negbank.train import registry
from negbank.train.config.reading import Typed, read_text
from negbank.train.config.schema import SECTIONS, alone, model

KEY = re.compile(r"[\w-]+(?:\.[\w-]+|\[\d+\])*", re.ASCII)


def changes(overrides: Sequence[str], problems: list[str]) -> dict[Any, Any]:
    """What `key=value` overrides set, as a mapping; those that cannot be read go to `problems`.

    A key such as proposals[1].k is one of the second entry, which has the key 1 here.
    """
    found: dict[Any, Any] = {}
    for item in overrides:
        key, _, text = item.partition("=")
        if not KEY.fullmatch(key) or "=" not in item:
            problems.append(f"{item!r}: expected key=value, as in run.steps=1000")
            continue
        try:
            value = read_text(text)
        except ValueError as error:
            problems.append(f"{item!r}: {' '.join(str(error).split())}; close or quote its value")
            continue
        for part in reversed(re.findall(r"[\w-]+", key)):
            value = {int(part) if f"[{part}]" in key and part.isdecimal() else part: value}
        found = merge(found, value)
    return found


def merge(base: Any, over: Any) -> Any:
    """`base` with the values of `over`, key by key of mappings, entry by entry of a list where `over` has indices."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {key: merge(base.get(key), over[key]) if key in over else base[key] for key in (*base, *over)}
    if isinstance(base, list) and isinstance(over, dict) and over and all(key in range(len(base)) for key in over):
        return [merge(each, over[i]) if i in over else each for i, each in enumerate(base)]
    return over


def switch_types(data: Any, over: Any, notes: list[str], *, below: str = "", kinds: Sequence[str] = SECTIONS) -> None:
    """Where `over` sets another `type` than a run's sections in `data`, drop the old type's options the new one lacks.

    Args:
        data: is changed.
        notes: what was dropped is added to.
        below: where the sections are, for the notes: "base." of a comparison.
        kinds: of the sections that are looked at.
    """
    for key in kinds:
        if isinstance(data, dict) and isinstance(over, Mapping) and key in registry.REGISTRY:
            _switch(data.get(key), over.get(key), key, f"{below}{key}", notes)


def _switch(data: Any, over: Any, kind: str, path: str, notes: list[str]) -> None:
    if not isinstance(over, Mapping) or not isinstance(data, dict):
        return
    known = registry.names(kind)
    new = _name(over.get("type", data.get("type", next(iter(known)))), kind)
    old = _name(data.get("type", next(iter(known))), kind)
    if new not in known or old not in known:
        return
    mine, theirs = (set(model(kind, name).model_fields) for name in (new, old))
    for key in [key for key in data if new != old and key in theirs - mine]:
        del data[key]
        notes.append(f"{path}.type={new}: dropped {path}.{key}, an option of {old}")
    for key, inner in model(kind, new).sections.items():
        if not alone(inner):
            _switch(data.get(key), over.get(key), inner, f"{path}.{key}", notes)


def _name(name: Any, kind: str) -> Any:
    return registry.ALIASES.get(kind, {}).get(name, name) if isinstance(name, str) else None


def switch_length(data: Any, over: Any, notes: list[str]) -> None:
    """Where `over` sets one of run.steps and run.epochs alone, drop the other of `data`."""
    mine, theirs = (each.get("run") if isinstance(each, dict) else None for each in (over, data))
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for new, old in (("steps", "epochs"), ("epochs", "steps")):
            if _set(mine, new) and old not in mine and _set(theirs, old):
                notes.append(f"run.{new}={mine[new]}: dropped run.{old}={theirs.pop(old)}")


def _set(section: Mapping[str, Any], key: str) -> bool:
    value = section.get(key)
    return (value.value if isinstance(value, Typed) else value) is not None
