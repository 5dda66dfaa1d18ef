"""References `${section.key}` of a configuration to its own values, and to nothing else.

    "${run.steps}"           the value itself, a mapping or a list included
    "runs/${run.seed}"       text with a value in it

OmegaConf resolves them. It could also ask resolvers, for the environment say, so text is looked at first: `${` that is
anything but a plain reference is refused, and so is text that becomes one; what references expand to is counted before
it is expanded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from negbank.train.config.reading import MOST_DEPTH, MOST_VALUES

REFERENCE = re.compile(r"(?<![$\\])\$\{([\w-]+(?:\.[\w-]+|\[\d+\])*)\}", re.ASCII)
MOST_TEXT = 1 << 16
"""Characters that text may have after its references."""


class _Refused(Exception):
    """A value that is left out, with what to say about it."""


class _Size(NamedTuple):
    """Of a value with all that it refers to: values, characters of text (None for a container), and how deep it is."""

    values: int
    text: int | None
    depth: int


def resolved(data: Any, problems: list[str]) -> Any:
    """`data` with its references replaced; values that cannot be are left out, and named in `problems`.

    Raises:
        ValueError: for references that expand to more than a configuration needs.
    """
    sizes = _Sizes(data)
    kept = _sound(data, "", lambda text: sizes.of(text, ()), problems)
    size = _Sizes(kept).of(kept, ())
    if size.values > MOST_VALUES or size.depth > 2 * MOST_DEPTH:
        raise ValueError(
            f"references expand to more than {MOST_VALUES} values, or {2 * MOST_DEPTH} inside of one another; write "
            f"the values themselves"
        )
    found = OmegaConf.to_container(OmegaConf.create(kept, flags={"allow_objects": True}), resolve=True)
    return _sound(found, "", _plain, problems)


def _plain(text: str) -> None:
    if "${" in text:
        raise _Refused(f"{_short(text)} becomes a reference, which is refused; write the value itself")


def _sound(value: Any, place: str, check: Callable[[str], object], problems: list[str]) -> Any:
    """A value without the texts in it that `check` refuses, each named by the place where it stands."""
    listed = isinstance(value, list)
    if not listed and not isinstance(value, Mapping):
        return value
    kept = []
    for key, each in enumerate(value) if listed else value.items():
        where = f"{place}[{key}]" if listed else f"{place}.{key}".removeprefix(".")
        try:
            if isinstance(key, str) and "${" in key:
                raise _Refused("a key cannot be a reference; write it out")
            if isinstance(each, str):
                check(each)
        except _Refused as refused:
            problems.append(f"{where}: {refused}")
        else:
            kept.append((str(key), _sound(each, where, check, problems)))
    return [each for _, each in kept] if listed else dict(kept)


class _Sizes:
    """Sizes of values with what they refer to, each reference looked up once."""

    def __init__(self, data: Any) -> None:
        self._data, self._known = data, dict[str, _Size]()

    def of(self, value: Any, seen: tuple[str, ...]) -> _Size:
        """The size of a value, met by way of the references `seen`."""
        if isinstance(value, Mapping | list):
            parts = [self.of(each, seen) for each in (value.values() if isinstance(value, Mapping) else value)]
            return _Size(1 + sum(p.values for p in parts), None, 1 + max((p.depth for p in parts), default=0))
        if not isinstance(value, str) or "${" not in value:
            return _Size(1, len(str(value)), 0)
        if "${" in REFERENCE.sub("", value):
            raise _Refused(
                f"{_short(value)} asks a resolver, which is refused; write the value itself, or ${{section.key}} for "
                f"that of another key"
            )
        targets = [self._target(path, seen) for path in REFERENCE.findall(value)]
        if REFERENCE.fullmatch(value):
            return targets[0]
        if any(target.text is None for target in targets):
            raise _Refused(f"{_short(value)} refers to no single value, which text could have in it; write it out")
        length = len(REFERENCE.sub("", value)) + sum(target.text or 0 for target in targets)
        if length > MOST_TEXT:
            raise _Refused(f"its references expand to more than {MOST_TEXT} characters; write them out")
        return _Size(1, length, 0)

    def _target(self, path: str, seen: tuple[str, ...]) -> _Size:
        if path in seen or len(seen) > MOST_DEPTH:
            circle = "refers to itself" if path in seen else f"is more than {MOST_DEPTH} references long"
            raise _Refused(f"${{{path}}} {circle}; write the value itself")
        if path not in self._known:
            value = self._data
            for key in re.findall(r"[\w-]+", path):
                if isinstance(value, Mapping) and key in value:
                    value = value[key]
                elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                    value = value[int(key)]
                else:
                    raise _Refused(f"${{{path}}} names no key that is set; write the value itself")
            self._known[path] = self.of(value, (*seen, path))
        return self._known[path]


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:200] + "…")
