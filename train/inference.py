"""Embeddings and features of rows as an encoder gives them now: evaluation mode, no gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from negbank.train.data.contract import Data, Inputs
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

    def embed(self, inputs: Inputs) -> Tensor:
        """Unit embeddings (n, D) float32 of inputs at hand."""
        with self._evaluating():
            return self._encode(self.encoder, inputs)

    def _run(self, module: Callable[..., Tensor], data: Data, rows: Tensor, seeds: Tensor | None) -> Tensor:
        """`module` on one view of every row."""
        parts = torch.arange(len(rows)).split(self._block)
        read = (data.read(rows.cpu()[part], None if seeds is None else seeds[part]) for part in parts)
        with self._evaluating():
            return torch.cat([self._encode(module, inputs) for inputs in read])

    def _encode(self, module: Callable[..., Tensor], inputs: Inputs) -> Tensor:
        with self._autocast():
            return module(inputs.to(self.device)).float()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode and no gradient inside; the encoder's mode is put back afterwards."""
        training = self.encoder.training
        self.encoder.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.encoder.train(training)
