"""The scalars of a configuration: a number is a number, and text is text, as they were typed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BeforeValidator, Strict
from pydantic_core import PydanticCustomError

from negbank.train.config.reading import Typed

LARGEST = 2**63
"""Whole numbers are below it, or tensors could not hold them."""


def _whole(value: Any) -> Any:
    """1e2 is 100, but 1.5, true and "3" are no integers."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise PydanticCustomError("kind", "int")
    if abs(value) >= LARGEST:
        raise PydanticCustomError("value_error", "large", {"error": f"expected less than 2**63 = {LARGEST}"})
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("kind", "float")
    if abs(value) > 1.7e308 or math.isnan(value):
        raise PydanticCustomError("value_error", "finite", {"error": "expected a finite number"})
    return float(value)


def steps(value: Any) -> Any:
    """A whole number of steps, or a share of them."""
    number = _number(value)
    return int(number) if number.is_integer() else number


def _flag(value: Any) -> Any:
    """YAML's other words for true and false, too."""
    return FLAGS.get(value.lower(), value) if isinstance(value, str) else value


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise PydanticCustomError("kind", "text")
    if "\0" in value or any("\ud800" <= each <= "\udfff" for each in value):
        raise PydanticCustomError("value_error", "text", {"error": "expected text without NUL and lone surrogates"})
    return str(value)


def settled(value: Any, annotation: Any) -> Any:
    """A value with its plain scalars as an option of this type wants them: the text typed, or what that stands for.

    Where text may be left out, `~`, `null` and nothing at all leave it out.
    """
    if isinstance(value, Typed):
        kinds = set(_kinds(annotation))
        return str(value) if str in kinds and value and not (value.value is None and None in kinds) else value.value
    if isinstance(value, Mapping):
        return {key: settled(each, annotation) for key, each in value.items()}
    return [settled(each, annotation) for each in value] if isinstance(value, list) else value


def _kinds(annotation: Any) -> Any:
    """The scalar types that an annotation lets in, `None` for no value."""
    if get_origin(annotation) is Literal:
        yield from map(type, get_args(annotation))
    elif get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif inner := get_args(annotation):
        for each in inner[1:] if get_origin(annotation) is dict else inner:
            yield from _kinds(each)
    else:
        yield None if annotation is type(None) else annotation


Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number)]
Flag = Annotated[bool, Strict(), BeforeValidator(_flag)]
Text = Annotated[str, BeforeValidator(_text)]
FLAGS = {"yes": True, "on": True, "no": False, "off": False}
SCALARS: dict[str, Any] = {"int": Whole, "float": Number, "bool": Flag, "str": Text}
"""What the names of the scalar types mean in the annotation of an option."""
