"""stub"""
from __future__ import annotations
import itertools
from typing import Any, NamedTuple
import torch
from torch import Tensor
class Fetched(NamedTuple):
    rows: Tensor
    inputs: list[list[Any]]
class Ahead:
    def __init__(self, data, batches, *, seeds, views, piece, workers, device):
        self.data, self.batches, self.seeds, self.views, self.piece, self.device = data, batches, seeds, views, piece, device
        self._it = itertools.chain.from_iterable(itertools.repeat(batches))
    def next(self, step):
        rows = torch.tensor(next(self._it), device=self.device)
        n = self.views * len(rows)
        return Fetched(rows, [self._pieces(t, rows.repeat(self.views), self.seeds(step, t, torch.arange(n))) for t in range(len(self.data))])
    def _pieces(self, t, rows, seeds):
        at = torch.arange(len(rows)).split(self.piece or max(1, len(rows)))
        return [self.data[t].read(rows[i].cpu(), seeds[i]) for i in at]
    def read(self, t, rows, seeds): return self._pieces(t, rows, seeds)
    def update(self, snapshot): self.batches.update(snapshot)
    def state_dict(self): return self.batches.state_dict()
    def load_state_dict(self, s):
        self.batches.load_state_dict(s); self._it = itertools.chain.from_iterable(itertools.repeat(self.batches))
