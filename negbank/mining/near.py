"""Near-duplicates: rows of another id whose similarity is at or above a bound.

The same text under two ids is embedded to within rounding (padding differs between batches), so "exact" is a bound just
below 1. Similarities come from a batched product; those that rounding could put on either side of the bound are summed
again row by row, so that the answer does not depend on the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from negbank.mining.rows import Rows
from negbank.mining.search import NO_ROW

EXACT = 1 - 1e-6
"""Cosine from which two rows count as the same."""
DOUBT = 1e-5
MODES = ("id", "exact", "near")


def bound_of(dedupe: str, near: float) -> float | None:
    """The similarity from which rows are duplicates; None when only ids count.

    Raises:
        ValueError: for an unknown mode, or a bound outside (−1, 1].
    """
    if dedupe not in MODES:
        raise ValueError(f"dedupe={dedupe!r}: expected one of {', '.join(MODES)}")
    if not -1 < near <= 1:
        raise ValueError(f"near={near}: expected a cosine in (-1, 1], such as 0.95")
    return {"id": None, "exact": EXACT, "near": near}[dedupe]


def near_rows(corpus: Rows, left: np.ndarray, right: np.ndarray, bound: float) -> np.ndarray:
    """Whether rows at left (b, m) and right (b, n) are near-duplicates: (b, m, n) bool; `NO_ROW` never is."""
    ours, theirs = _vectors(corpus, left), _vectors(corpus, right)
    similarity = torch.bmm(ours, theirs.transpose(1, 2)).cpu().numpy()
    found = similarity >= bound
    b, i, j = np.nonzero(np.abs(similarity - bound) < DOUBT)
    if len(b):
        place = [torch.from_numpy(at).to(ours.device) for at in (b, i, j)]
        exact = (ours[place[0], place[1]] * theirs[place[0], place[2]]).sum(-1).cpu().numpy()
        found[b, i, j] = exact >= np.float32(bound)
    return found & (left != NO_ROW)[:, :, None] & (right != NO_ROW)[:, None, :]


def _vectors(corpus: Rows, positions: np.ndarray) -> Tensor:
    return corpus.take(torch.from_numpy(positions.clip(min=0)))
