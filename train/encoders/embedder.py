"""Inputs to unit vectors: z = g(h) / ‖g(h)‖ with features h = backbone(x) (Chen et al. 2020, SimCLR, sec. 2.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from negbank.train.encoders.projector import Projector

Head = Callable[[int], nn.Module]
"""Width of the features → a module that maps them to projections."""


class Embedder(nn.Module):
    """Features h serve downstream tasks and evaluation, embeddings z the contrastive loss.

    Args:
        backbone: maps inputs to features (B, F).
        projector: maps features (B, F) to (B, D).
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    @classmethod
    def on(cls, backbone: nn.Module, projector: Head | None, **defaults: Any) -> Embedder:
        """On a backbone with `features`: `projector(features)`, or where that is None a `Projector` of `defaults`."""
        features = int(backbone.features)  # type: ignore[arg-type]
        return cls(backbone, Projector(features, **defaults) if projector is None else projector(features))

    def forward(self, inputs: Any) -> Tensor:
        """Embeddings (B, D) of L2 norm 1 in float32 also under autocast, in float64 if the modules are.

        Normalised after the cast: in bfloat16 norms would be off by up to 2⁻⁸, and so would every similarity.
        """
        projected: Tensor = self.projector(self.backbone(inputs))
        return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=1)
