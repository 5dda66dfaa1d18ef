"""Projection head g(h) = W₂ ReLU(norm(W₁ h)), or deeper (Chen et al. 2020, SimCLR, arXiv:2002.05709, sec. 2.1)."""

from __future__ import annotations

import itertools
from typing import Literal

from torch import Tensor, nn

from negbank.bounds import Annotated, Count, Ge, checked


class Projector(nn.Module):
    """Multi-layer perceptron from features (B, features) to projections (B, dim), not normalised.

    Args:
        features: input width.
        hidden: width of the projector's hidden layers.
        dim: width of an embedding, D.
        layers: linear layers of the projector; the last has neither norm nor bias.
        norm: norm of the projector's hidden layers; none for when rows are encoded in several passes.

    Raises:
        ValueError: for an unknown norm or less than one layer.
    """

    @checked
    def __init__(
        self,
        features: int,
        hidden: Count = 256,
        dim: Annotated[int, Ge(2)] = 128,
        layers: Count = 2,
        norm: Literal["batch", "none"] = "batch",
    ) -> None:
        super().__init__()
        widths = [features] + [hidden] * (layers - 1)
        self.layers = nn.Sequential(*hidden_layers(widths, norm), nn.Linear(widths[-1], dim, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        """Projections (B, dim)."""
        projected: Tensor = self.layers(features)
        return projected


def hidden_layers(widths: list[int], norm: str) -> list[nn.Module]:
    """Linear layers of given widths, each followed by its norm, "batch", "layer" or "none", and ReLU."""
    made: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        made.append(nn.Linear(inputs, outputs, bias=norm == "none"))
        if norm != "none":
            made.append(nn.BatchNorm1d(outputs) if norm == "batch" else nn.LayerNorm(outputs))
        made.append(nn.ReLU(inplace=True))
    return made
