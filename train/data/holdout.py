"""A stratified random split: the same fraction of every class is held out."""

import torch
from torch import Tensor

from negbank.train.data.contract import Data, Splits, Subset

HOLDOUT_SEED = 0
"""Of what a share of the rows is held out by, the same for every run."""


def with_holdout(data: Data, share: float, classes: tuple[str, ...]) -> Splits:
    """`data` with a share of its rows held out, whatever their class; 0 for none."""
    if share == 0:
        return Splits(data, None, classes)
    kept, held = stratified(torch.zeros(len(data)), share, HOLDOUT_SEED)
    return Splits(Subset(data, kept), Subset(data, held), classes)


def stratified(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split rows 0..N-1 into kept and held-out rows, class by class.

    Args:
        labels: int64 (N,).
        fraction: share of each class to hold out, in (0, 1); rounded to whole images, and a class of at least two
            images always keeps one on each side.
        seed: of the permutation; equal arguments give equal splits.

    Returns:
        Two sorted int64 tensors that partition the rows.

    Raises:
        ValueError: ``fraction`` is not strictly between 0 and 1.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"holdout must lie strictly between 0 and 1, got {fraction}; use for example 0.2")
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().squeeze(1)
        count = round(fraction * len(rows))
        if len(rows) >= 2:
            count = min(max(count, 1), len(rows) - 1)
        held[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)
