"""Encoders f = projector ∘ backbone: functions that make an `Embedder` for what the data describes.

>>> embedder = convnet(channels=1, norm="group", projector=lambda features: Projector(features, dim=64, norm="none"))
>>> embedder.backbone.features
256
"""

from negbank.train.encoders.convnet import ConvNet, convnet
from negbank.train.encoders.embedder import Embedder
from negbank.train.encoders.perceptron import Perceptron, mlp
from negbank.train.encoders.projector import Projector
from negbank.train.encoders.resnet import ResNet, resnet18, resnet50

__all__ = [
    "ConvNet", "Embedder", "Perceptron", "Projector", "ResNet", "convnet", "mlp", "resnet18", "resnet50",
]  # fmt: skip
