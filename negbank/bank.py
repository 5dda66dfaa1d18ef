"""The embedding bank: one unit row per row of the data set, and the step each was written at.

A bank row lags behind the encoder, b_j = z_j(θ_{t−a}) with age a = t − written_at[j]. It is what an index is built
over, and it *chooses* which rows are looked at; what they weigh is for fresh embeddings to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from negbank.mapped import NEVER, MappedRows

NO_ROW = -1
"""Row of an anchor that is not itself in the bank (an outside query), and padding in lists of ids."""


class BankStatistics(NamedTuple):
    """Coverage in [0, 1]; mean and maximum age in optimiser steps over the written rows (0 where there are none)."""

    coverage: float
    mean_age: float
    max_age: int


def unit_rows(vectors: Tensor) -> Tensor:
    """Rows scaled to length 1, float32, however short or long they are. A zero row stays zero.

    Args:
        vectors: (..., D), any floating dtype.
    """
    vectors = vectors.detach()
    if vectors.device.type != "cpu":  # where to look for such rows would cost a wait
        return _scaled(vectors)
    rows = vectors.to(torch.float32)
    lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    odd = ((lengths < 2.0**-30) | ~(lengths < 2.0**60)).squeeze(-1)
    unit = rows / lengths.clamp_min_(1e-12)
    if bool(odd.any()):
        unit[odd] = _scaled(vectors[odd])
    return unit


def _scaled(rows: Tensor) -> Tensor:
    """`unit_rows`, of rows first divided by the power of two above their largest entry: no square leaves the range.

    The division is exact, so that rows of common lengths come out as they do without it.
    """
    rows = rows if rows.dtype == torch.float64 else rows.to(torch.float32)
    largest = torch.linalg.vector_norm(rows, ord=torch.inf, dim=-1, keepdim=True)
    power = (torch.frexp(largest).mantissa / largest).clamp(max=0.5 / torch.finfo(rows.dtype).tiny)
    scaled = (rows * torch.where(largest > 0, power, 1.0)).to(torch.float32)
    return scaled.div_(torch.linalg.vector_norm(scaled, dim=-1, keepdim=True).clamp_min_(1e-12))


def require_finite(vectors: Tensor, ids: Tensor | None = None, *, what: str = "vectors") -> None:
    """Raise unless every row of `vectors` (B, D) is finite.

    Raises:
        ValueError: naming the first rows that are not, by `ids` (B,) if given.
    """
    if bool(torch.isfinite(vectors.sum())):  # a NaN or an infinity anywhere survives the sum; overflow is re-checked
        return
    bad = (~torch.isfinite(vectors).all(-1)).nonzero().flatten()
    if bad.numel() == 0:
        return
    rows = (bad if ids is None else ids[bad]).tolist()
    raise ValueError(
        f"{what}: {len(rows)} row(s) hold NaN or infinity, the first at {rows[:8]}; "
        f"find what diverged (learning rate, mixed precision) before they reach the bank or an index"
    )


def added(first: Tensor, second: Tensor) -> Tensor:
    """first + second, rows (n, D); of opposite ones, whose sum has no direction, the first stands for both."""
    both = first + second
    return torch.where((both == 0).all(-1, keepdim=True), first, both)


def require_rows(rows: Tensor, num_rows: int | None, *, what: str = "rows", outside: bool = False) -> None:
    """Raise unless all of rows (...,) are rows of the data set: to a table −1 would be its last row, silently.

    Args:
        num_rows: N, or None where it is not known.
        outside: whether `NO_ROW`, an outside query, is one as well.

    Raises:
        ValueError: naming the range. On a CUDA device, where to look would hold up the host, the device asserts it.
    """
    lowest, highest = NO_ROW if outside else 0, torch.iinfo(torch.int64).max if num_rows is None else num_rows - 1
    if rows.is_cuda:
        torch._assert_async(((rows >= lowest) & (rows <= highest)).all(), f"{what}: outside {lowest}..{highest}")
    elif rows.numel() and not lowest <= (found := [int(end) for end in rows.aminmax()])[0] <= found[1] <= highest:
        reach = f"{lowest}.." if num_rows is None else f"{lowest}..{highest}"
        raise ValueError(
            f"{what}: {found[0]}..{found[1]} reach outside the rows {reach}; give rows of the data set, counted from 0"
        )


class EmbeddingBank:
    """N × D unit vectors, overwritten in place, with the step of each row's last write.

    Args:
        num_rows: rows of the data set, N.
        dim: width of an embedding, D.
        dtype: torch.float32, float16 or bfloat16 of the stored rows.
        device: where the rows live; with `path` it must be the CPU.
        path: a folder; the bank is then memory-mapped files in it, which outlive the process. One process at a time has
            them open. Rows that are not what was written there, such as after a kill, count as never written.

    Raises:
        ValueError: for a size below 1, a dtype that is not floating, `path` with a device other than the CPU, or with
            files of another bank.
        OwnedError: when another process has the bank at `path` open.
        OSError: when the disk has no room for it.
    """

    def __init__(
        self,
        num_rows: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        path: str | Path | None = None,
    ) -> None:
        if num_rows < 1 or dim < 1:
            raise ValueError(f"num_rows={num_rows}, dim={dim}: a bank needs at least one row and one column")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype={dtype}: a bank stores floating-point rows; use torch.float32 or torch.float16")
        self._mapped: MappedRows | None = None
        if path is None:
            self.vectors = torch.zeros(num_rows, dim, dtype=dtype, device=device)
            self.written_at = torch.full((num_rows,), NEVER, dtype=torch.int64, device=device)
            return
        if torch.device(device).type != "cpu":
            raise ValueError(f"path={path}: a memory-mapped bank lives on the CPU, not on device={device}")
        self._mapped = MappedRows(Path(path), num_rows, dim, dtype)
        self.vectors, self.written_at = self._mapped.vectors, self._mapped.written_at

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Width of an embedding, D."""
        return self.vectors.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.vectors.device

    @property
    def written(self) -> Tensor:
        """(N,) bool: the rows that were ever written."""
        return self.written_at != NEVER

    def write(self, ids: Tensor, vectors: Tensor, *, step: int) -> None:
        """Normalise `vectors` (B, D) and store them as rows `ids` (B,), written at `step`.

        Where an id comes twice its last vector stays.

        Raises:
            ValueError: for shapes that do not fit, ids outside 0..N−1, a row that is not finite or that is all zero.
        """
        ids = ids.to(self.vectors.device)
        if vectors.shape != (len(ids), self.dim):
            raise ValueError(f"vectors: shape {tuple(vectors.shape)}, expected {(len(ids), self.dim)}")
        rows = unit_rows(vectors)
        zero = (rows == 0).all(-1)
        inside = ((ids >= 0) & (ids < len(self))).all()
        if not bool(inside & torch.isfinite(vectors.sum()) & ~zero.any()):  # one question: a device waits once
            self._checked(ids)
            require_finite(vectors, ids, what="vectors written to the bank")
            if bool(zero.any()):
                raise ValueError(f"vectors: rows {ids[zero].tolist()[:8]} are all zero and have no direction")
        self.vectors[ids] = rows[_last_of_each(ids)].to(self.vectors)
        self.written_at[ids] = step
        if self._mapped is not None:
            self._mapped.wrote(ids.unique())

    def read(self, ids: Tensor) -> Tensor:
        """Rows `ids` (...,) as float32 (..., D); a row never written reads as zeros.

        Raises:
            ValueError: for an id outside 0..N−1.
        """
        return self.vectors[self._checked(ids)].to(torch.float32)

    def statistics(self, step: int) -> BankStatistics:
        """Coverage and age of the rows as seen from optimiser step `step`."""
        ages = step - self.written_at[self.written]
        if ages.numel() == 0:
            return BankStatistics(0.0, 0.0, 0)
        return BankStatistics(ages.numel() / len(self), float(ages.double().mean()), int(ages.max()))

    def state_dict(self) -> dict[str, Any]:
        """Copies of the rows and of their steps."""
        return {"vectors": self.vectors.clone(), "written_at": self.written_at.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: when the state is of a bank of another shape.
        """
        if state["vectors"].shape != self.vectors.shape:
            raise ValueError(f"bank: state of shape {tuple(state['vectors'].shape)} for {tuple(self.vectors.shape)}")
        self.vectors.copy_(state["vectors"])
        self.written_at.copy_(state["written_at"])
        if self._mapped is not None:
            self._mapped.wrote(torch.arange(len(self)))

    def _checked(self, ids: Tensor) -> Tensor:
        ids = ids.to(self.vectors.device)
        require_rows(ids, len(self), what="ids")
        return ids


def _last_of_each(ids: Tensor) -> Tensor:
    """For each of ids (n,) the position of its last occurrence: an index-put of unlike repeats has no set winner."""
    ordered, position = ids.sort(stable=True)
    return position[torch.searchsorted(ordered, ids, right=True) - 1]
