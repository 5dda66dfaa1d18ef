"""Embeddings wherever they lie: arrays, tensors, memory-mapped `.npy` files, or many shards of them, as unit rows.

A row is scaled to length 1 in float32 by itself, so what a block or a gather returns depends on no other row. Pages of
a mapped file are handed back after each read: they would count as this process's memory.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from negbank.bank import unit_rows

Source = Any
"""A (N, D) array or tensor, the path of a `.npy` file or of a folder of them, or a list of these: shards in order."""
CHECKED = 1 << 13
"""Rows looked at together in `Rows.check`."""


class Rows:
    """N rows of D columns from one source or several shards, read as float32 unit rows.

    Args:
        source: see `Source`.
        name: of the argument, for errors.
        unit: the rows have length 1 already (a snapshot's) and are taken as they are.

    Attributes:
        resident: all unit rows (N, D) float32, where they are kept in memory.

    Raises:
        ValueError: for a source of another kind, a dtype that is not floating point, shards whose width differs, a
            file that is no `.npy` or is truncated, or no rows.
        FileNotFoundError: for a path that does not exist.
    """

    def __init__(self, source: Source, name: str, *, unit: bool = False) -> None:
        self.name, self._unit = name, unit
        self._parts = _open(source, name)
        self.dim = int(self._parts[0].shape[1])
        for number, part in enumerate(self._parts):
            where = name if len(self._parts) == 1 else f"{name}, shard {number}"
            if part.shape[1] != self.dim:
                raise ValueError(f"{where}: {part.shape[1]} columns, shard 0 has {self.dim}; embed all with one model")
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        if len(self) == 0 or self.dim == 0:
            raise ValueError(f"{name}: shape {(len(self), self.dim)}; there is nothing to mine from")
        first = self._parts[0]
        self.device = first.device if isinstance(first, Tensor) else torch.device("cpu")
        self.resident: Tensor | None = first if unit and len(self._parts) == 1 and isinstance(first, Tensor) else None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def check(self, *, digest: bool = False) -> str:
        """Read every row once; a digest of all of them where asked for, else "".

        Raises:
            ValueError: naming the first rows that hold NaN or infinity, or that are all zero.
        """
        sha = hashlib.sha256(str((len(self), self.dim)).encode())
        for start, part in self._pieces(CHECKED):
            raw = _tensor(part)
            rows = raw.to(torch.float32)
            squares = (rows * rows).sum(-1)
            bad = (~torch.isfinite(squares)).nonzero().flatten()
            if len(bad):
                raise ValueError(
                    f"{self.name}: {len(bad)} row(s) of {len(rows)} from row {start} on hold NaN, infinity or values "
                    f"whose squares overflow, the first at {(bad[:8] + start).tolist()}; drop them or embed them again"
                )
            zero = (squares == 0).nonzero().flatten()
            if len(zero):
                raise ValueError(
                    f"{self.name}: rows {(zero[:8] + start).tolist()} are all zero and have no direction; drop them"
                )
            if digest:
                sha.update(raw.cpu().contiguous().view(torch.uint8).numpy().data)
            _release(part)
        return sha.hexdigest() if digest else ""

    def settle(self, limit: int) -> None:
        """Keep all unit rows in memory, if that takes at most `limit` bytes."""
        if self.resident is None and len(self) * self.dim * 4 <= limit:
            unit = torch.empty(len(self), self.dim, device=self.device)
            for start, rows in self.blocks(CHECKED):
                unit[start : start + len(rows)] = rows
            self.resident = unit

    def blocks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """(position of the first row, unit rows) of blocks of at most `size` rows, in order."""
        if self.resident is not None:
            for start in range(0, len(self), size):
                yield start, self.resident[start : start + size]
            return
        for start, part in self._pieces(size):
            yield start, self._as_unit(_tensor(part))
            _release(part)

    def block(self, start: int, stop: int) -> Tensor:
        """Unit rows start..stop−1: (stop − start, D)."""
        if self.resident is not None:
            return self.resident[start:stop]
        return self.take(torch.arange(start, min(stop, len(self))))

    def take(self, positions: Tensor) -> Tensor:
        """Unit rows at positions (...): (..., D)."""
        if self.resident is not None:
            return self.resident[positions.to(self.device)]
        flat = positions.flatten().cpu()
        if len(self._parts) == 1:
            return self._as_unit(self._gather(0, flat)).view(*positions.shape, self.dim)
        found = torch.empty(len(flat), self.dim, device=self.device)
        owner = torch.from_numpy(np.searchsorted(self._starts, flat.numpy(), side="right") - 1)
        for number in owner.unique().tolist():
            mine = owner == number
            found[mine.to(self.device)] = self._as_unit(self._gather(number, flat[mine] - int(self._starts[number])))
        return found.view(*positions.shape, self.dim)

    def _gather(self, number: int, local: Tensor) -> Tensor:
        part = self._parts[number]
        if isinstance(part, Tensor):
            return part[local.to(part.device)].to(self.device)
        if isinstance(part, np.memmap) and isinstance(part.base, mmap.mmap) and part.flags.c_contiguous:
            return _tensor(_read(part, local.tolist()))
        rows = _tensor(np.take(part, local.numpy(), axis=0))
        _release(part)
        return rows

    def _pieces(self, size: int) -> Iterator[tuple[int, np.ndarray | Tensor]]:
        for part, start in zip(self._parts, self._starts[:-1].tolist()):
            for at in range(0, len(part), size):
                yield start + at, part[at : at + size]

    def _as_unit(self, rows: Tensor) -> Tensor:
        rows = rows.to(self.device)
        return rows.to(torch.float32) if self._unit else unit_rows(rows)


def _open(source: Source, name: str) -> list[np.ndarray | Tensor]:
    """The shards of a source, checked for shape and dtype; files are mapped, not read."""
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            files: Sequence[Source] = sorted(path.glob("*.npy"))
            if not files:
                raise ValueError(f"{name}={path}: the folder holds no .npy files")
            return [part for file in files for part in _open(file, name)]
        return [_shaped(_mapped(path, name), f"{name}={path}")]
    if isinstance(source, list | tuple) and any(isinstance(s, str | Path | np.ndarray | Tensor) for s in source):
        return [part for number, shard in enumerate(source) for part in _open(shard, f"{name}, shard {number}")]
    if isinstance(source, Tensor):
        return [_shaped(source.detach(), name)]
    try:
        return [_shaped(np.asanyarray(source), name)]
    except ValueError as error:
        if str(error).startswith(name):
            raise
        raise ValueError(
            f"{name}: {type(source).__name__}; expected an array, a tensor, .npy paths or shards"
        ) from None


def _shaped(part: np.ndarray | Tensor, where: str) -> np.ndarray | Tensor:
    floating = part.dtype.is_floating_point if isinstance(part, Tensor) else part.dtype.kind == "f"
    if part.ndim != 2 or not floating:
        raise ValueError(
            f"{where}: {part.dtype} of shape {tuple(part.shape)}, expected floating point (N, D) embeddings"
        )
    return part


def _mapped(path: Path, name: str) -> np.ndarray:
    if not path.exists():
        raise FileNotFoundError(f"{name}={path}: no such file or folder")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{name}={path}: no complete .npy file ({error}); write this shard again") from None


def _read(part: np.memmap, positions: list[int]) -> np.ndarray:
    """Rows of a mapped file, read from the file: through the mapping each would bring its surroundings with it."""
    size = part.shape[1] * part.dtype.itemsize
    with open(str(part.filename), "rb") as file:
        raw = b"".join(os.pread(file.fileno(), size, part.offset + i * size) for i in positions)
    return np.frombuffer(bytearray(raw), part.dtype).reshape(-1, part.shape[1])


def _release(part: np.ndarray | Tensor) -> None:
    """Hand the pages of a mapped file back, where the mapping is shared with the file and they can be read again."""
    mapping = getattr(part, "_mmap", None)
    if mapping is not None and getattr(part, "mode", "") in ("r", "r+") and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _tensor(part: np.ndarray | Tensor) -> Tensor:
    """The rows as a tensor; copied where torch could not read them in place without a warning or at all."""
    if isinstance(part, Tensor):
        return part
    native = part.dtype in (np.float16, np.float32, np.float64)
    if native and part.flags.writeable and all(stride >= 0 for stride in part.strides):
        return torch.from_numpy(np.asarray(part))
    return torch.from_numpy(np.array(part, dtype=part.dtype if native and part.dtype.isnative else np.float32))
