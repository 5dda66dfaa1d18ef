"""A multi-layer perceptron over inputs of any one shape: vectors, spectra, embeddings of another model."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from negbank.bounds import Annotated, Count, Section, checked
from negbank.train.encoders.embedder import Embedder, Head
from negbank.train.encoders.projector import hidden_layers


class Perceptron(nn.Module):
    """Inputs (B, ...) of `inputs` numbers each to features (B, features).

    Args:
        inputs: numbers of an input.
        features: width of every layer, and so of the features.
        layers: linear layers, each with its norm and ReLU.
        norm: "batch", "layer" or "none".
    """

    def __init__(self, inputs: int, features: int, layers: int, norm: Literal["batch", "layer", "none"]) -> None:
        super().__init__()
        self.features = features
        self.layers = nn.Sequential(*hidden_layers([inputs] + [features] * layers, norm))

    def forward(self, inputs: Tensor) -> Tensor:
        """Features (B, features)."""
        flat = inputs.flatten(1)
        features: Tensor = self.layers(flat if flat.is_floating_point() else flat.float())
        return features


@checked
def mlp(
    *,
    shape: tuple[int, ...],
    hidden: Count = 256,
    layers: Count = 2,
    norm: Literal["batch", "layer", "none"] = "batch",
    projector: Annotated[Head | None, Section("projector", "mlp")] = None,
) -> Embedder:
    """A multi-layer perceptron over tensors of any one shape.

    Args:
        shape: of an input.
        hidden: width of its layers, and so of the features that are evaluated.
        layers: linear layers.
        norm: norm of the layers; layer and none have no batch statistics.
        projector: from features to embeddings.
    """
    return Embedder.on(Perceptron(math.prod(shape), hidden, layers, norm), projector)
