"""Projection head g(h) = W₂ ReLU(norm(W₁ h)), or deeper (Chen et al. 2020, SimCLR, arXiv:2002.05709, sec. 2.1)."""

from torch import Tensor, nn


class Projector(nn.Module):
    """Multi-layer perceptron from features (B, features) to projections (B, dim), not normalised.

    Args:
        features: input width.
        hidden: width of the layers between.
        dim: output width D.
        layers: number of linear layers, at least 1. The last has neither norm nor bias.
        norm: "batch", or "none" for when rows are encoded in several passes (see `negbank.train.encoders.norm`).

    Raises:
        ValueError: for an unknown norm or less than one layer.
    """

    def __init__(self, features: int, hidden: int, dim: int, layers: int = 2, norm: str = "batch") -> None:
        if norm not in ("batch", "none"):
            raise ValueError(f"norm={norm!r} is unknown: choose 'batch' or 'none'")
        if layers < 1:
            raise ValueError(f"layers={layers} leaves nothing to project with: choose at least 1")
        super().__init__()
        widths = [features] + [hidden] * (layers - 1)
        modules: list[nn.Module] = []
        for inputs in widths[:-1]:
            modules.append(nn.Linear(inputs, hidden, bias=norm == "none"))
            if norm == "batch":
                modules.append(nn.BatchNorm1d(hidden))
            modules.append(nn.ReLU(inplace=True))
        modules.append(nn.Linear(widths[-1], dim, bias=False))
        self.layers = nn.Sequential(*modules)

    def forward(self, features: Tensor) -> Tensor:
        """Projections (B, dim)."""
        projected: Tensor = self.layers(features)
        return projected
