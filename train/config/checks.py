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
    for name, length in (("scale", 2), ("jitter", 4)):
        value = getattr(augment, name, None)
        if value is not None and (len(value) != length or min(value) < 0):
            yield f"data.augment.{name}: {list(value)}, expected {length} values of at least 0"
    scale, jitter = getattr(augment, "scale", None), getattr(augment, "jitter", None)
    if scale is not None and len(scale) == 2 and not 0 < scale[0] <= scale[1] <= 1:
        yield f"data.augment.scale: {list(scale)}, expected 0 < min ≤ max ≤ 1"
    if jitter is not None and len(jitter) == 4 and jitter[3] > 0.5:
        yield f"data.augment.jitter: hue {jitter[3]}, expected at most 0.5 turns"


def _betas(optim: Any) -> Iterator[str]:
    betas = getattr(optim, "betas", (0.9, 0.999))
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        yield f"optim.betas: {list(betas)}, expected two values in [0, 1)"


CHECKS: tuple[Callable[..., Iterator[str]], ...] = (_length, _norm, _pieces, _adapt, _augment, _betas)
