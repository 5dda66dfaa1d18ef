"""YAML text as plain containers, with every plain scalar as it was typed, and no more of it than a configuration needs.

    bytes → UTF-8 → yaml's nodes, of bounded depth → dict, list, text, `Typed`, of a bounded number

YAML says what `1e3`, `no` or `~` is before anybody knows what is wanted there. Here the option's type decides: a folder
named 1e3 is one, and 1e3 steps are a thousand (`Typed`). `yes`, `no`, `on` and `off` are words, which options that are
true or false understand. An alias is read again wherever it stands, so what a few lines of them expand to is counted as
it is read. Tags can name no classes here, and a key may stand only once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from negbank.remedies import opened

MOST_BYTES, MOST_VALUES, MOST_DEPTH = 1 << 20, 20_000, 50
"""What a configuration may be: bytes of its file, values after all aliases, mappings and lists in one another."""
PLAIN = "plain"
TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}
WHOLE = re.compile(r"[-+]?(?:0|[1-9]\d*(?:_\d+)*)|[-+]?0x[0-9a-fA-F]+|[-+]?0o[0-7]+|[-+]?0b[01]+", re.ASCII)
DECIMAL = re.compile(r"[-+]?(?:\d+(?:_\d+)*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
LOWER = {
    "": None, "~": None, "null": None, "true": True, "false": False,
    ".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan"),
}  # fmt: skip
WORDS: Mapping[str, Any] = {each: v for word, v in LOWER.items() for each in (word, word.title(), word.upper())}


class Typed(str):
    """A plain scalar that is no text by itself, as it was typed: a number, a truth value, or nothing."""

    @property
    def value(self) -> Any:
        """What it is where no text is wanted."""
        return _value(self)


def _value(text: str) -> Any:
    """The number, truth value or None of a plain scalar, or the text itself, by YAML 1.2's words."""
    if text in WORDS:
        return WORDS[text]
    if len(text) <= 400 and WHOLE.fullmatch(text):  # no number of an option is longer, and Python refuses to read some
        return int(text, 0)
    return float(text) if len(text) <= 400 and DECIMAL.fullmatch(text) and not re.match(r"[-+]?0\d", text) else text


def read(path: str | Path) -> Any:
    """The contents of a YAML file.

    Raises:
        ValueError: when it cannot be read.
    """
    try:
        with opened(Path(path)) as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{error.strerror}; give the path of a YAML file") from None
    if len(content) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES >> 20} MiB, which no configuration is; give a YAML file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not readable as UTF-8 ({error}); save it as UTF-8") from None
    return read_text(text)


def read_text(text: str) -> Any:
    """The value of YAML text: dict, list, str, `Typed`, or None where there is nothing.

    Raises:
        ValueError: for what is not YAML, names a class, repeats a key, or is more than a configuration needs.
    """
    try:
        node = _Loader(text).get_single_node()
        return None if node is None else _Reader().value(node, 0)
    except yaml.YAMLError as error:
        raise ValueError(f"not readable as YAML: {error}") from None


class _Loader(yaml.BaseLoader):
    """Nodes of which the plain scalars have the tag `PLAIN`, of bounded depth."""

    depth = 0

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        return PLAIN if kind is yaml.ScalarNode and implicit[0] else super().resolve(kind, value, implicit)

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise ValueError(f"more than {MOST_DEPTH} mappings and lists inside of one another; write it flatter")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Reader:
    """Counts the values that it makes of nodes."""

    def __init__(self) -> None:
        self.left = MOST_VALUES

    def value(self, node: Any, depth: int) -> Any:
        self.left -= 1
        if self.left < 0 or depth > MOST_DEPTH:
            raise ValueError(
                f"its aliases (*name) expand to more than {MOST_VALUES} values, or {MOST_DEPTH} inside of one another; "
                f"write the values themselves"
            )
        if node.tag != PLAIN and node.tag not in TAGS:
            raise ValueError(f"not readable as YAML: the tag {node.tag} names a type; write a plain value{_at(node)}")
        if isinstance(node, yaml.SequenceNode):
            return [self.value(each, depth + 1) for each in node.value]
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, depth)
        if node.tag == "tag:yaml.org,2002:str" or (node.tag == PLAIN and isinstance(_value(node.value), str)):
            return node.value
        return Typed(node.value)

    def mapping(self, node: Any, depth: int) -> dict[str, Any]:
        """Its own keys, then those of what it merges (`<<`)."""
        found: dict[str, Any] = {}
        merged: list[Any] = []
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"not readable as YAML: a mapping or list as a key{_at(key)}; keys are words")
            if key.tag == PLAIN and key.value == "<<":
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
            elif key.value in found:
                raise ValueError(f"not readable as YAML: duplicate key {key.value}{_at(key)}; leave one out")
            else:
                found[key.value] = self.value(value, depth + 1)
        for each in merged:
            below = self.value(each, depth + 1)
            if not isinstance(below, dict):
                raise ValueError(f"not readable as YAML: << merges mappings alone{_at(each)}")
            found = {**below, **found}
        return found


def _at(node: Any) -> str:
    return f" (line {node.start_mark.line + 1}, column {node.start_mark.column + 1})"
