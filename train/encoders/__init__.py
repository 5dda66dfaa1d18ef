"""Encoders f = projector ∘ backbone, by name.

>>> backbone = ENCODERS["convnet"](channels=1, norm="group")
>>> embedder = Embedder(backbone, Projector(backbone.features, hidden=256, dim=64))
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from negbank.train.encoders.convnet import ConvNet
from negbank.train.encoders.projector import Projector
from negbank.train.encoders.resnet import ResNet, resnet18, resnet50
from torch import Tensor, nn

__all__ = ["ENCODERS", "ConvNet", "Embedder", "Projector", "ResNet", "resnet18", "resnet50"]

ENCODERS: dict[str, Callable[..., ConvNet | ResNet]] = {"convnet": ConvNet, "resnet18": resnet18, "resnet50": resnet50}
"""Backbones by name. Each takes `channels` and `norm` as keywords and has its output width as `.features`."""


class Embedder(nn.Module):
    """Images to unit vectors: z = g(h) / ‖g(h)‖ with features h = backbone(x) (Chen et al. 2020, SimCLR, sec. 2.1).

    Features h serve downstream tasks and evaluation, embeddings z the contrastive loss.

    Args:
        backbone: maps images (B, C, H, W) to features (B, F).
        projector: maps features (B, F) to (B, D).
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of L2 norm 1 in float32 also under autocast, in float64 if the modules are.

        Normalised after the cast: in bfloat16 norms would be off by up to 2⁻⁸, and so would every similarity.
        """
        projected: Tensor = self.projector(self.backbone(images))
        return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=1)
