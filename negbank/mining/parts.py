"""Finished parts of a run: kept in memory or streamed to a folder, put together at the end, resumed after a stop.

A part holds everything of a run of queries, as arrays by name. The folder's manifest says which run it belongs to. With
several processes each works on every W-th part. A result is the arrays of all parts, in a folder of the same kind.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from negbank import files
from negbank.files import DamagedError
from negbank.mining.rules import offsets
from negbank.owner import LOCK, OwnedError, owned, sweep

FORMAT = 1
Part = dict[str, np.ndarray]
COUNTS = {"candidate_indptr": "candidate_counts", "pair_indptr": "pair_counts", "indptr": "counts"}
"""Offsets of a result, of which a part holds the counts."""
OFFSETS = {counts: indptr for indptr, counts in COUNTS.items()}
SUMS = ("rejects",)


class DamagedResultError(DamagedError):
    """A saved mining result whose files are missing, changed, or of another format."""


def world() -> tuple[int, int]:
    """This process's rank and the number of processes, as torch.distributed has them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def together(action: Callable[[], None]) -> None:
    """Have process 0 act when all have come this far; the others wait, and fail where it fails."""
    rank, size = world()
    if size > 1:
        torch.distributed.barrier()
    error: list[Exception | None] = [None]
    if rank == 0:
        try:
            action()
        except (ValueError, OSError) as found:
            error[0] = found
    if size > 1:
        torch.distributed.broadcast_object_list(error, src=0)
    if error[0] is not None:
        raise error[0]


