"""A configuration: YAML and `key=value` overrides, held to the signatures of what it names, all mistakes at once.

    YAML (reading.py) → overrides merged (overrides.py) → references replaced (references.py) → one mapping
      → pydantic models made from signatures (schema.py) → checks across sections (checks.py)

Nothing here imports torch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from negbank.train import registry
from negbank.train.config.checks import impossible, missing
from negbank.train.config.overrides import changes, merge, switch_length, switch_types
from negbank.train.config.problems import ConfigError, lines, suggest
from negbank.train.config.reading import read
from negbank.train.config.references import resolved
from negbank.train.config.schema import root as root_model

__all__ = ["ConfigError", "load", "merge", "parse", "root_model", "root_of", "suggest", "switch_types", "to_dict"]
Config = Any
"""A model of `root_model`: sections as attributes, such as config.negatives.type."""


def load(
    path: str | Path, overrides: Sequence[str] = (), *, root: str = "train", inputs: bool = False
) -> tuple[Config, list[str]]:
    """Read a YAML file, apply `key=value` overrides, check everything.

    Args:
        path: the file.
        overrides: changes to it.
        root: the command whose file it is: "train", "ablate" or "compare".
        inputs: whether what a run reads has to be there, too.

    Returns:
        The configuration, and notes on what an override dropped.

    Raises:
        ConfigError: with every problem found, each naming its key and what to do.
    """
    return parse(_read(path), overrides, root=root, source=str(path), inputs=inputs)


def _read(path: str | Path) -> Any:
    try:
        return read(path)
    except ValueError as error:
        raise ConfigError(str(path), [str(error)]) from None


def parse(
    data: Any,
    overrides: Sequence[str] = (),
    *,
    root: str = "train",
    source: str = "configuration",
    inputs: bool = False,
) -> tuple[Config, list[str]]:
    """`load` for a mapping that is read already."""
    problems: list[str] = []
    notes: list[str] = []
    over = changes(overrides, problems)
    if data is not None and not isinstance(data, Mapping):
        raise ConfigError(source, [f"expected sections as a mapping, found {data!r:.60}"])
    data = copy.deepcopy(dict(data or {}))
    if (other := _root(data, root)) != root:
        problems.append(f"these are keys of `negbank {other}`, not of `negbank {root}`")
    if root == "train":
        switch_types(data, over, notes)
        switch_length(data, over, notes)
    elif root == "ablate":
        switch_types(data, over, notes, kinds=("source",))
    elif root == "compare":
        switch_types(data.get("base"), over.get("base"), notes, below="base.")
        methods, changed = data.get("methods"), over.get("methods")
        if isinstance(methods, dict) and isinstance(changed, dict):
            for name, section in methods.items():
                switch_types(section, changed.get(name), notes, below=f"methods.{name}.")
    try:
        whole = resolved(merge(data, over), problems)
    except ValueError as error:
        raise ConfigError(source, [*problems, str(error)]) from None
    config, found = check(whole, root, inputs=inputs)
    if problems + found:
        raise ConfigError(source, problems + found)
    return config, notes


def check(data: Mapping[str, Any], root: str, *, inputs: bool = False) -> tuple[Config, list[str]]:
    """The configuration of a mapping and what is wrong with it; None where something is."""
    top = root_model(root)
    problems: dict[str, str] = {}
    try:
        config = top.model_validate(data)
    except ValidationError as error:
        config = None
        problems = lines(error.errors(include_url=False), top)
    whole = dict(config) if config is not None else _sound(data, top, problems)
    names = registry.CHECKED.keys() & whole.keys() if root == "train" else {root}
    across = impossible(whole) if root == "train" else []
    across += missing(whole) if inputs and root == "train" else []
    across += [problem for name in sorted(names) for problem in registry.target_check(name)(whole)]
    return config, [*problems.values(), *across]


def _sound(data: Mapping[str, Any], top: Any, problems: Mapping[str, str]) -> dict[str, Any]:
    """The sections that nothing is wrong with."""
    broken = {where.split(".")[0].split("[")[0] for where in problems}
    kept = {key: value for key, value in data.items() if key in top.model_fields and key not in broken}
    try:
        return {k: v for k, v in top.model_validate(kept) if k not in broken}
    except ValidationError:  # one that is needed is among the others
        return {}


def root_of(path: str | Path) -> str:
    """Which command's a YAML file is: the one that knows most of its keys, `train` where others know no more.

    Raises:
        ConfigError: when it cannot be read.
    """
    return _root(_read(path), "train")


def _root(data: Any, default: str) -> str:
    """The root that knows most of a mapping's keys; `default` where others know no more."""
    names = {root: set(root_model(root).model_fields) for root in ("train", *registry.ROOTS)}
    known = {root: sum(key in names[root] for key in data) if isinstance(data, dict) else 0 for root in names}
    return max(known, key=lambda root: (known[root], root == default))


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain values, complete: what the folder of its results keeps."""
    found: dict[str, Any] = config.model_dump(mode="json")
    return {key: value for key, value in found.items() if key != "encoder_right" or value is not None}
