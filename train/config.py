"""A configuration: YAML and `key=value` overrides into dataclasses, with every mistake reported at once.

The keys are the dataclasses of `train/options.py`, from `Config` for a run, `Ablation` for `negbank ablate` or
`Comparison` for `negbank compare`; nothing is ever imported by a name that a file gives. Overriding a `type`, on the
command line or in a method of a comparison, drops the options of the old type that the new one does not know, so that
one override is enough to change a method.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from negbank.train.options import TYPES, Ablation, Comparison, Config

COMMANDS: dict[type[Any], str] = {Config: "train", Ablation: "ablate", Comparison: "compare"}
"""Whose configuration each root is."""
Root = TypeVar("Root", Config, Ablation, Comparison)


class ConfigError(ValueError):
    """All that is wrong with a configuration, one line a problem."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        super().__init__(f"{source}: {len(problems)} problem(s)\n" + "\n".join(f"  {p}" for p in problems))
        self.problems = list(problems)


@typing.overload
def load(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config, list[str]]: ...
@typing.overload
def load(path: str | Path, overrides: Sequence[str] = (), *, root: type[Root]) -> tuple[Root, list[str]]: ...
def load(path: str | Path, overrides: Sequence[str] = (), *, root: type[Any] = Config) -> tuple[Any, list[str]]:
    """Read a YAML file, apply `key=value` overrides, check everything.

    Args:
        path: the file.
        overrides: changes to it.
        root: `Config` for a run, `Ablation` for an ablation, `Comparison` for a comparison.

    Returns:
        The configuration, and notes on what an override of a `type` dropped.

    Raises:
        ConfigError: with every problem found, each naming its key and what to do.
    """
    return parse(_read(path), overrides, root=root, source=str(path))


@typing.overload
def parse(data: Any, overrides: Sequence[str] = (), *, source: str = ...) -> tuple[Config, list[str]]: ...
@typing.overload
def parse(
    data: Any, overrides: Sequence[str] = (), *, root: type[Root], source: str = ...
) -> tuple[Root, list[str]]: ...
def parse(
    data: Any, overrides: Sequence[str] = (), *, root: type[Any] = Config, source: str = "configuration"
) -> tuple[Any, list[str]]:
    """`load` for a mapping that is read already."""
    problems: list[str] = []
    notes: list[str] = []
    data = _plain({} if data is None else data, problems)
    changes = _changes(overrides, problems)
    if not isinstance(data, dict):
        raise ConfigError(source, [f"expected sections as a mapping, found {type(data).__name__}"])
    other = _root(data, root)
    if other is not root:
        problems.append(f"these are keys of `negbank {COMMANDS[other]}`, not of `negbank {COMMANDS[root]}`")
    _switch_types(data, changes, "", notes)
    _switch_length(data, changes, notes)
    merged = _merge(data, changes)
    config = _fill(root(), merged, "", problems)
    if all(getattr(config, section) is not None for section in vars(config) if section in TYPES):
        problems += IMPOSSIBLE[root](config)
    if problems:
        raise ConfigError(source, problems)
    return config, notes


def root_of(path: str | Path) -> type[Any]:
    """Which configuration a YAML file is: the one that knows most of its keys, `Config` where others know no more.

    Raises:
        ConfigError: when it cannot be read.
    """
    data = _read(path)
    return _root(OmegaConf.to_container(data, resolve=False) if OmegaConf.is_config(data) else data, Config)


def _root(data: Any, default: type[Any]) -> type[Any]:
    """The root that knows most of a mapping's keys; `default` where others know no more."""
    names = {root: {f.name for f in dataclasses.fields(root)} for root in COMMANDS}
    known = {root: sum(key in names[root] for key in data) if isinstance(data, dict) else 0 for root in names}
    return max(known, key=lambda root: (known[root], root is default))


def _read(path: str | Path) -> Any:
    try:
        return OmegaConf.load(path)
    except FileNotFoundError:
        raise ConfigError(str(path), ["no such file; give the path of a YAML file"]) from None
    except Exception as error:  # YAML's own errors name the line; whatever their class, the file cannot be read
        raise ConfigError(str(path), [f"not readable as YAML: {error}"]) from None


