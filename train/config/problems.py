"""All that is wrong with a configuration, one line a mistake: the key, the value, what is expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from negbank.train import registry
from negbank.train.config.schema import at
from negbank.train.config.sections import Options


class ConfigError(ValueError):
    """All that is wrong with a configuration, one line a problem."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        super().__init__(f"{source}: {len(problems)} problem(s)\n" + "\n".join(f"  {p}" for p in problems))
        self.problems = list(problems)


def suggest(name: str, known: Iterable[str]) -> str:
    """'; did you mean x?' for the known name nearest to `name`, else the names there are."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"


MOST_SHOWN = 200
BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def lines(errors: Iterable[Mapping[str, Any]], root: type[Options]) -> dict[str, str]:
    """Place → problem, the first of each place, of pydantic's errors of the model `root`."""
    found: dict[str, str] = {}
    errors = list(errors)
    for error in errors:
        parts = [p for p in error["loc"] if not str(p).startswith("<")]
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).removeprefix(".")
        if error["type"] == "type":
            where, text = f"{where}.type", _unknown(error, root)
        elif error["type"] == "missing" and isinstance(parts[-1], int):  # a list that is too short
            where = where.rpartition("[")[0]
            length = 1 + max(e["loc"][-1] for e in errors if e["loc"][:-1] == error["loc"][:-1])
            text = f"{error['input']!r}, expected {length} values"
        else:
            text = _text(error, root)
        while where.endswith((".int", ".float")):  # a branch of a union
            where = where.rpartition(".")[0]
        found.setdefault(where, f"{where}: {text}")
    return found


def _unknown(error: Mapping[str, Any], root: type[Options]) -> str:
    kind = at(root, error["loc"])[1] or ""
    name = error["input"].get("type")
    known = [*registry.names(kind), *registry.ALIASES.get(kind, {})]
    return f"{shown(name)} is unknown{suggest(str(name)[:MOST_SHOWN], known)}"


def _text(error: Mapping[str, Any], root: type[Options]) -> str:
    kind, value, context = error["type"], shown(error["input"]), error.get("ctx", {})
    if kind == "extra_forbidden":
        found, _ = at(root, error["loc"][:-1])
        return f"no such key{suggest(str(error['loc'][-1]), found.model_fields if found else ())}"
    if kind == "missing":
        return f"is needed: {_help(error, root)}"
    if kind in ("mapping", "model_type", "model_attributes_type", "dict_type"):
        return f"expected a mapping of options, found {value}"
    if kind == "literal_error":
        return f"{value}, expected one of {context['expected'].replace(chr(39), '').replace(' or ', ', ')}"
    if kind == "too_long":
        return f"{value}, expected {context['max_length']} values"
    if kind == "kind" or kind.endswith(("_type", "_parsing")):
        word = error["msg"] if kind == "kind" else kind.rpartition("_")[0].removesuffix("_from")
        return f"{value} is no {word.replace('string', 'text')}; {_help(error, root)}"
    for name, words in BOUNDS.items():
        if name in context:
            bound = context[name]
            return f"{value}, expected {words} {_bound(bound)}"
    if kind == "value_error":
        return f"{value}: {context['error']}"
    return f"{value}: {error['msg']}; {_help(error, root)}"


def _bound(bound: Any) -> str:
    whole = int(bound) if isinstance(bound, float) and bound % 1 == 0 else bound
    power = isinstance(whole, int) and whole >= 1 << 20 and whole & (whole - 1) == 0
    return f"{whole} (2**{whole.bit_length() - 1})" if power else f"{bound:g}" if bound == whole > 1e15 else str(whole)


def shown(value: Any) -> str:
    """A value in a message: of a long one the beginning."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}… ({len(text)} characters)"


def _help(error: Mapping[str, Any], root: type[Options]) -> str:
    """The help of the innermost key on the way to an error."""
    place = list(error["loc"])
    while place:
        found, _ = at(root, place[:-1])
        if found is not None and place[-1] in found.model_fields:
            return found.model_fields[place[-1]].description or ""
        place.pop()
    return ""
