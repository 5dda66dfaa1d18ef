"""Combinations of a run's options that each section allows and the whole does not.

Each check takes the sections that it looks at by their names, and is made when all of these are in order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from negbank.remedies import unreadable
from negbank.train.config import meeting
from negbank.train.config.schema import described
from negbank.train.config.sections import Options


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
    if run.patience is not None and run.keep_best is None:
        yield f"run.patience: {run.patience} evaluations without a better what? set run.keep_best, such as mrr@10"


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


def _meeting(batches: Any, negatives: Any) -> Iterator[str]:
    problem = meeting.sections(batches, negatives)
    if problem is not None:
        yield f"negatives.type: {problem}"


def _second_pass(negatives: Any, encoder: Any) -> Iterator[str]:
    drawn = getattr(negatives, "draws", 1) and getattr(negatives, "proposals", "") != "in_batch"
    projector = getattr(encoder, "projector", None)
    if (
        getattr(negatives, "query", None) == "fresh"
        and drawn
        and "batch" in (getattr(encoder, "norm", ""), getattr(projector, "norm", ""))
    ):
        yield (
            "negatives.query: fresh encodes drawn rows in a second pass, where batch statistics tell them from the "
            "anchors; set encoder.norm=group and encoder.projector.norm=none, or take query=bank"
        )


def missing(sections: Mapping[str, Any]) -> list[str]:
    """The files and folders that a run reads and that are not there: asked where it is to begin."""
    kinds = [kind for kind in ("data", "batches", "negatives") if kind in sections]
    return [line for kind in kinds for line in _unreadable(kind, sections[kind], kind)]


def _unreadable(kind: str, section: Options, path: str) -> Iterator[str]:
    """The files and folders of a section, and of those in it, that are not there to be read."""
    for option in described(kind, section.type).options:  # type: ignore[attr-defined]
        value = getattr(section, option.name)
        problem = unreadable(value) if option.reads and value is not None else None
        if problem is not None:
            yield f"{path}.{option.name}: {value!r}: {problem}"
        if option.section is not None and isinstance(value, Options) and hasattr(value, "type"):
            yield from _unreadable(option.section.kind, value, f"{path}.{option.name}")


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


CHECKS: tuple[Callable[..., Iterator[str]], ...] = (
    _length, _norm, _pieces, _meeting, _second_pass, _adapt, _augment,
)  # fmt: skip
