"""Which candidates are no negatives of an anchor, for being as near to it as its positive: negbank/margins.py.

    s_ir > perc_pos · s_i⁺    or    s_ir > s_i⁺ − margin_pos

Scores are the encoder's own of this step, or those of a guide, another model whose rows a file holds: GISTEmbed
(Solatorio 2024) by `margin_pos=0`. A guide's row is of the anchor's side, its candidates' rows of the other side.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from negbank.arrays import as_rows, as_tensor
from negbank.bank import require_finite, unit_rows
from negbank.margins import near_positive, relative_margin
from negbank.samplers.negatives.contract import EncodedBatch

BLOCK = 1 << 16
"""Rows of a guide that are looked at at once."""


class NearPositives:
    """The mask of near positives; false where it masks nothing.

    Args:
        perc_pos, margin_pos: the bounds; None: off.
        guide, guide_right: .npy files (N, D') of rows by another model, of the one side, or of the left and the right.
        num_rows: N; None: whatever a guide has.
        views: of a row; 1: pairs.
        side: 0 for anchors of the left side, or of the only one; 1 for those of the right.

    Raises:
        ValueError: for a guide without a bound, of one side where there are two or the other way round, of other rows,
            or with rows that are not finite.
    """

    def __init__(
        self,
        perc_pos: float | None,
        margin_pos: float | None,
        guide: str | None,
        guide_right: str | None,
        *,
        num_rows: int | None,
        views: int,
        side: int,
    ) -> None:
        self._margins = {"absolute": margin_pos, "relative": relative_margin(perc_pos)}
        self._bound = perc_pos is not None or margin_pos is not None
        files = [(name, path) for name, path in (("guide", guide), ("guide_right", guide_right)) if path is not None]
        if files and not self._bound:
            raise ValueError(
                f"{files[0][0]}={files[0][1]}: masks nothing without a bound; set margin_pos=0, or perc_pos=0.95"
            )
        if files and (guide is None or len(files) != 3 - views):
            raise ValueError(
                f"guide={guide}, guide_right={guide_right}: expected "
                f"{'both, the rows of either side of the pairs' if views == 1 else 'guide alone, the rows of the data'}"
            )
        self._guides = [_rows(name, path, num_rows) for name, path in files][:: -1 if side else 1]
        if len({guide.shape for guide in self._guides}) > 1:
            shapes = " and ".join(str(guide.shape) for guide in self._guides)
            raise ValueError(f"guide, guide_right: shapes {shapes}; expected one row a pair and side, of one model")

    def __bool__(self) -> bool:
        return self._bound

    def __call__(self, batch: EncodedBatch, scores: Tensor) -> Tensor:
        """Which of the candidates, scored by scores (A, C), are near positives: (A, C) bool."""
        if not self._guides:
            found: Tensor = near_positive(scores, batch.positive_scores[:, None], **self._margins)
            return found
        mine, positives, theirs = (
            unit_rows(as_tensor(guide[rows.cpu().numpy()])).to(scores.device)
            for guide, rows in (
                (self._guides[0], batch.rows),
                (self._guides[-1], batch.rows),
                (self._guides[-1], batch.candidate_rows),
            )
        )
        near: Tensor = near_positive(mine @ theirs.T, (mine * positives).sum(1, keepdim=True), **self._margins)
        return near.repeat(batch.views, 1)


def _rows(name: str, path: str, num_rows: int | None) -> np.ndarray:
    """The rows of a file, mapped, each of which is finite."""
    parts = as_rows(path, name)
    if len(parts) != 1 or not isinstance(parts[0], np.ndarray):
        raise ValueError(f"{name}={path}: {len(parts)} files; give one .npy of all rows")
    if num_rows is not None and len(parts[0]) != num_rows:
        raise ValueError(f"{name}={path}: {len(parts[0])} rows, expected those of the {num_rows} training rows")
    for first in range(0, len(parts[0]), BLOCK):
        some = as_tensor(parts[0][first : first + BLOCK])
        require_finite(some, torch.arange(first, first + len(some)), what=f"{name}={path}")
    return parts[0]
