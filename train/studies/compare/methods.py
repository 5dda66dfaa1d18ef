"""The run of every method of a comparison, and what is impossible across its keys."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from negbank.train.config import ConfigError, merge, parse, suggest, switch_types
from negbank.train.studies.checks import repeated

SHARED = ("data", "eval", "run", "gradient_error")
"""Sections that are the same for all methods of a comparison, or nothing could be compared."""
SET = {"run.dir": "out", "run.seed": "seeds", "optim.lr": "lr", "gradient_error": "gradient_error of the comparison"}
"""Keys of a run that a comparison sets, and from what."""


def method_configs(base: Mapping[str, Any], methods: Mapping[str, Any]) -> dict[str, Any]:
    """The run of every method: `base` with what the method changes, as overrides on the command line would.

    Raises:
        ConfigError: with the problems of all of them, as `base.key` or `methods.NAME.key`.
    """
    configs, problems = {}, [f"base.{problem}" for problem in _problems(base)]
    problems += [f"base.{key}: set by {by}; leave it out" for key, by in SET.items() if _has(base, key)]
    run = base.get("run")
    if not isinstance(run, Mapping) or run.get("steps") is None or run.get("epochs") is not None:
        problems.append("base.run.steps: set it, and no run.epochs: methods are compared at equal steps")
    for name, changes in methods.items():
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
        data = copy.deepcopy(dict(base))
        switch_types(data, changes, [])
        try:
            configs[name], _ = parse(merge(data, dict(changes)), source=where)
        except ConfigError as error:
            problems += [f"{where}.{each}" for each in error.problems if f"base.{each}" not in problems]
    if problems:
        raise ConfigError("comparison", problems)
    return configs


def impossible(given: Mapping[str, Any]) -> list[str]:
    """The problems across those keys of a comparison that are in order, and of the runs it is made of."""
    problems = repeated(given, keys=("seeds", "lr", "equal"))
    base, methods, reference = given.get("base", {}), given.get("methods", {}), given.get("reference")
    seeds, measured = given.get("seeds", ()), given.get("gradient_error") or {}
    if "methods" in given and not methods:
        problems.append("methods: is empty; give at least one, such as {simclr: {negatives: {type: in_batch}}}")
    if reference is not None and reference not in methods:
        problems.append(f"reference: {reference!r} is none of methods{suggest(reference, methods)}")
    if len(given.get("lr", ())) > 1 and given.get("tune_seed") is None:
        problems.append("tune_seed: several lr are chosen from by runs of a seed of their own; set it")
    if given.get("tune_seed") in seeds:
        problems.append(f"tune_seed: {given['tune_seed']} is among seeds, whose results the choice of lr would flatter")
    if not given.get("out", "set"):
        problems.append("out: needs the path of a folder")
    if measured.get("steps") and "steps" not in given.get("equal", ("steps",)):
        problems.append("gradient_error.steps: measured in runs at equal steps; add steps to equal, or leave it out")
    problems += [each for each in _problems({**base, "gradient_error": measured}) if each.startswith("gradient_error")]
    try:
        method_configs(base, methods)
    except ConfigError as error:
        problems += error.problems
    return problems


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
