"""A section of a configuration becomes the call of what it names.

Its options as they are, and of what the run supplies whatever the signature asks for by name. A section inside of it
becomes a factory that is called with the rest, as a proposal is with its snapshot.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from negbank.train import registry
from negbank.train.config.schema import described
from negbank.train.config.sections import COMMON, Options
from negbank.train.data.arrays import read_labels


def make(kind: str, section: Options, **supplied: Any) -> Any:
    """The object of a section.

    Args:
        kind: of its registry.
        section: its options.
        supplied: arguments of the run; the target takes those that it has parameters for. "loss.temperature" and other
            keys that an option follows are given under their name.
    """
    name = type_of(kind, section)
    target = registry.target(kind, name)
    shared = COMMON[kind].model_fields if kind in COMMON else ()
    options = {key: getattr(section, key) for key in type(section).model_fields if key != "type" and key not in shared}
    for option in described(kind, name).options:
        if option.follows is not None and options[option.name] is None:
            options[option.name] = supplied[option.follows]
        if option.labels and options[option.name] is not None:
            options[option.name] = read_labels(options[option.name], f"{kind}.{option.name}")
        if option.section is not None and options[option.name] is not None:
            options[option.name] = _factory(option.section.kind, options[option.name], supplied)
    taken = inspect.signature(target).parameters
    return target(**options, **{key: value for key, value in supplied.items() if key in taken and key not in options})


class Factory(NamedTuple):
    """What makes the object of an inner section once the rest is known, such as a proposal with its snapshot."""

    kind: str
    section: Options
    supplied: Mapping[str, Any]

    def __call__(self, *first: Any, **rest: Any) -> Any:
        names = inspect.signature(registry.target(self.kind, type_of(self.kind, self.section))).parameters
        late = self.supplied.get("late", dict)()
        return make(self.kind, self.section, **{**self.supplied, **late, **dict(zip(names, first)), **rest})


def _factory(kind: str, section: Any, supplied: Mapping[str, Any]) -> Any:
    """That of an inner section, or of each of a list of them."""
    return (
        [Factory(kind, each, supplied) for each in section]
        if isinstance(section, list)
        else Factory(kind, section, supplied)
    )


def type_of(kind: str, section: Options) -> str:
    """The type that a section names, or the default of its kind."""
    return getattr(section, "type", None) or next(iter(registry.names(kind)))