def in_memory(
    numbers: Iterable[int], make: Callable[[int], Part], total: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All parts, this process's share of which is `numbers`, made and put together in every process: arrays and sums.

    The parts are emptied on the way, so that little is held twice.
    """
    own = {number: make(number) for number in numbers}
    if world()[1] > 1:
        gathered: list[Any] = [None] * world()[1]
        torch.distributed.all_gather_object(gathered, own)
        own = {number: part for share in gathered for number, part in share.items()}
    parts = [own[number] for number in range(total)]
    sums = {name: np.sum([part.pop(name) for part in parts], axis=0).tolist() for name in SUMS}
    arrays = {}
    for name in list(parts[0]):
        together_ = np.concatenate([part.pop(name) for part in parts])
        arrays[OFFSETS.get(name, name)] = offsets(together_) if name in OFFSETS else together_
    return arrays, sums


def require_free(path: Path) -> None:
    """Refuse a folder that cannot be opened, before any work.

    Raises:
        OwnedError: naming the process that writes there.
        OSError: when it cannot be written.
    """

    def look() -> None:
        with ExitStack() as held:
            _own(path, held)

    together(look)


def _own(path: Path, held: ExitStack) -> None:
    try:
        held.enter_context(owned(path))
    except OwnedError as error:
        raise OwnedError(f"out={error}") from None
    except OSError as error:
        raise type(error)(f"out={path}: cannot be written ({error}); choose another folder") from None


@contextmanager
def opened(path: Path, run: dict[str, Any], part_queries: int) -> Iterator[Folder]:
    """The `Folder`, made by process 0; no other run writes there until the end of the `with`.

    Raises:
        OwnedError: naming the process that does.
    """
    made: list[Folder] = []
    with ExitStack() as held:

        def make() -> None:
            _own(path, held)
            made.append(Folder(path, run, part_queries))

        together(make)
        yield made[0] if made else Folder(path, run, part_queries)


class Folder:
    """A folder that parts are streamed to. A finished one that is damaged is not finished.

    Args:
        path: the folder, which is this run's alone.
        run: what identifies the run (arguments, digest of the inputs), as JSON values.
        part_queries: queries of a part; a run that goes on keeps the size it began with.

    Raises:
        ValueError: when the folder holds another run or other files.
        OSError: when it cannot be written, before any work.
    """

    def __init__(self, path: Path, run: dict[str, Any], part_queries: int) -> None:
        self.path = path
        self._parts = path / "parts"
        try:
            self.manifest = self._begun(run, part_queries)
            self.complete = bool(self.manifest["complete"])
            if world()[0] == 0:
                self._tidy()
            if not self.complete:
                self._parts.mkdir(exist_ok=True)
                probe = self._parts / f"probe-{world()[0]}"
                probe.write_bytes(b"")
                probe.unlink()
        except OSError as error:
            raise type(error)(f"out={path}: cannot be written ({error}); choose another folder") from None
        self.part_queries = int(self.manifest["part_queries"])

    def _begun(self, run: dict[str, Any], part_queries: int) -> dict[str, Any]:
        """What the folder says of its run, which is this one."""
        path, others = self.path, {each.name for each in self.path.iterdir()} - {LOCK, files.MANIFEST + files.DRAFT}
        if files.MANIFEST not in others:
            if others:
                raise ValueError(f"out={path}: the folder holds other files; give a new or empty one")
            found = {"format": FORMAT, "complete": False, "run": run, "part_queries": part_queries}
            if world()[0] == 0:
                files.seal(path, found, [])
            return found
        found = read_manifest(path)
        there: dict[str, Any] = found.get("run", {})
        different = [key for key in run if there.get(key) != run[key]]
        if different:
            told = ", ".join(f"{key}={there.get(key)!r} there, {run[key]!r} here" for key in different[:3])
            raise ValueError(f"out={path}: the folder holds another run ({told}); give a new folder to keep both")
        if found["complete"] and world()[0] == 0:
            try:
                files.manifest(path)
            except DamagedError as error:
                warnings.warn(f"{error}; mining again", stacklevel=2)
                found = {key: found[key] for key in ("format", "run", "part_queries")} | {"complete": False}
                files.seal(path, found, [])
        return found

    def _tidy(self) -> None:
        """Remove what a kill has left."""
        for pattern in (f"{files.MANIFEST}{files.DRAFT}", f"*.npy{files.DRAFT}"):
            sweep(self.path, pattern)
        sweep(self._parts, f"*{files.DRAFT}")
        if self.complete and self._parts.exists():
            shutil.rmtree(self._parts)

    def result(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays, memory-mapped, and manifest of a complete run, which were checked on opening."""
        return _mapped(self.path, self.manifest), self.manifest

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Those of the numbers whose part is not there yet, or damaged."""
        there = self._there()
        return [number for number in numbers if files.kept(self._file(number), there.get(number, [])) is None]

    def put(self, number: int, part: Part) -> None:
        """Write a part, whole or not at all."""
        files.keep(self._file(number), lambda file: np.savez(file, **part))  # type: ignore[arg-type]

    def finish(self, total: int, constant: dict[str, np.ndarray], about: dict[str, Any]) -> None:
        """Put all parts together into one `.npy` an array, part by part, then the manifest; then remove the parts."""
        there = self._there()
        found = [files.kept(self._file(number), there.get(number, [])) for number in range(total)]
        parts = [part for part in found if part is not None]
        if len(parts) < total:
            raise DamagedResultError(
                f"{self._parts}: part {found.index(None)} is not what was written; call again with the same arguments, "
                f"and it is mined again"
            )
        sums = {name: np.sum([_read(file, name) for file in parts], axis=0).tolist() for name in SUMS}
        with np.load(parts[0]) as first:
            names = [name for name in first.files if name not in SUMS]
        for name in names:
            files.write(self.path / f"{OFFSETS.get(name, name)}.npy", partial(_merge, parts=parts, name=name))
        for name, values in constant.items():
            files.write(self.path / f"{name}.npy", partial(np.save, arr=values, allow_pickle=False))
        names = [*(OFFSETS.get(name, name) for name in names), *constant]
        whole = {**self.manifest, **about, **sums, "complete": True}
        files.seal(self.path, whole, [f"{name}.npy" for name in names])
        shutil.rmtree(self._parts)

    def _file(self, number: int) -> Path:
        return self._parts / f"{number:08d}.npz"

    def _there(self) -> dict[int, list[Path]]:
        """The files of every part."""
        found: dict[int, list[Path]] = {}
        for path in self._parts.glob("[0-9]*.*.npz"):
            found.setdefault(int(path.name.partition(".")[0]), []).append(path)
        return found


def _read(file: Path, name: str) -> np.ndarray:
    with np.load(file) as part:
        values: np.ndarray = part[name]
    return values


def _merge(out: BinaryIO, parts: list[Path], name: str) -> None:
    """An array of all parts, or the offsets of its counts, as the bytes of a `.npy` file."""
    counts, length, last = name in OFFSETS, 0, 0
    for file in parts:
        values = _read(file, name)
        length += len(values)
    kind = np.dtype(np.int64) if counts else values.dtype
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (length + counts,)}
    np.lib.format.write_array_header_1_0(out, header)
    if counts:
        out.write(np.zeros(1, dtype=kind).tobytes())
    for file in parts:
        values = _read(file, name)
        if counts:
            values = offsets(values)[1:] + last
            last = values[-1] if len(values) else last
        out.write(values.astype(kind, copy=False).tobytes())


def write_result(folder: Path, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """A complete result as a new folder.

    Raises:
        FileExistsError: when the folder is there already.
    """
    with files.folder(folder, {**about, "format": FORMAT, "complete": True}) as draft:
        for name, values in arrays.items():
            np.save(draft / f"{name}.npy", values, allow_pickle=False)


def read_result(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays, memory-mapped, and manifest of a complete result, every file checked first.

    Raises:
        DamagedResultError: naming the file that is missing, changed or of another format, or an unfinished run.
    """
    if not read_manifest(folder)["complete"]:
        raise DamagedResultError(f"{folder}: the run is not finished; call again with the same arguments to go on")
    try:
        manifest = files.manifest(folder)
    except DamagedError as error:
        raise DamagedResultError(f"{error}; mine again") from None
    return _mapped(folder, manifest), manifest


def _mapped(folder: Path, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for path in (folder / name for name in manifest["sha256"] if name.endswith(".npy")):
        try:
            arrays[path.stem] = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:  # numpy maps no empty array
            arrays[path.stem] = np.load(path, allow_pickle=False)
    return arrays


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run or a result.

    Raises:
        DamagedResultError: when it cannot be read or is of another format.
    """
    try:
        manifest = files.told(folder)
    except DamagedError as error:
        raise DamagedResultError(f"{error}; is this a mining result?") from None
    if not {"complete", "sha256"} <= manifest.keys():
        raise DamagedResultError(f"{folder}: holds no mining result, but something else; give the folder of one")
    if manifest.get("format") != FORMAT:
        raise DamagedResultError(f"{folder}: format {manifest.get('format')}, this version reads {FORMAT}; mine again")
    return manifest
