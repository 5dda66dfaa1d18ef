"""A small Transformer over tokens (Vaswani et al. 2017), from random weights: pre-norm, learned positions.

h = LN(Transformer(W_t + p_t))          features = mean of h over a text's tokens, or h of its first one
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from negbank.bounds import Annotated, Count, Ge, Lt, Section, checked
from negbank.train.data.text.tokens import Tokens
from negbank.train.encoders.embedder import Embedder, Head


class Transformer(nn.Module):
    """Tokens of n texts to features (n, features).

    Args:
        vocabulary: ids are below it.
        features: width of every layer, a multiple of `heads`.
        layers, heads: of the encoder; its inner layers are four times as wide.
        longest: tokens of a text at most.
        dropout: in every layer, and on the embeddings.
        pool: "mean" over a text's tokens, or "first".
    """

    def __init__(
        self, vocabulary: int, features: int, layers: int, heads: int, longest: int, dropout: float, pool: str
    ) -> None:
        super().__init__()
        self.features, self.longest, self.pool = features, longest, pool
        self.tokens, self.places = nn.Embedding(vocabulary, features), nn.Embedding(longest, features)
        for each in (self.tokens, self.places):
            nn.init.normal_(each.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            features, heads, 4 * features, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(features), enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, texts: Tokens) -> Tensor:
        """Features (n, features). Raises ValueError for a text of more than `longest` tokens."""
        ids, inside = texts.padded()
        if ids.shape[1] > self.longest:
            raise ValueError(
                f"encoder.longest={self.longest}: a text has {ids.shape[1]} tokens; raise it, or lower data's"
            )
        x = self.dropout(self.tokens(ids) + self.places.weight[: ids.shape[1]])
        return pooled(self.layers(x, src_key_padding_mask=~inside), inside, self.pool)


def pooled(states: Tensor, inside: Tensor, pool: str) -> Tensor:
    """States (n, L, F) of tokens, some of them inside of the text (n, L), as one vector a text: (n, F).

    pool: their "mean", that of the "first" one, such as [CLS], or of the "last".
    """
    if pool == "first":
        return states[:, 0]
    if pool == "last":
        return states[torch.arange(len(states), device=states.device), inside.sum(1) - 1]
    share = inside[..., None].to(states.dtype)
    return (states * share).sum(1) / share.sum(1)


@checked
def transformer(
    *,
    vocabulary: int,
    features: Annotated[int, Ge(8)] = 128,
    layers: Count = 2,
    heads: Count = 4,
    longest: Count = 128,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1,
    pool: Literal["mean", "first", "last"] = "mean",
    projector: Annotated[Head | None, Section("projector", "mlp", norm="none")] = None,
) -> Embedder:
    """A small Transformer over tokens, from random weights.

    Args:
        vocabulary: ids of the data's tokenizer.
        features: width of every layer; a multiple of heads.
        layers: of the encoder.
        heads: of attention.
        longest: tokens of a text at most; at least the data's.
        dropout: in every layer, and on the embeddings.
        pool: mean over a text's tokens, its first or its last one.
        projector: from features to embeddings.

    Raises:
        ValueError: for heads that do not divide features.
    """
    if features % heads:
        raise ValueError(f"encoder.heads={heads}: expected a divisor of features={features}")
    backbone = Transformer(vocabulary, features, layers, heads, longest, dropout, pool)
    return Embedder.on(backbone, projector, norm="none")
