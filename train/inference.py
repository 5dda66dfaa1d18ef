"""Embeddings and features of rows as the encoder gives them now: evaluation mode, no gradient, no augmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from negbank.train.data.images import Images
from torch import Tensor, nn


class Inference:
    """Reads rows of a data set through the evaluation transform and an embedder.

    Args:
        embedder: maps images to unit embeddings; its `backbone` gives features.
        plain: the evaluation transform, uint8 (B, C, H, W) → float (B, C, S, S).
        device: where the embedder lives.
        autocast: a context factory of the run's precision.
        batch_size: images at once.
    """

    def __init__(
        self,
        embedder: nn.Module,
        plain: Callable[[Tensor], Tensor],
        *,
        device: torch.device,
        autocast: Callable[[], torch.autocast],
        batch_size: int = 500,
    ) -> None:
        self.embedder, self.plain, self.device = embedder, plain, device
        self._autocast, self._batch_size = autocast, batch_size

    def embeddings(self, images: Images, rows: Tensor) -> Tensor:
        """Unit embeddings of rows (B,): (B, D) float32."""
        return self.run(self.embedder, images, rows, self.plain)

    def features(self, images: Images, rows: Tensor) -> Tensor:
        """Backbone features of rows (B,): (B, F) float32."""
        return self.run(cast(nn.Module, self.embedder.backbone), images, rows, self.plain)

    @torch.no_grad()
    def run(
        self, module: Callable[[Tensor], Tensor], images: Images, rows: Tensor, view: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """`module` on one `view` of every row, in evaluation mode; the embedder's mode is put back afterwards."""
        training = self.embedder.training
        self.embedder.eval()
        parts = []
        for part in rows.cpu().split(self._batch_size):
            inputs = view(images.read(part).to(self.device)).contiguous(memory_format=torch.channels_last)
            with self._autocast():
                parts.append(module(inputs).float())
        self.embedder.train(training)
        return torch.cat(parts)
