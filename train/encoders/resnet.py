"""Residual networks (He et al. 2016, arXiv:1512.03385) without their classifier, untrained.

For images of about 32x32 the stem is one 3x3 convolution of stride 1 without max-pooling (Chen et al. 2020, SimCLR,
appendix B.9), where the original 7x7 of stride 2 with pooling would leave 8x8 positions to the first block.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

from negbank.bounds import Annotated, Section, checked
from negbank.train.encoders.embedder import Embedder, Head
from negbank.train.encoders.norm import norm2d


class ResNet(TorchvisionResNet):
    """Images (B, channels, H, W) to features (B, features).

    Args:
        block: residual block, `BasicBlock` or `Bottleneck`.
        layers: blocks in each of the four stages.
        channels: of the images, usually 1 or 3.
        small_images: 3x3 stem at full resolution, in place of the stem of stride 4.
        norm: "batch" or "group"; see `negbank.train.encoders.norm` for which.
    """

    def __init__(
        self, block: type[BasicBlock | Bottleneck], layers: list[int], channels: int, small_images: bool, norm: str
    ) -> None:
        super().__init__(block, layers, num_classes=1, norm_layer=partial(norm2d, norm))
        self.features = 512 * block.expansion
        self.fc = nn.Identity()
        if small_images:
            self.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")


@checked
def resnet18(
    *,
    channels: int,
    small_images: bool = True,
    norm: Literal["batch", "group"] = "batch",
    projector: Annotated[Head | None, Section("projector", "mlp", hidden=2048)] = None,
) -> Embedder:
    """ResNet-18, untrained, with 512 features.

    Args:
        channels: of the images.
        small_images: 3×3 stem without max-pool, for images up to about 96 pixels.
        norm: norm layers; group has no batch statistics.
        projector: from features to embeddings.
    """
    return Embedder.on(ResNet(BasicBlock, [2, 2, 2, 2], channels, small_images, norm), projector, hidden=2048)


@checked
def resnet50(
    *,
    channels: int,
    small_images: bool = True,
    norm: Literal["batch", "group"] = "batch",
    projector: Annotated[Head | None, Section("projector", "mlp", hidden=2048)] = None,
) -> Embedder:
    """ResNet-50, untrained, with 2048 features.

    Args:
        channels: of the images.
        small_images: 3×3 stem without max-pool, for images up to about 96 pixels.
        norm: norm layers; group has no batch statistics.
        projector: from features to embeddings.
    """
    return Embedder.on(ResNet(Bottleneck, [3, 4, 6, 3], channels, small_images, norm), projector, hidden=2048)
