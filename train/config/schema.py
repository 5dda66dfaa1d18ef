"""The models that a configuration is held to, made from signatures: one a name, a union of them a kind.

    signature of a class → pydantic model (its options, their bounds, `type`) → discriminated union over `type`

Nothing about an option is said here: its type, default, bounds and help are the class's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Discriminator, Field, Tag, create_model
from pydantic_core import PydanticCustomError

from negbank.bounds import Section
from negbank.train import registry
from negbank.train.config.sections import COMMON, Loss, Options, Run
from negbank.train.config.signature import REQUIRED, Option, Signature, signature

PLAIN: dict[str, type[Options]] = {"loss": Loss, "run": Run}
"""Sections of the run itself."""
SECTIONS = ("data", "encoder", "batches", "negatives", "loss", "index", "refresh", "optim", "eval")
"""The sections of a run in the order in which they are shown; then those of hooks with options, and `run`."""


def described(kind: str, name: str) -> Signature:
    """What a name of a kind stands for, without the options that all of its kind have."""
    return signature(registry.names(kind)[name], registry.SUPPLIED[kind])


@functools.cache
def model(kind: str, name: str) -> type[Options]:
    """The model of one name's options; where its kind has several names `type` is the first of them."""
    about = described(kind, name)
    fields: dict[str, Any] = {o.name: _field(o, inside=(kind, name)) for o in about.options}
    if not alone(kind):
        fields = {"type": (Literal[name], Field(name, description=about.meaning)), **fields}
    return _made(name, COMMON.get(kind, Options), fields, about.options, about.meaning)


def _made(
    name: str, base: type[Options], fields: dict[str, Any], options: Iterable[Option], meaning: str = ""
) -> type[Options]:
    made: type[Options] = create_model(name, __base__=base, __doc__=meaning, **fields)
    made.sections = {option.name: option.section.kind for option in options if option.section is not None}
    return made


def alone(kind: str) -> bool:
    """Whether a kind has a single name, so that nobody needs to say it."""
    return len(registry.names(kind)) == 1


def section(mark: Section, inside: tuple[str, str] | None = None) -> Any:
    """The type of a section: the union over its kind's names, told apart by `type`, but for what it is inside of."""
    names = [name for name in registry.names(mark.kind) if (mark.kind, name) != inside]
    if alone(mark.kind):
        (name,) = names
        return Annotated[model(mark.kind, name), BeforeValidator(lambda data: _filled(data, mark.options))]
    members = tuple(Annotated[model(mark.kind, name), Tag(tag(name))] for name in names)

    def choose(data: Any) -> str | None:
        name = data.get("type") if isinstance(data, Mapping) else getattr(data, "type", None)
        return tag(name) if isinstance(name, str) and name in names else None

    chosen = Discriminator(choose, custom_error_type="type", custom_error_message="type")
    return Annotated[Union[members], chosen, BeforeValidator(functools.partial(_named, mark))]  # noqa: UP007


def tag(name: str) -> str:
    """How a union's member shows in the place of an error, which no key can be called."""
    return f"<{name}>"


def _named(mark: Section, data: Any) -> Any:
    """A section with its type said, in the name that it has here, and the defaults that differ in this place."""
    if isinstance(data, Options):
        return data
    data = {} if data is None else data
    if not isinstance(data, Mapping):
        raise PydanticCustomError("mapping", "mapping")
    name = data.get("type", mark.default or next(iter(registry.names(mark.kind))))
    name = registry.ALIASES.get(mark.kind, {}).get(name, name) if isinstance(name, str) else name
    return {**(mark.options if name == mark.default else {}), **data, "type": name}


def _filled(data: Any, defaults: Mapping[str, Any]) -> Any:
    return {**defaults, **({} if data is None else data)} if data is None or isinstance(data, Mapping) else data


def _field(option: Option, inside: tuple[str, str] | None = None) -> tuple[Any, Any]:
    if option.section is None:
        extra = {} if option.default is REQUIRED else {"default": _plain(option.default)}
        return option.annotation, Field(**extra, description=option.help)
    mark, kind = option.section, section(option.section, inside)
    if option.several:
        default = [{"type": name} for name in registry.names(mark.kind)] if option.default is None else option.default
        return list.__class_getitem__(kind), Field(default_factory=lambda: list(default), description=option.help)
    return kind, Field(default_factory=dict, description=option.help)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@functools.cache
def root(name: str) -> type[Options]:
    """The model of a whole file: of a run ("train"), or of the command whose arguments it has."""
    if name != "train":
        about = signature(registry.ROOTS[name], frozenset({"overwrite"}))
        return _made(name, Options, {o.name: _field(o) for o in about.options}, about.options)
    sections = [Option(key, None, {}, "", Section(key, "")) for key in SECTIONS if key in registry.REGISTRY]
    fields = {each.name: _field(each) for each in sections}
    fields["encoder_right"] = (
        section(Section("encoder", "")) | None,
        Field(None, description="of the right side of pairs; None: as encoder"),
    )
    fields |= {key: (PLAIN[key], Field(default_factory=PLAIN[key])) for key in PLAIN}
    fields |= {name: (model("hook", name), Field(default_factory=dict)) for name in hooks()}
    order = (*SECTIONS, "encoder_right", *hooks(), "run")
    made = _made("Config", Options, {key: fields[key] for key in order}, sections)
    hooked = {name: f"hook:{name}" for name in hooks()}
    made.sections = {**made.sections, **hooked, "encoder_right": "encoder", **{key: key for key in PLAIN}}
    return made


def at(top: type[Options], place: Sequence[Any]) -> tuple[type[Options] | None, str | None]:
    """The model that a place in a file is of, and the kind of the section around it.

    Args:
        top: the whole file's.
        place: keys, indices and the tags of unions' members, as pydantic locates an error.
    """
    found: type[Options] | None = top
    kind: str | None = None
    for part in place:
        if isinstance(part, int):
            continue
        if str(part).startswith("<") and kind is not None:
            found = model(kind, str(part).strip("<>"))
            continue
        kind = None if found is None else found.sections.get(part)
        if kind in PLAIN:
            found = PLAIN[kind]
        elif kind is not None and kind.startswith("hook:"):
            found = model("hook", kind.removeprefix("hook:"))
        else:
            found = model(kind, next(iter(registry.names(kind)))) if kind is not None and alone(kind) else None
    return found, kind


def hooks() -> Iterator[str]:
    """The hooks that have options, and so a section."""
    return (name for name in registry.names("hook") if described("hook", name).options)


FORGET: tuple[Callable[[], None], ...] = (model.cache_clear, root.cache_clear)
registry.CACHES.extend(FORGET)
