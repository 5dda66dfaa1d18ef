"""YAML and `key=value` overrides as one plain mapping, before anything is held to a schema.

Interpolation is within the file alone: a resolver, which could read more, is refused. Overriding a `type`, on the
command line or in a method of a comparison, drops the options of the old type that the new one does not know, so that
one override is enough to change a method; overriding one of run.steps and run.epochs drops the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from negbank.train import registry
from negbank.train.config.problems import ConfigError
from negbank.train.config.schema import SECTIONS, alone, model


def read(path: str | Path) -> Any:
    """The contents of a YAML file.

    Raises:
        ConfigError: when it cannot be read.
    """
    try:
        return OmegaConf.load(path)
    except FileNotFoundError:
        raise ConfigError(str(path), ["no such file; give the path of a YAML file"]) from None
    except Exception as error:  # YAML's own errors name the line; whatever their class, the file cannot be read
        raise ConfigError(str(path), [f"not readable as YAML: {error}"]) from None


def changes(overrides: Sequence[str], problems: list[str]) -> Any:
    """What `key=value` overrides set, as a mapping; those that cannot be read go to `problems`."""
    found = OmegaConf.create({})
    for item in overrides:
        if item.find("=") < 1:
            problems.append(f"{item!r}: expected key=value, as in run.steps=1000")
            continue
        try:
            found.merge_with_dotlist([item])
        except Exception as error:  # YAML's and OmegaConf's errors have no class in common
            problems.append(f"{item!r}: not readable as YAML ({str(error).splitlines()[0]}); close or quote its value")
    return plain(found, problems)


def plain(node: Any, problems: list[str]) -> Any:
    """Plain containers with node interpolations resolved; resolvers, which read more than this file, refused."""
    node = node if OmegaConf.is_config(node) else OmegaConf.create(node)
    raw = OmegaConf.to_container(node, resolve=False)
    refused = [(key, text) for key, text in _strings(raw, "") if re.search(r"\$\{[^}]*:", text)]
    problems += [f"{key}: {text!r} asks a resolver, which is refused; write the value itself" for key, text in refused]
    try:
        if not refused:
            return OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        problems.append(str(error).splitlines()[0])
    return _without_interpolations(raw)


def _without_interpolations(value: Any) -> Any:
    """`value` less every string that would still be interpolated: reading one later would run what was refused."""
    if isinstance(value, dict):
        return {k: _without_interpolations(v) for k, v in value.items() if "${" not in str(k) and not _interpolated(v)}
    if isinstance(value, list):
        return [_without_interpolations(v) for v in value if not _interpolated(v)]
    return value


def _interpolated(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _strings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(str(key), f"{path}.{key}".strip("."))
            yield from _strings(inner, f"{path}.{key}".strip("."))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _strings(inner, f"{path}[{i}]")


def merge(base: Any, over: Any) -> Any:
    """`base` with the values of `over`, mapping by mapping."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {key: merge(base.get(key), over[key]) if key in over else base[key] for key in (*base, *over)}
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
            if mine.get(new) is not None and old not in mine and theirs.get(old) is not None:
                notes.append(f"run.{new}={mine[new]}: dropped run.{old}={theirs.pop(old)}")
