"""Proposals that an ablation compares, by their sections: what binds them to a bank, and what the results call them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from negbank.proposals import Proposal
from negbank.proposals.probe import measure as probe
from negbank.snapshot import Snapshot
from negbank.train import registry
from negbank.train.config.schema import model
from negbank.train.config.sections import Options
from negbank.train.make import make
from negbank.train.studies.ablation.measurement import Key
from negbank.train.studies.ablation.sweep import Bind, choose

PROBE_ROWS, PROBE_DRAWS = 64, 512
"""Rows that a proposal which adapts is fitted on: as many as in a run at its default refresh.probe_rows."""


def defaults() -> Sequence[Options]:
    """Each proposal that there is, with its defaults."""
    return [model("proposal", name)() for name in registry.names("proposal")]


def named(proposals: Sequence[Options], seed: int) -> tuple[list[str], Bind]:
    """What proposals are called in the results, and what binds those of a name.

    Its temperature is the target's unless it has its own; `seed` is of what one adapts to.
    """
    by_name = {label(each): each for each in proposals}

    def bind(key: Key, bank: Snapshot, truth: Tensor) -> Proposal:
        section, fitted = by_name[key.proposal], None
        if getattr(section, "adapt", False):  # as in a run, from the fresh embeddings of a few rows
            rows = choose(bank, PROBE_ROWS, seed + 1)
            fitted = probe(
                bank, rows, truth.__getitem__, temperature=key.temperature, draws=PROBE_DRAWS,
                fresh_queries=key.query == "fresh", generator=torch.Generator().manual_seed(seed),
            )  # fmt: skip
        supplied = {"snapshot": bank, "probe": fitted, "loss.temperature": key.temperature}
        proposal: Proposal = make("proposal", section, **supplied)
        return proposal

    return list(by_name), bind


def label(section: Options) -> str:
    """The name of a proposal, such as `HeadTail k=64, floor 0.1`: k, floor, and what is not the default."""
    words = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if name != "type" and (name in ("k", "floor") or value != field.default):
            words.append(name if value is True else f"k={value}" if name == "k" else f"{name} {value}")
    called = registry.target("proposal", section.type).__name__  # type: ignore[attr-defined]
    return " ".join([called, ", ".join(words)]).strip()
