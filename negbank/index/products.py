"""Scores of rows by fast products, and how far such a product can be from the score.

With bfloat16 the rows are centred first, so that rows crowded around one direction lose no more digits than others:

    s_ij = x_i·x_j = μ·μ + d_i·d_j + b_i + b_j,        d = x − μ,  b = μ·d
    p_ij = d̂_i·d̂_j + b_i + b_j = left_i · right_j      (d̂ = d rounded; b as the sum of three bfloat16 columns, exactly)

p orders the columns of a row as s does, up to 2ε_i. With m the largest over all rows, by Cauchy–Schwarz,

    |p_ij + μ·μ − s_ij| ≤ ε_i = |d_i − d̂_i| m|d| + |d̂_i| m|d − d̂|
                                + 2γ (|d̂_i| m|d̂| + |b_i| + m|b| + m|d| |μ|) + γ |x_i| m|x|

where γ = (D + 16) u, u = 2⁻²⁴, covers the rounding of sums of D terms: of the score itself in the last term, of the
product and of b in the others, with twice the room for units that cut off instead of rounding. With float32 products
only |s_ij − p_ij| ≤ 3γ |x_i| m|x| is left. A product stored in bfloat16 is rounded once more, by at most 2⁻⁸ of it:
`shortlist.py` allows for that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from negbank.index.threads import OwnThreads, threads_for

UNIT = 2.0**-24
"""u of float32."""
UNIT_BFLOAT16 = 2.0**-8
BLOCK = 1024
"""Rows that are rounded at once."""


def fast_dtype(device: torch.device) -> torch.dtype:
    """The dtype whose products serve best: bfloat16 on a CPU that multiplies it natively, else float32."""
    flags = torch.cpu.get_capabilities() if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if flags.get("avx512_bf16") or flags.get("amx_bf16") else torch.float32


def rounded_up(number: int, step: int) -> int:
    """The next multiple of step: products of few shapes are compiled once each, and what is more is not looked at."""
    return -(-number // step) * step


class Products:
    """Rows ready to be multiplied: left (B, E) of queries and right (n, E) of the searched rows.

    Args:
        vectors: (n, D) float32 searched rows.
        dtype: torch.bfloat16 or torch.float32 of the products.
        queries: (B, D) float32; the searched rows themselves by default.
        order: (n,) positions in which to take the searched rows, and them as queries.
        longest: the largest length of the searched rows, where it is known.

    Attributes:
        slack: (B,) float32, 2ε_i: of the products of query i, one that is more than its slack below the k-th largest is
            not among the k best by score.
    """

    left: Tensor
    right: Tensor
    slack: Tensor

    def __init__(
        self,
        vectors: Tensor,
        dtype: torch.dtype,
        queries: Tensor | None = None,
        *,
        order: Tensor | None = None,
        longest: Tensor | None = None,
    ) -> None:
        gamma = UNIT * (vectors.shape[1] + 16)
        if dtype == torch.float32:
            self.right = vectors if order is None else vectors[order]
            self.left = self.right if queries is None else queries
            longest = lengths(vectors).amax() if longest is None else longest
            coarse = 2 * UNIT_BFLOAT16 + UNIT_BFLOAT16**2 if rounds_float32(vectors.device) else 0.0
            self.slack = 2 * (3 * gamma + coarse) * lengths(self.left) * longest
            return
        mean = vectors.mean(0)
        self.right, *sizes = _centred(vectors, mean, order)
        left, own, kept, lost, bias = (self.right, *sizes) if queries is None else _centred(queries, mean)
        half = vectors.shape[1]  # then come b, which a row adds to the product, and ones for that of the other row
        self.left = torch.cat((left[:, :half], left[:, half + 3 :], left[:, half : half + 3]), 1)
        longest, most_kept, most_lost, most_bias = (size.amax() for size in sizes)
        sums = kept * most_kept + bias + most_bias + (most_kept + most_lost) * torch.linalg.vector_norm(mean)
        self.slack = 2 * (lost * (most_kept + most_lost) + kept * most_lost + gamma * (2 * sums + own * longest))


def _centred(rows: Tensor, mean: Tensor, order: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows (n, D) as bfloat16 (n, D + 6), and (n,) each: |x|, |d̂|, |d − d̂| and |b|."""
    out = torch.empty(len(rows), rows.shape[1] + 6, dtype=torch.bfloat16, device=rows.device)
    whole, kept, lost, bias = torch.empty(4, len(rows), device=rows.device)

    def round_off(at: int) -> None:
        some = slice(at, at + BLOCK)
        block = rows[some] if order is None else rows[order[some]]
        offset = block - mean
        out[some, :-6] = offset
        near = out[some, :-6].to(torch.float32)
        whole[some], kept[some], lost[some] = lengths(block), lengths(near), lengths(offset - near)
        rest = offset @ mean
        bias[some] = rest.abs()
        for column in range(-6, -3):
            out[some, column] = rest
            rest = rest - out[some, column]
        out[some, -3:] = 1

    with OwnThreads(threads_for(64 * rows.numel(), rows.device)) as threads:
        threads.run(round_off, range(0, len(rows), BLOCK))
    return out, whole, kept, lost, bias


def lengths(rows: Tensor) -> Tensor:
    """Euclidean lengths (n,) of rows, rounded up."""
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32) * (1 + 2.0**-12)


def rounds_float32(device: torch.device) -> bool:
    """Whether torch was told to multiply float32 at less than its precision (TF32, bfloat16)."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return backend.matmul.fp32_precision not in ("none", "ieee")