def to_dict(config: Config | Ablation | Comparison) -> dict[str, Any]:
    """The resolved configuration as plain values, complete: what the folder of its results keeps."""
    return dataclasses.asdict(config)


def describe(root: type[Any] = Config) -> list[tuple[str, str, str]]:
    """(key, default, help) of every key there is, the options of every type in turn."""
    return list(_describe(root, ""))


def suggest(name: str, known: Sequence[str]) -> str:
    """', did you mean x?' for the known name nearest to `name`, else the names there are."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"


def _changes(overrides: Sequence[str], problems: list[str]) -> Any:
    """What `key=value` overrides set, as a mapping; those that cannot be read go to `problems`."""
    read = OmegaConf.create({})
    for item in overrides:
        if item.find("=") < 1:
            problems.append(f"{item!r}: expected key=value, as in run.steps=1000")
            continue
        try:
            read.merge_with_dotlist([item])
        except Exception as error:  # YAML's and OmegaConf's errors have no class in common
            problems.append(f"{item!r}: not readable as YAML ({str(error).splitlines()[0]}); close or quote its value")
    return _plain(read, problems)


def _plain(node: Any, problems: list[str]) -> Any:
    """Plain containers with node interpolations resolved; resolvers, which read more than this file, refused."""
    node = node if OmegaConf.is_config(node) else OmegaConf.create(node)
    raw = OmegaConf.to_container(node, resolve=False)
    refused = [(key, text) for key, text in _strings(raw, "") if re.search(r"\$\{[^}]*:", text)]
    problems += [f"{key}: {text!r} asks a resolver, which is refused; write the value itself" for key, text in refused]
    try:
        if not refused:
            return OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        problems.append(str(error).splitlines()[0])
    return _without_interpolations(raw)


def _without_interpolations(value: Any) -> Any:
    """`value` less every string that would still be interpolated: reading one later would run what was refused."""
    if isinstance(value, dict):
        return {k: _without_interpolations(v) for k, v in value.items() if "${" not in str(k) and not _interpolated(v)}
    if isinstance(value, list):
        return [_without_interpolations(v) for v in value if not _interpolated(v)]
    return value


def _interpolated(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _strings(value: Any, path: str) -> typing.Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(str(key), f"{path}.{key}".strip("."))
            yield from _strings(inner, f"{path}.{key}".strip("."))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _strings(inner, f"{path}[{i}]")


def _merge(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {key: _merge(base.get(key), over[key]) if key in over else base[key] for key in (*base, *over)}
    return over


def _switch_types(data: Any, changes: Any, path: str, notes: list[str]) -> None:
    """Where `changes` sets another `type` than `data`, drop the old type's options that the new one lacks."""
    if not isinstance(changes, dict) or not isinstance(data, dict):
        return
    table = TYPES.get(re.sub(r"^(base|methods\.[^.]+)\.", "", path))  # a comparison's runs have a run's keys
    if table is not None and _known(changes.get("type"), table):
        default = next(iter(table))
        old, new = data.get("type", default), changes["type"]
        if old != new and _known(old, table):
            mine, theirs = ({f.name for f in dataclasses.fields(table[t])} for t in (new, old))
            for key in [k for k in data if k in theirs - mine]:
                del data[key]
                notes.append(f"{path}.type={new}: dropped {path}.{key}, an option of {old}")
    for key in changes:
        _switch_types(data.get(key), changes[key], f"{path}.{key}".strip("."), notes)


def _known(name: Any, table: Mapping[str, type]) -> bool:
    return isinstance(name, str) and name in table


def _switch_length(data: Any, changes: Any, notes: list[str]) -> None:
    """Where `changes` sets one of run.steps and run.epochs alone, drop the other of `data`."""
    mine, theirs = (each.get("run") for each in (changes, data))
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for new, old in (("steps", "epochs"), ("epochs", "steps")):
            if mine.get(new) is not None and old not in mine and theirs.get(old) is not None:
                notes.append(f"run.{new}={mine[new]}: dropped run.{old}={theirs.pop(old)}")


