"""Combinations of a run's options that each section allows and the whole does not.

Each check takes the sections that it looks at by their names, and is made when all of these are in order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def impossible(sections: Mapping[str, Any]) -> list[str]:
    """The problems of a run's sections, of those that are in order."""
    problems: list[str] = []
    for check in CHECKS:
        needed = list(inspect.signature(check).parameters)
        if all(name in sections for name in needed):
            problems += check(*(sections[name] for name in needed))
    return problems


def _length(run: Any) -> Iterator[str]:
    if run.steps is None and run.epochs is None:
        yield "run.steps: neither run.steps nor run.epochs is set; set one of them"


def _norm(encoder: Any, batches: Any) -> Iterator[str]:
    if getattr(encoder, "norm", "none") == "batch" and batches.batch_size < 4:
        yield f"batches.batch_size: {batches.batch_size} is too small for encoder.norm=batch; use group"


def _pieces(encoder: Any, run: Any) -> Iterator[str]:
    projector = getattr(encoder, "projector", None)
    if run.micro_batch is not None and "batch" in (getattr(encoder, "norm", ""), getattr(projector, "norm", "")):
        yield (
            f"run.micro_batch: {run.micro_batch} encodes a step in pieces, and batch norm makes an embedding depend on "
            f"its piece; set encoder.norm=group and encoder.projector.norm=none, or leave it out"
        )


def _adapt(batches: Any) -> Iterator[str]:
    if getattr(getattr(batches, "proposal", None), "adapt", False):
        yield "batches.proposal.adapt: staleness is measured for negatives alone; set temperature and floor"


def _augment(data: Any) -> Iterator[str]:
    augment = getattr(data, "augment", None)
    scale, jitter = getattr(augment, "scale", None), getattr(augment, "jitter", None)
    if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
        yield f"data.augment.scale: {list(scale)}, expected 0 < min ≤ max ≤ 1"
    if jitter is not None and min(jitter) < 0:
        yield f"data.augment.jitter: {list(jitter)}, expected values of at least 0"
    if jitter is not None and jitter[3] > 0.5:
        yield f"data.augment.jitter: hue {jitter[3]}, expected at most 0.5 turns"


CHECKS: tuple[Callable[..., Iterator[str]], ...] = (_length, _norm, _pieces, _adapt, _augment)
