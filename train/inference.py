"""Embeddings and features of rows as an encoder gives them now: evaluation mode, no gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from negbank.train.data.contract import Data
from negbank.train.passes import Autocast


class Inference:
    """Reads rows of a data set and encodes them, block by block.

    Args:
        encoder: inputs → unit embeddings; its `backbone`, if it has one, gives features.
        device: where the encoder is.
        autocast: a context factory of the run's precision.
        block: inputs encoded at once.
    """

    def __init__(self, encoder: nn.Module, *, device: torch.device, autocast: Autocast, block: int = 500) -> None:
        self.encoder, self.device = encoder, device
        self._autocast, self._block = autocast, block

    def embeddings(self, data: Data, rows: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Unit embeddings (B, D) float32 of rows (B,): as evaluation sees them, or under the views of seeds (B,)."""
        return self._run(self.encoder, data, rows, seeds)

    def features(self, data: Data, rows: Tensor) -> Tensor:
        """What downstream tasks are given of rows (B,): (B, F) float32 of the backbone, or else the embeddings."""
        backbone = getattr(self.encoder, "backbone", self.encoder)
        return self._run(backbone, data, rows, None)

    @torch.no_grad()
    def _run(self, module: Callable[..., Tensor], data: Data, rows: Tensor, seeds: Tensor | None) -> Tensor:
        """`module` on one view of every row; the encoder's mode is put back afterwards."""
        training = self.encoder.training
        self.encoder.eval()
        try:
            parts = []
            for part in torch.arange(len(rows)).split(self._block):
                inputs = data.read(rows.cpu()[part], None if seeds is None else seeds[part]).to(self.device)
                with self._autocast():
                    parts.append(module(inputs).float())
        finally:
            self.encoder.train(training)
        return torch.cat(parts)
