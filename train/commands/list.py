"""`negbank list`: the names that YAML knows, and the options of each; read from source files, nothing imported."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

EPILOG = """\
examples:
  negbank list                          everything that has a name
  negbank list negatives                one kind, with the papers
  negbank list negatives.emc2           the options of one
  negbank list run                      the options of a section without types
  negbank list train                    every key of a run (also: ablate, compare)
"""


def add(commands: Any) -> None:
    """The parser of the verb."""
    parser = commands.add_parser(
        "list", aliases=["keys"], help="the names that YAML knows, and their options", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("what", nargs="?", metavar="KIND[.NAME]", help="such as negatives or negatives.emc2")


def run(options: argparse.Namespace) -> int:
    """Print what is asked for."""
    what = options.what or ("train" if options.command == "keys" else None)
    for line in lines(what):
        print(line)
    return 0


def lines(what: str | None) -> Iterator[str]:
    """The lines that describe a kind, a name of it, a section, or everything.

    Raises:
        ValueError: for anything else, with the nearest.
    """
    from negbank.train import registry
    from negbank.train.config import suggest
    from negbank.train.config.schema import PLAIN, alone, hooks, model, root

    kind, _, name = (what or "").partition(".")
    kinds = [each for each in registry.REGISTRY if not alone(each)]
    if not kind:
        for each in kinds:
            yield from (*_names(each), "")
    elif kind in ("train", *registry.ROOTS) and not name:
        yield from _keys(root(kind), "")
    elif kind in PLAIN and not name:
        yield from _keys(PLAIN[kind], "")
    elif kind == "hook" or kind in hooks():
        yield from _keys(model("hook", name or kind), "")
    elif kind not in registry.REGISTRY:
        raise ValueError(f"list {kind!r}: no such kind{suggest(kind, [*registry.REGISTRY, *PLAIN])}")
    elif name or alone(kind):
        name = registry.ALIASES.get(kind, {}).get(name, name) or next(iter(registry.names(kind)))
        if name not in registry.names(kind):
            raise ValueError(f"list {kind}.{name}: no such name{suggest(name, registry.names(kind))}")
        yield (model(kind, name).__doc__ or "").strip()
        yield from _keys(model(kind, name), "")
    else:
        yield from _names(kind)


def _names(kind: str) -> Iterator[str]:
    from negbank.train import registry
    from negbank.train.config.schema import described

    names = registry.names(kind)
    width = max(map(len, names))
    yield f"{kind}:"
    for name in names:
        about = described(kind, name)
        others = [alias for alias, target in registry.ALIASES.get(kind, {}).items() if target == name]
        also = f" (also: {', '.join(others)})" if others else ""
        paper = f" [{about.paper}]" if about.paper and about.paper not in about.meaning else ""
        yield f"  {name:{width}}  {about.meaning}{paper}{also}"


def _keys(model: Any, path: str) -> Iterator[str]:
    """Every key of a model with its default and its help, sections of one name opened."""
    from negbank.train import registry
    from negbank.train.config.schema import PLAIN, alone
    from negbank.train.config.schema import model as made

    for key, field in model.model_fields.items():
        kind = model.sections.get(key)
        if kind in PLAIN:
            yield from _keys(PLAIN[kind], f"{path}{key}.")
        elif kind is not None and kind.startswith("hook:"):
            yield from _keys(made("hook", kind.removeprefix("hook:")), f"{path}{key}.")
        elif kind is not None and alone(kind):
            yield from _keys(made(kind, next(iter(registry.names(kind)))), f"{path}{key}.")
        elif kind is not None:
            yield f"{path}{key}.type: one of {', '.join(registry.names(kind))}; negbank list {kind}.NAME"
            yield from ([f"    {field.description}"] if field.description else [])
        elif key != "type":
            default = "(needed)" if field.is_required() else field.get_default(call_default_factory=True)
            yield f"{path}{key} = {default}"
            yield f"    {field.description}"
