"""What a class or function takes, read from its source and never by importing it.

    target "module:name" → file → syntax tree → parameters, defaults, annotations, docstring

So `negbank list`, `--help` and a wrong configuration need no torch. Annotations of options are evaluated with the names
of `negbank.bounds` alone; arguments that the run supplies may have any.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from negbank import bounds
from negbank.bounds import Input, Labels, Section, Supplied
from negbank.train import registry
from negbank.train.config.scalars import SCALARS

REQUIRED: Any = ...
"""Default of an option that must be given."""
PAPER = re.compile(r"([A-Z][\w’'-]+(?: et al\.| (?:&|and) [A-Z][\w-]+)),?[^;]{0,120}?((?:19|20)\d\d)", re.DOTALL)
"""Authors, and the year that is named with them."""


class Option(NamedTuple):
    """One key: its name, type with bounds, default, help; the section it is made from, or of which there are several;
    the key it follows where it is not set; whether it is a file of labels; whether it is a path that is read."""

    name: str
    annotation: Any
    default: Any
    help: str
    section: Section | None = None
    several: bool = False
    follows: str | None = None
    labels: bool = False
    reads: bool = False


class Signature(NamedTuple):
    """What a target is in one line, the paper it names, and its options."""

    meaning: str
    paper: str
    options: tuple[Option, ...]


@functools.cache
def signature(target: str | Callable[..., Any], supplied: frozenset[str]) -> Signature:
    """The options of a target: its parameters but those supplied by the run.

    Raises:
        TypeError: for a target that is not there, or an annotation or default that cannot be read from its source.
    """
    tree, node, about = _source(target)
    function = node if isinstance(node, ast.FunctionDef) else _initialiser(node)
    text = ast.get_docstring(node) or ""
    helps = _arguments(text)
    if isinstance(node, ast.ClassDef):
        helps |= _arguments(ast.get_docstring(function) or "")
    scope = _Scope(tree)
    options = []
    for argument, default in _parameters(function):
        options += [_option(argument, default, helps.get(argument.arg, ""), scope, supplied, str(target))]
    meaning = text.strip().splitlines()[0] if text.strip() else ""
    paper = PAPER.search(meaning) or PAPER.search(about if isinstance(node, ast.ClassDef) else "") or PAPER.search(text)
    return Signature(meaning, " ".join(paper.groups()) if paper else "", tuple(o for o in options if o is not None))


registry.CACHES.append(signature.cache_clear)


def _option(
    argument: ast.arg, default: ast.expr | None, text: str, scope: _Scope, supplied: frozenset[str], target: str
) -> Option | None:
    name, annotation = argument.arg, argument.annotation
    marks: list[Any] = []
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        inner, *rest = annotation.slice.elts  # type: ignore[attr-defined]
        if any(word in ast.unparse(annotation) for word in ("Section(", "Supplied(", "Labels(", "Input(")):
            marks = [scope.evaluate(each) for each in rest]
    section = next((mark for mark in marks if isinstance(mark, Section)), None)
    follows = next((mark.key for mark in marks if isinstance(mark, Supplied)), None)
    if name in supplied and section is None and follows is None:
        return None
    if any(isinstance(mark, Labels) for mark in marks):
        return Option(name, SCALARS["str"] | None, None, f"{text} A .npy file of them.", labels=True, reads=True)
    try:
        value = REQUIRED if default is None else ast.literal_eval(default)
        if section is not None:
            several = ast.unparse(inner).startswith(("list", "Sequence"))
            return Option(name, None, value, text, section, several)
        kind = Any if annotation is None else scope.evaluate(annotation)
    except (NameError, ValueError) as error:
        raise TypeError(
            f"{target}: {ast.unparse(argument)}: not readable as an option ({error}); annotate it with the names of "
            f"negbank.bounds, give a literal default, or have the run supply it"
        ) from None
    kind, value = (kind | None, None) if follows else (kind, value)
    reads = any(isinstance(mark, Input) for mark in marks)
    return Option(name, kind, value, text, follows=follows, reads=reads)


class _Scope(dict[str, Any]):
    """The names that annotations may use, and the module's own aliases of them."""

    def __init__(self, tree: ast.Module) -> None:
        super().__init__({"Annotated": Annotated, "Literal": Literal, "Any": Any, "list": list, "tuple": tuple})
        self.update(vars(bounds), dict=dict, **SCALARS)
        self._aliases = {
            node.targets[0].id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }

    def __missing__(self, name: str) -> Any:
        if name not in self._aliases:
            raise NameError(name)
        self[name] = self.evaluate(self._aliases[name])
        return self[name]

    def evaluate(self, node: ast.expr) -> Any:
        code = compile(ast.Expression(node), "<annotation>", "eval")
        return eval(code, {"__builtins__": {}}, self)


def _parameters(function: ast.FunctionDef) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    plain = [*function.args.posonlyargs, *function.args.args]
    defaults = [None] * (len(plain) - len(function.args.defaults)) + list(function.args.defaults)
    for argument, default in (*zip(plain, defaults), *zip(function.args.kwonlyargs, function.args.kw_defaults)):
        if argument.arg not in ("self", "cls"):
            yield argument, default


def _source(target: str | Callable[..., Any]) -> tuple[ast.Module, ast.ClassDef | ast.FunctionDef, str]:
    """The syntax tree that a target is in, its node, and the module's docstring."""
    if isinstance(target, str):
        module, _, name = target.partition(":")
        tree = _tree(_file(module))
        about = ast.get_docstring(tree) or ""
    else:
        name = target.__name__
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(target)))
        except (OSError, TypeError) as error:
            raise TypeError(f"{target!r}: its source cannot be read ({error}); define it in a file") from None
        about = inspect.getdoc(sys.modules.get(target.__module__)) or ""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return tree, node, about
    raise TypeError(f"{target}: no class or function of this name in the file")


def _initialiser(node: ast.ClassDef) -> ast.FunctionDef:
    """The class's own __init__; one that has none has no options."""
    found = (each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__")
    return next(found, ast.parse("def __init__(self): ...").body[0])  # type: ignore[return-value]


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _file(module: str) -> Path:
    """Where a module is written, found without importing it or (where there is a way) a package above it."""
    parts = module.split(".")
    spec = importlib.util.find_spec(parts[0])
    for depth in range(2, len(parts) + 1):
        folders = [] if spec is None else list(spec.submodule_search_locations or [])
        below = [Path(folder) / parts[depth - 1] for folder in folders]
        found = [path for each in below for path in (each / "__init__.py", each.with_suffix(".py")) if path.is_file()]
        if found:
            name, package = ".".join(parts[:depth]), [str(found[0].parent)] if found[0].stem == "__init__" else None
            spec = importlib.util.spec_from_file_location(name, found[0], submodule_search_locations=package)
        else:
            spec = importlib.util.find_spec(".".join(parts[:depth]))
    if spec is None or spec.origin is None:
        raise TypeError(f"{module}: no such module")
    return Path(spec.origin)


def _arguments(text: str) -> dict[str, str]:
    """Name → help of the entries under `Args:` of a docstring."""
    found: dict[str, str] = {}
    block = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", inspect.cleandoc(text), re.MULTILINE)
    current: list[str] = []
    for line in block[1].splitlines() if block else ():
        entry = re.match(r"    (\w[\w, ]*?)(?: \([^)]*\))?: (.*)", line)
        if entry:
            current = entry[1].split(", ")
            found |= dict.fromkeys(current, entry[2])
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in current}
    return found