def _fill(default: Any, data: Any, path: str, problems: list[str]) -> Any:
    """The dataclass instance `default` with the values of a mapping; what does not fit goes to `problems`."""
    result, cls = default, type(default)
    if data is None:
        return result
    if not isinstance(data, dict):
        problems.append(f"{path}: expected a mapping of options, found {data!r}")
        return result
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    schema = OmegaConf.structured(_leaves(cls, hints))
    for key, value in data.items():
        where = f"{path}.{key}".strip(".")
        if key not in fields:
            problems.append(f"{where}: no such key{suggest(str(key), list(fields))}")
        elif where in TYPES and hints[key] == list[Any]:
            setattr(result, key, _fill_list(where, value, problems))
        elif where in TYPES:
            setattr(result, key, _fill_typed(where, TYPES[where], value, problems))
        elif dataclasses.is_dataclass(hints[key]):
            setattr(result, key, _fill(getattr(result, key), value, where, problems))
        else:
            try:
                schema[key] = value
            except (OmegaConfBaseException, ValueError):
                problems.append(
                    f"{where}: {value!r} is no {_type_name(hints[key])}; {fields[key].metadata.get('help')}"
                )
                continue
            typed = OmegaConf.to_object(schema[key]) if OmegaConf.is_config(schema[key]) else schema[key]
            problem = _rule(fields[key].metadata, typed)
            if problem:
                problems.append(f"{where}: {typed!r}, expected {problem}")
            setattr(result, key, typed)
    return result


def _fill_list(path: str, data: Any, problems: list[str]) -> Any:
    if not isinstance(data, list) or not data or not all(isinstance(item, dict) for item in data):
        types = list(TYPES[path])
        problems.append(f"{path}: {data!r}, expected a list of mappings such as [{{type: {types[0]}}}, ...]")
        return None
    filled = [_fill_typed(f"{path}[{i}]", TYPES[path], item, problems) for i, item in enumerate(data)]
    return None if None in filled else filled


def _fill_typed(path: str, table: dict[str, type], data: Any, problems: list[str]) -> Any:
    name = data.get("type", next(iter(table))) if isinstance(data, dict) else next(iter(table))
    if not _known(name, table):
        problems.append(f"{path}.type: {name!r} is unknown{suggest(str(name), list(table))}")
        return None
    result = _fill(table[name](), data, path, problems)
    result.type = name
    return result


def _leaves(cls: type, hints: dict[str, Any]) -> type:
    """The dataclass of `cls`'s plain fields, which OmegaConf then type-checks."""
    plain = [(f.name, hints[f.name], f) for f in dataclasses.fields(cls) if _is_leaf(hints[f.name])]
    return dataclasses.make_dataclass(cls.__name__ + "Leaves", plain)


def _is_leaf(hint: Any) -> bool:
    return hint not in (Any, list[Any]) and not dataclasses.is_dataclass(hint)


def _type_name(hint: Any) -> str:
    return str(hint) if isinstance(hint, types.UnionType | types.GenericAlias) else hint.__name__


def _rule(rules: Any, value: Any) -> str | None:
    """What `value` should be, or None when it is."""
    if value is None or not rules:
        return None
    if isinstance(value, list):
        return next((f"each {problem}" for item in value if (problem := _rule(rules, item))), None)
    if rules["choices"] and value not in rules["choices"]:
        return "one of " + ", ".join(rules["choices"])
    bounds = {
        "low": ("at least", value.__ge__),
        "high": ("at most", value.__le__),
        "above": ("more than", value.__gt__),
    }
    for name, (words, holds) in bounds.items() if isinstance(value, int | float) else ():
        if rules[name] is not None and holds(rules[name]) is not True:
            return f"{words} {rules[name]}"
    return None


