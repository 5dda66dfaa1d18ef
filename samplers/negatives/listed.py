"""Negatives of every row as a mining result lists them, by the place of each row in the data set."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from negbank.bank import NO_ROW
from negbank.mining.result import MiningResult


class Listed:
    """The negatives of each of N rows, best first, `most` at most.

    Args:
        path: of a result of `negbank mine` whose query i and whose corpus row i are of row i of the data set.
        num_rows: N.
        device: where rows are asked for.

    Raises:
        ValueError: for a result of other rows than these N.
        DamagedResultError: for what is no whole result.
    """

    def __init__(self, path: str, num_rows: int, device: torch.device | str) -> None:
        result = MiningResult.load(path)
        own = len(result) == num_rows and np.array_equal(result.query, np.arange(num_rows))
        if not own or result.corpus_rows != num_rows:
            raise ValueError(
                f"path={path}: mined for {len(result)} rows among {result.corpus_rows}, expected the {num_rows} "
                f"training rows, each once and in their order, among themselves; mine with embeddings of these rows "
                f"as queries and as corpus, of pairs one side's as queries and the other's as corpus"
            )
        self._offsets = torch.from_numpy(np.array(result.indptr, dtype=np.int64)).to(device)
        self._ids = torch.from_numpy(result.places.astype(np.int32)).to(device)
        self.most = int(np.diff(result.indptr).max())

    def __call__(self, rows: Tensor) -> Tensor:
        """The ids listed for rows (B,): (B, n), padded at the end by −1."""
        start, stop = self._offsets[rows][:, None], self._offsets[rows + 1][:, None]
        at = start + torch.arange(self.most, device=rows.device)
        return torch.where(at < stop, self._ids[at.clamp(max=len(self._ids) - 1)].long(), NO_ROW)
