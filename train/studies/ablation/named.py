"""Proposals that an ablation compares: what binds them to a bank, and what the results call them.

A proposal is given as `functools.partial(HeadTail, k=32)`: its class and the options that were chosen. An option
`temperature` that was not is that of the target it is measured against.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from negbank.train.studies.ablation.measurement import Key
from negbank.train.studies.ablation.sweep import Bind, choose
from torch import Tensor

from negbank import Snapshot
from negbank.proposals import Cells, HeadTail, Nearest, Proposal, StaleSoftmax, Uniform
from negbank.proposals.probe import measure as probe

Chosen = Sequence["partial[Proposal]"]
EVERY: tuple[Callable[..., Proposal], ...] = (Uniform, Nearest, HeadTail, Cells, StaleSoftmax)
"""What is compared where nothing is named."""
PROBE_ROWS, PROBE_DRAWS = 64, 512
"""Rows that a proposal which adapts is fitted on: as many as in a run at its default refresh.probe_rows."""


def every() -> Chosen:
    """Every proposal there is, with its defaults."""
    return [partial(each) for each in EVERY]


def named(proposals: Chosen, seed: int) -> tuple[list[str], Bind]:
    """What proposals are called in the results, and what binds those of a name; `seed` of what they adapt to."""
    by_name = {label(each): each for each in proposals}

    def bind(key: Key, bank: Snapshot, truth: Tensor) -> Proposal:
        chosen = by_name[key.proposal]
        supplied: dict[str, Any] = {}
        if "temperature" in inspect.signature(chosen.func).parameters:
            supplied["temperature"] = key.temperature
        if chosen.keywords.get("adapt"):  # as in a run, from the fresh embeddings of a few rows
            rows = choose(bank, PROBE_ROWS, seed + 1)
            supplied["probe"] = probe(
                bank, rows, truth.__getitem__, temperature=key.temperature, draws=PROBE_DRAWS,
                fresh_queries=key.query == "fresh", generator=torch.Generator().manual_seed(seed),
            )  # fmt: skip
        return chosen.func(bank, **{**supplied, **chosen.keywords})

    return list(by_name), bind


def label(proposal: partial[Proposal]) -> str:
    """The name of a proposal, such as `HeadTail k=64, floor 0.1`: k, floor, and what is not the default."""
    words = []
    for name, default in _defaults(proposal).items():
        value = proposal.keywords.get(name, default)
        if name in ("k", "floor") or value != default:
            words.append(name if value is True else f"k={value}" if name == "k" else f"{name} {value}")
    return " ".join([proposal.func.__name__, ", ".join(words)]).strip()


def settings(proposals: Chosen) -> list[dict[str, Any]]:
    """What decides the results: each proposal's class and all options."""
    return [{"type": each.func.__name__, **_defaults(each), **each.keywords} for each in proposals]


def require_fitting(proposals: Chosen, rows: int, path: str = "proposals") -> None:
    """Raise ValueError for one that retrieves more rows than there are others."""
    for i, each in enumerate(settings(proposals)):
        if each.get("k", 1) >= rows:
            raise ValueError(f"{path}[{i}].k={each['k']}: there are only {rows - 1} other rows; lower k")


def _defaults(proposal: partial[Proposal]) -> dict[str, Any]:
    """Options of a proposal's class by default; the temperature is the target's."""
    parameters = inspect.signature(proposal.func).parameters.values()
    found = {p.name: p.default for p in parameters if p.name not in ("snapshot", "exclude", "probe")}
    return {name: None if name == "temperature" else value for name, value in found.items()}