def _impossible(config: Config) -> list[str]:
    """Combinations that each section allows and the whole does not."""
    problems = []
    if config.run.steps is None and config.run.epochs is None:
        problems.append("run.steps: neither run.steps nor run.epochs is set; set one of them")
    if config.run.steps is not None and config.optim.warmup >= config.run.steps:
        problems.append(f"optim.warmup: {config.optim.warmup} of run.steps={config.run.steps} steps; make it shorter")
    if config.data.type == "image_folder" and not config.data.root:
        problems.append("data.root: image_folder needs the path of a directory or a .zip of class folders")
    for name, length in (("scale", 2), ("jitter", 4)):
        value = getattr(config.data.augment, name)
        if value is not None and (len(value) != length or min(value) < 0):
            problems.append(f"data.augment.{name}: {value}, expected {length} values of at least 0")
    scale, jitter = config.data.augment.scale, config.data.augment.jitter
    if scale is not None and len(scale) == 2 and not 0 < scale[0] <= scale[1] <= 1:
        problems.append(f"data.augment.scale: {scale}, expected 0 < min ≤ max ≤ 1")
    if jitter is not None and len(jitter) == 4 and jitter[3] > 0.5:
        problems.append(f"data.augment.jitter: hue {jitter[3]}, expected at most 0.5 turns")
    betas = getattr(config.optim, "betas", [0.9, 0.999])
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        problems.append(f"optim.betas: {betas}, expected two values in [0, 1)")
    if getattr(config.encoder, "norm", "none") == "batch" and config.batches.batch_size < 4:
        problems.append(
            f"batches.batch_size: {config.batches.batch_size} is too small for encoder.norm=batch; use group"
        )
    if getattr(getattr(config.batches, "proposal", None), "adapt", False):
        problems.append("batches.proposal.adapt: staleness is measured for negatives alone; set temperature and floor")
    late = [step for step in config.gradient_error.steps if config.run.steps is not None and step > config.run.steps]
    if late:
        problems.append(f"gradient_error.steps: {late} of run.steps={config.run.steps} steps; leave them out")
    return problems + _repeated(config.ablation, "ablation.")


def _impossible_ablation(config: Ablation) -> list[str]:
    """`_impossible` for an ablation."""
    needed = {"npy": {"path": "an .npy file"}, "snapshots": dict.fromkeys(("bank", "truth"), "a saved snapshot")}
    problems = [
        f"source.{key}: source.type={config.source.type} needs the path of {what}"
        for key, what in needed[config.source.type].items()
        if not getattr(config.source, key)
    ]
    if not config.out:
        problems.append("out: needs the path of a folder")
    return problems + _repeated(config.source, "source.") + _repeated(config, "")


SHARED = ("data", "eval", "run", "gradient_error")
"""Sections that are the same for all methods of a comparison, or nothing could be compared."""
SET = {"run.dir": "out", "run.seed": "seeds", "optim.lr": "lr", "gradient_error": "gradient_error of the comparison"}
"""Keys of a run that a comparison sets, and from what."""


def method_configs(comparison: Comparison) -> dict[str, Config]:
    """The run of every method: `base` with what the method changes, as overrides on the command line would.

    Raises:
        ConfigError: with the problems of all of them, as `base.key` or `methods.NAME.key`.
    """
    configs, problems = {}, [f"base.{problem}" for problem in _problems(comparison.base)]
    problems += [f"base.{key}: set by {by}; leave it out" for key, by in SET.items() if _has(comparison.base, key)]
    run = comparison.base.get("run")
    if not isinstance(run, Mapping) or run.get("steps") is None or run.get("epochs") is not None:
        problems.append("base.run.steps: set it, and no run.epochs: methods are compared at equal steps")
    for name, changes in comparison.methods.items():
        where = f"methods.{name}"
        if not re.fullmatch(r"\w[\w.+-]*", name):
            problems.append(f"{where}: is the name of a folder; use letters, digits, and _ . + -")
        changes = {} if changes is None else changes
        if not isinstance(changes, Mapping):
            problems.append(
                f"{where}: {changes!r}, expected what differs from base, such as {{negatives: {{type: dcl}}}}"
            )
            continue
        problems += [f"{where}.{key}: is the same for all methods; set it in base" for key in SHARED if key in changes]
        problems += [f"{where}.{key}: set by {by}; leave it out" for key, by in SET.items() if _has(changes, key)]
        data = copy.deepcopy(comparison.base)
        _switch_types(data, changes, "", [])
        try:
            configs[name], _ = parse(_merge(data, changes), source=where)
        except ConfigError as error:
            problems += [f"{where}.{each}" for each in error.problems if f"base.{each}" not in problems]
    if problems:
        raise ConfigError("comparison", problems)
    return configs


