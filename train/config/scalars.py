"""The scalars of a configuration: a number is a number, and text is text, as they were typed."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Strict
from pydantic_core import PydanticCustomError


def _whole(value: Any) -> Any:
    """1e2 is 100, but 1.5, true and "3" are no integers."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise PydanticCustomError("kind", "int")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("kind", "float")
    return float(value)


Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number)]
Flag = Annotated[bool, Strict()]
SCALARS: dict[str, Any] = {"int": Whole, "float": Number, "bool": Flag, "str": str}
"""What the names of the scalar types mean in the annotation of an option."""
