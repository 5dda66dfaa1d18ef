"""What an argument may be, said once: in the signature that takes it.

    @checked
    def __init__(self, *, draws: Annotated[int, Ge(1)] = 2, query: Literal["bank", "fresh"] = "bank") -> None: ...

A call from Python is held to it by `checked`. The keys of YAML, their defaults, bounds and help are read from the same
signature and docstring (`negbank.train.config`), without importing the file: so annotations of options are written with
the names of this file, which imports nothing heavy, and defaults are literals.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

__all__ = [
    "Annotated", "Count", "Ge", "Gt", "Input", "Labels", "Le", "Literal", "Lt", "Positive", "Section", "Share",
    "Supplied", "checked",
]  # fmt: skip

P = ParamSpec("P")
T = TypeVar("T")

Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Ge(1)]


class Section:
    """Marks an argument that is made from a section of YAML with a `type`, or from a list of such sections.

    Args:
        kind: which registry its types are in, such as "proposal".
        default: the type it has where none is named.
        options: defaults of that type's options that differ here.
    """

    def __init__(self, kind: str, default: str, **options: Any) -> None:
        self.kind, self.default, self.options = kind, default, options


class Supplied:
    """Marks an option that has the value of another key of the run where it is not set, such as "loss.temperature"."""

    def __init__(self, key: str) -> None:
        self.key = key


class Labels:
    """Marks an argument of integer labels (N,) that YAML names as the path of an .npy file, or leaves out."""


class Input:
    """Marks an argument that is the path of a file or folder to read, which has to be there before a run begins."""


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, which refuses arguments outside of the bounds in its annotations; None is let through.

    Raises:
        ValueError: at a call, naming the argument, its value and what it may be.
    """
    signature = inspect.signature(function)
    bounds: dict[str, Any] = {}

    @functools.wraps(function)
    def held(*args: P.args, **kwargs: P.kwargs) -> T:
        if not bounds:
            bounds.update(_annotations(function, signature))
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
                given.arguments[name] = value = value.item()
            problem = misfit(bounds.get(name), value)
            if problem is not None:
                raise ValueError(f"{name}={value!r}: expected {problem}")
        return function(*given.args, **given.kwargs)

    return held


def misfit(annotation: Any, value: Any) -> str | None:
    """What a value should be by the bounds and choices of an annotation; None where it is that, or None."""
    if value is None:
        return None
    rules, choices = constraints(annotation)
    if choices and value not in choices:
        return f"one of {', '.join(map(str, choices))}"
    whole = _kinds(annotation) == {int}
    fits = not whole or (hasattr(value, "__index__") and not isinstance(value, bool))
    for _, holds in rules:
        try:
            fits = fits and holds(value)
        except TypeError:
            fits = False
    broken = whole and (isinstance(value, bool | float) or not rules)
    return None if fits else " and ".join([*(["a whole number"] if broken else []), *_said(rules)])


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation allows beside None."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {kind for part in get_args(annotation) if part is not type(None) for kind in _kinds(part)}
    return {annotation}


def constraints(annotation: Any) -> tuple[list[tuple[Any, Callable[[Any], bool]]], tuple[Any, ...]]:
    """The bounds (each with its test) and the choices of an annotation, through `| None` and `Annotated`."""
    if get_origin(annotation) is Literal:
        return [], get_args(annotation)
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        rules, choices = constraints(inner)
        return rules + [(mark, TESTS[type(mark)](mark)) for mark in marks if type(mark) in TESTS], choices
    parts = get_args(annotation) if get_origin(annotation) not in (list, tuple, dict) else ()
    held = [constraints(each) for each in parts if each is not type(None)]
    every = [choice for _, choices in held for choice in choices] if all(choices for _, choices in held) else []
    return [rule for rules, _ in held for rule in rules], tuple(every)


TESTS: Mapping[type, Callable[[Any], Callable[[Any], bool]]] = {
    Ge: lambda mark: lambda value: value >= mark.ge,
    Gt: lambda mark: lambda value: value > mark.gt,
    Le: lambda mark: lambda value: value <= mark.le,
    Lt: lambda mark: lambda value: value < mark.lt,
}
WORDS = {Ge: ("at least", "ge"), Gt: ("a value above", "gt"), Le: ("at most", "le"), Lt: ("below", "lt")}


def _said(rules: list[tuple[Any, Any]]) -> list[str]:
    return [f"{WORDS[type(mark)][0]} {getattr(mark, WORDS[type(mark)][1])}" for mark, _ in rules]


def _annotations(function: Callable[..., Any], signature: inspect.Signature) -> dict[str, Any]:
    """The annotations that hold bounds or choices, evaluated where the function was written."""
    scope = getattr(function, "__globals__", {})
    found = {}
    for name, parameter in signature.parameters.items():
        text = parameter.annotation
        if isinstance(text, str):
            text = eval(text, scope)
        found[name] = text
    return found