def _problems(data: Any) -> list[str]:
    try:
        parse(data)
    except ConfigError as error:
        return error.problems
    return []


def _has(data: Any, key: str) -> bool:
    for name in key.split("."):
        if not isinstance(data, Mapping) or name not in data:
            return False
        data = data[name]
    return True


def _impossible_comparison(config: Comparison) -> list[str]:
    """`_impossible` for a comparison and the runs it is made of."""
    problems = _repeated(config, "")
    if not config.methods:
        problems.append("methods: is empty; give at least one, such as {simclr: {negatives: {type: in_batch}}}")
    if config.reference is not None and config.reference not in config.methods:
        known = suggest(config.reference, [*config.methods])
        problems.append(f"reference: {config.reference!r} is none of methods{known}")
    if len(config.lr) > 1 and config.tune_seed is None:
        problems.append("tune_seed: several lr are chosen from by runs of a seed of their own; set it")
    if config.tune_seed in config.seeds:
        problems.append(f"tune_seed: {config.tune_seed} is among seeds, whose results the choice of lr would flatter")
    if not config.out:
        problems.append("out: needs the path of a folder")
    run = config.base.get("run")
    steps = run.get("steps") if isinstance(run, Mapping) else None
    if config.gradient_error.steps and "steps" not in config.equal:
        problems.append("gradient_error.steps: measured in runs at equal steps; add steps to equal, or leave it out")
    if isinstance(steps, int) and max(config.gradient_error.steps, default=0) > steps:
        problems.append(f"gradient_error.steps: {config.gradient_error.steps}, more than base.run.steps={steps}")
    try:
        method_configs(config)
    except ConfigError as error:
        problems += error.problems
    return problems


IMPOSSIBLE: dict[type[Any], Callable[[Any], list[str]]] = {
    Config: _impossible,
    Ablation: _impossible_ablation,
    Comparison: _impossible_comparison,
}


def _repeated(section: Any, path: str) -> list[str]:
    """The lists of a configuration that are empty or name a thing twice, which would be measured twice."""
    problems = []
    for key in ("cosines", "temperatures", "proposals", "budgets", "queries", "seeds", "lr", "equal"):
        values: list[Any] | None = getattr(section, key, None)
        if values is None:
            continue
        if not values:
            problems.append(f"{path}{key}: is empty; give at least one")
        for i, value in enumerate(values):
            if value in values[:i]:
                problems.append(f"{path}{key}[{i}]: the same as {path}{key}[{values.index(value)}]; leave it out")
    return problems


def _describe(cls: type, path: str) -> typing.Iterator[tuple[str, str, str]]:
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        where = f"{path}.{f.name}".strip(".")
        if where in TYPES:
            table = TYPES[where]
            if hints[f.name] == list[Any]:
                yield where, f"[{', '.join(each.type for each in getattr(cls(), f.name))}]", f.metadata["help"]
                where += "[]"
            yield f"{where}.type", next(iter(table)), "one of " + ", ".join(table)
            for options in dict.fromkeys(table.values()):
                names = [name for name, o in table.items() if o is options]
                for key, default, text in _describe(options, where):
                    yield key, default, f"[{', '.join(names)}] {text}"
        elif dataclasses.is_dataclass(hints[f.name]):
            yield from _describe(typing.cast(type, hints[f.name]), where)
        elif f.name != "type":
            value = getattr(cls(), f.name)
            choices = f.metadata["choices"]
            yield where, str(value), f.metadata["help"] + (f" ({', '.join(choices)})" if choices else "")
