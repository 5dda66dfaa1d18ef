"""References `${section.key}` of a configuration to its own values, and to nothing else.

    "${run.steps}"           the value itself, a mapping or a list included
    "runs/${run.seed}"       text with a value in it

There is no resolver here that could read an environment, a file or a clock, so none can be asked, however references
are put together. Text in which `${` is anything but a plain reference is refused, and so is text that becomes one. What
references expand to is counted, and a circle of them is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from negbank.train.config.reading import MOST_DEPTH, MOST_VALUES

REFERENCE = re.compile(r"\$\{([\w-]+(?:\.[\w-]+|\[\d+\])*)\}", re.ASCII)
MOST_TEXT = 1 << 16
"""Characters that text may have after its references."""


class _Refused(Exception):
    """A value that is left out, with what to say about it."""


def resolved(data: Any, problems: list[str]) -> Any:
    """`data` with its references replaced; values that cannot be are left out, and named in `problems`.

    Raises:
        ValueError: for references that expand to more than a configuration needs.
    """
    return _References(data, problems).inside(data, "", ())


class _References:
    def __init__(self, data: Any, problems: list[str]) -> None:
        self.data, self.problems, self.left = data, problems, MOST_VALUES

    def inside(self, value: Any, place: str, seen: tuple[str, ...], depth: int = 0) -> Any:
        """A value with what it refers to; of containers without the values that are refused.

        Args:
            place: where it stands, for the problem.
            seen: the references on the way to it.
        """
        self.left -= bool(seen)
        if self.left < 0 or depth > 2 * MOST_DEPTH:
            raise ValueError(
                f"{place}: references expand to more than {MOST_VALUES} values, or {2 * MOST_DEPTH} inside of one "
                f"another; write the values themselves"
            )
        if isinstance(value, Mapping):
            found = {str(key): self._entry(value[key], key, place, seen, depth) for key in value}
            return {key: entry[0] for key, entry in found.items() if entry}
        if isinstance(value, list):
            entries = [self._entry(each, i, place, seen, depth) for i, each in enumerate(value)]
            return [entry[0] for entry in entries if entry]
        return self._text(value, place, seen, depth) if isinstance(value, str) and "${" in value else value

    def _entry(self, value: Any, key: Any, place: str, seen: tuple[str, ...], depth: int) -> tuple[Any, ...]:
        """An entry of a container, or nothing where it is refused: which is said of the place that was written."""
        where = place if seen else f"{place}[{key}]" if isinstance(key, int) else f"{place}.{key}".removeprefix(".")
        try:
            if isinstance(key, str) and "${" in key:
                raise _Refused(f"{where}: a key cannot be a reference; write it out")
            return (self.inside(value, where, seen, depth + 1),)
        except _Refused as refused:
            if seen:
                raise
            self.problems.append(str(refused))
            return ()

    def _text(self, text: str, place: str, seen: tuple[str, ...], depth: int) -> Any:
        if "${" in REFERENCE.sub("", text):
            raise _Refused(
                f"{place}: {_short(text)} asks a resolver, which is refused; write the value itself, or "
                f"${{section.key}} for that of another key"
            )
        if whole := REFERENCE.fullmatch(text):
            return self._target(whole[1], place, seen, depth)
        parts, end = [], 0
        for match in REFERENCE.finditer(text):
            value = self._target(match[1], place, seen, depth)
            if isinstance(value, Mapping | list):
                raise _Refused(f"{place}: {match[0]} is no single value, which text could have in it; write it out")
            parts += [text[end : match.start()], str(value)]
            end = match.end()
            if sum(map(len, parts)) > MOST_TEXT:
                raise _Refused(f"{place}: its references expand to more than {MOST_TEXT} characters; write them out")
        found = "".join((*parts, text[end:]))
        if "${" in found:
            raise _Refused(f"{place}: {_short(text)} becomes a reference, which is refused; write the value itself")
        return found

    def _target(self, path: str, place: str, seen: tuple[str, ...], depth: int) -> Any:
        if path in seen or len(seen) > MOST_DEPTH:
            circle = "refers to itself" if path in seen else f"is more than {MOST_DEPTH} references long"
            raise _Refused(f"{place}: ${{{path}}} {circle}; write the value itself")
        value = self.data
        for key in re.findall(r"[\w-]+", path):
            if isinstance(value, Mapping) and key in value:
                value = value[key]
            elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            else:
                raise _Refused(f"{place}: ${{{path}}} names no key that is set; write the value itself")
        return self.inside(value, place, (*seen, path), depth)


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:200] + "…")
