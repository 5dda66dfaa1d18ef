"""The rows of a bank in memory-mapped files, of which only what was written whole is read back.

Beside a row b (D words of its bits) and the step t it was written at, its sum is kept,

    s = (2 i + 1) c + t f + Σ_j a_j b_j   mod 2⁶⁴

with i the row's number and c, f, a_j odd, so that a change of any one word changes s, and any other damage passes with
probability 2⁻⁶⁴. 0 stands for a row that was never written: so files that are all zero hold none. A row whose sum is
another one, such as after a kill in the middle of a write, is as if it had never been written: the next refresh encodes
it again. c is that of the bank's shape and dtype, and kept behind the sums.

The files get all of their blocks when they are made. In a sparse file a full disk would end the process (SIGBUS) at
some later write to memory.
"""

from __future__ import annotations

import errno
import hashlib
import os
import warnings
import weakref
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from negbank import files
from negbank.owner import owned, sweep

NEVER = -1
"""Value of `EmbeddingBank.written_at` for a row that was never written."""
SUMS, STEPS, VECTORS = "sums.bin", "written_at.bin", "vectors.bin"
"""The files, in the order in which they are made."""
BLOCK = 1 << 22
"""Words that are looked at together."""
FACTOR = 0x1E3779B97F4A7C15  # odd
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Owner:
    """Holds a folder until nobody refers to it."""

    def __init__(self, folder: Path) -> None:
        hold = owned(folder)
        hold.__enter__()
        self.release = weakref.finalize(self, hold.__exit__, None, None, None)


_owners: weakref.WeakValueDictionary[tuple[int, str], Owner] = weakref.WeakValueDictionary()


class MappedRows:
    """The files of a bank, made where there are none.

    Attributes:
        vectors: (N, D) of `dtype`; zero where nothing was written.
        written_at: (N,) int64 steps, or `NEVER`.

    Raises:
        ValueError: when the files are of a bank of another shape or dtype, or damaged beyond telling.
        OwnedError: when another process has the bank open.
        OSError: when there is no room for it.
    """

    def __init__(self, folder: Path, rows: int, dim: int, dtype: torch.dtype) -> None:
        key = (os.getpid(), str(folder.resolve()))
        self._owner = _owners.get(key) or Owner(folder)
        _owners[key] = self._owner
        sweep(folder, f"*.bin{files.DRAFT}")
        shape = hashlib.sha256(f"{rows} x {dim} {dtype}".encode()).digest()[:8]
        own = bytes([shape[0] | 1, *shape[1:]])
        sizes = {SUMS: 8 * rows + 8, STEPS: 8 * rows, VECTORS: rows * dim * dtype.itemsize}
        found = [name for name in sizes if (folder / name).exists()]
        for name in found:
            problem = f"holds {(folder / name).stat().st_size} bytes, not {sizes[name]}"
            if SUMS not in found:
                problem = f"has no {SUMS} beside it"
            elif (folder / name).stat().st_size == sizes[name] and (name != SUMS or _last(folder / name) == own):
                continue
            raise ValueError(f"path: {folder / name} {problem}: no bank {(rows, dim)} of {dtype}; remove it")
        for name in sizes:
            if name not in found:
                _make(folder / name, sizes[name], own if name == SUMS else b"")
        self._sums = torch.from_file(str(folder / SUMS), shared=True, size=rows, dtype=torch.int64)
        self.written_at = torch.from_file(str(folder / STEPS), shared=True, size=rows, dtype=torch.int64)
        whole = torch.from_file(str(folder / VECTORS), shared=True, size=rows * dim, dtype=dtype)
        self.vectors = whole.view(rows, dim)
        self._factors = (2 * torch.arange(dim) + 1) * FACTOR
        self._own = int.from_bytes(own, "little", signed=True)
        self._check(folder)

    def wrote(self, ids: Tensor) -> None:
        """Take note that rows `ids` are now as they should be."""
        for some in ids.split(max(1, BLOCK // len(self._factors))):
            self._sums[some] = self._sums_of(some)

    def _sums_of(self, ids: Tensor) -> Tensor:
        words = self.vectors[ids].view(WORDS[self.vectors.dtype.itemsize]).to(torch.int64)
        steps = self.written_at[ids]
        sums = (words * self._factors).sum(1) + (2 * ids + 1) * self._own + steps * (FACTOR + 2)
        return sums.masked_fill(steps == NEVER, 0)

    def _check(self, folder: Path) -> None:
        """Make every row that is not what was written one that was never written."""
        gone: list[int] = []
        for every in torch.arange(len(self.vectors)).split(max(1, BLOCK // len(self._factors))):
            sums = self._sums[every]
            ids = every[(sums == 0) | (sums != self._sums_of(every))]
            filled = (self.vectors[ids] != 0).any(1)
            steps = self.written_at[ids]
            gone += ids[filled | (self._sums[ids] != 0) | ((steps != 0) & (steps != NEVER))].tolist()
            self.vectors[ids[filled]] = 0
            self.written_at[ids] = NEVER
            self._sums[ids] = 0
        if gone:
            warnings.warn(
                f"{folder}: {len(gone)} of {len(self.vectors)} rows, such as {gone[:4]}, are not what was "
                f"written, as after a kill in the middle of a write; they count as never written: refresh them again",
                stacklevel=2,
            )


def _last(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        return file.read()


def _make(path: Path, size: int, end: bytes) -> None:
    """Zeros that have their place on the disk, the last of them `end` instead."""

    def fill(file: BinaryIO) -> None:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:  # not on macOS, not on every file system
            if getattr(error, "errno", errno.ENOSYS) not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            for start in range(0, size, 1 << 20):
                file.write(bytes(min(1 << 20, size - start)))
        file.seek(size - len(end))
        file.write(end)

    try:
        files.write(path, fill)
    except OSError as error:
        raise type(error)(error.errno, f"{error.strerror}: a bank needs {size} bytes there", str(path)) from None
