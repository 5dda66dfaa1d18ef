"""Pairs of any two data sets: row i of one and row i of the other are two sides of one thing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from negbank.bounds import Annotated, Ge, Input, Section, Supplied, checked
from negbank.counter import Counter
from negbank.train.data.arrays import read_labels
from negbank.train.data.contract import Data, Pairs, Splits, Subset


@checked
def pairs(
    left: Annotated[Callable[[], Splits], Section("data", "tensors")],
    right: Annotated[Callable[[], Splits], Section("data", "tensors")],
    *,
    groups: Annotated[str | None, Input()] = None,
    holdout: Annotated[float, Ge(0)] = 0.0,
    split: Annotated[int, Ge(0), Supplied("run.seed")] = 0,
) -> Splits:
    """Two sides of any type, of which row i of one is the positive of row i of the other.

    Args:
        left: the data of one side.
        right: the data of the other, with the same rows held out.
        groups: .npy file of integers, one a pair, negative for none; pairs of one group are no negatives of each other.
        holdout: pairs held out of both sides, from 1 on their number, below 1 a share; 0: those that the sides hold
            out.
        split: which pairs these are: 0, 1, ... draw others; None: run.seed.

    Raises:
        ValueError: for sides of different lengths or with different rows held out, or groups that do not fit.
    """
    (train, test, classes, notes), other = left(), right()
    notes = (*notes, *(note for note in other.notes if note not in notes))
    found = None if groups is None else read_labels(groups, "groups")
    first = _paired(train, other.train, found, "training")
    if (test is None) != (other.test is None):
        raise ValueError("left, right: one side has held-out rows, the other none; have both hold out the same")
    if test is None or other.test is None:
        return held_out(first, holdout, split)._replace(classes=classes, notes=notes)
    if holdout:
        raise ValueError(f"holdout={holdout}: the sides hold out rows, too; set left.holdout=0 and right.holdout=0")
    held = found if found is not None and isinstance(test, Subset) and len(found) == len(test.data) else None
    return Splits(first, _paired(test, other.test, held, "held-out"), classes, notes)


def held_out(every: Pairs, holdout: float, split: int) -> Splits:
    """Pairs with some of them held out, drawn by the number of the split alone.

    Args:
        every: the pairs.
        holdout: how many from 1 on, below 1 which share, 0 for none.
        split: number.

    Raises:
        ValueError: for more than leaves two pairs to train on.
    """
    if holdout == 0:
        return Splits(every)
    total = len(every.left)
    count = round(holdout if holdout >= 1 else holdout * total)
    if not 1 <= count <= total - 2:
        raise ValueError(f"holdout={holdout}: {count} of {total} pairs; hold out 1..{total - 2}")
    order = torch.randperm(total, generator=Counter.of(split).at("holdout").generator())
    held, kept = (rows.sort().values for rows in order.split((count, total - count)))
    return Splits(every.some(kept), every.some(held))


def _paired(left: Data | Pairs, right: Data | Pairs, groups: Tensor | None, which: str) -> Pairs:
    if isinstance(left, Pairs) or isinstance(right, Pairs):
        raise ValueError("left, right: each side has to be one data set, not pairs")
    if len(left) != len(right):
        raise ValueError(f"left, right: {len(left)} and {len(right)} {which} rows; a pair needs one on either side")
    if isinstance(left, Subset) and isinstance(right, Subset) and not torch.equal(left.rows, right.rows):
        raise ValueError("left, right: the sides hold out different rows; give both the same holdout")
    if groups is not None and len(groups) != len(left):
        if not isinstance(left, Subset) or len(groups) != len(left.data):
            raise ValueError(f"groups: {len(groups)} for {len(left)} {which} pairs; give one a pair")
        groups = groups[left.rows]
    return Pairs(left, right, groups)
