"""What is impossible across the options of a study: said of a configuration before anything heavy is imported.

Each takes the sections, or keys, that nothing else is wrong with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def repeated(options: Mapping[str, Any], path: str = "", *, keys: tuple[str, ...]) -> list[str]:
    """Lists of these keys that are empty, or name a thing twice, which would be measured twice."""
    problems = []
    for key in keys:
        values: Sequence[Any] = ("unset",) if options.get(key) is None else options[key]
        if not values:
            problems.append(f"{path}{key}: is empty; give at least one")
        for i, value in enumerate(values):
            if value in values[:i]:
                problems.append(f"{path}{key}[{i}]: the same as {path}{key}[{values.index(value)}]; leave it out")
    return problems


SWEPT = ("temperatures", "proposals", "budgets", "queries")


def ablate(given: Mapping[str, Any]) -> list[str]:
    """Of a file of `negbank ablate`."""
    problems = [] if given.get("out", "set") else ["out: needs the path of a folder"]
    cosines = repeated(dict(given.get("source", ())), "source.", keys=("cosines",))
    return problems + cosines + repeated(given, keys=SWEPT)


def ablation(given: Mapping[str, Any]) -> list[str]:
    """Of a run's section `ablation`."""
    return repeated(dict(given["ablation"]), "ablation.", keys=SWEPT)


def gradient_error(given: Mapping[str, Any]) -> list[str]:
    """Of a run's section `gradient_error`."""
    total = getattr(given.get("run"), "steps", None)
    late = [step for step in given["gradient_error"].steps if total is not None and step > total]
    return [f"gradient_error.steps: {late} of run.steps={total} steps; leave them out"] if late else []
