"""Finished parts of a run: kept in memory or streamed to a folder, put together at the end, resumed after a stop.

A part holds everything of a run of queries; it is written under another name and renamed, so that a part that is there
is whole. The folder's manifest says which run it belongs to. With several processes each works on every W-th part.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from negbank.files import checksum, sync

FORMAT = 1
MANIFEST = "manifest.json"
Part = dict[str, np.ndarray]
OFFSETS = {"candidate_counts": "candidate_indptr", "pair_counts": "pair_indptr", "counts": "indptr"}
"""Counts a row, which become offsets when parts are put together."""
SUMS = ("rejects",)


class DamagedResultError(ValueError):
    """A saved mining result whose files are missing, changed, or of another format."""


def world() -> tuple[int, int]:
    """This process's rank and the number of processes, as torch.distributed has them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def joined(parts: list[Part]) -> dict[str, np.ndarray]:
    """The parts, in order, as whole arrays; the parts are emptied on the way, so that little is held twice."""
    whole = {}
    for name in list(parts[0]):
        values = [part.pop(name) for part in parts]
        if name in SUMS:
            whole[name] = np.sum(values, axis=0)
        else:
            together = np.concatenate(values)
            whole[OFFSETS.get(name, name)] = offsets(together) if name in OFFSETS else together
    return whole


def offsets(counts: np.ndarray) -> np.ndarray:
    """0 and the running sum of counts."""
    return np.concatenate(([0], np.cumsum(counts)))


def in_memory(numbers: Iterable[int], make: Callable[[int], Part], total: int) -> dict[str, np.ndarray]:
    """All parts, this process's share of which is `numbers`, made and put together in every process."""
    own = {number: make(number) for number in numbers}
    if world()[1] > 1:
        gathered: list[Any] = [None] * world()[1]
        torch.distributed.all_gather_object(gathered, own)
        own = {number: part for share in gathered for number, part in share.items()}
    return joined([own[number] for number in range(total)])


class Folder:
    """A folder that parts are streamed to.

    Args:
        path: the folder; made if missing.
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
            self._parts.parent.mkdir(parents=True, exist_ok=True)
            found = read_manifest(path) if (path / MANIFEST).exists() else None
            if found is None and any(path.iterdir()):
                raise ValueError(f"out={path}: the folder holds other files; give a new or empty one")
            if found is None:
                found = {"format": FORMAT, "complete": False, "run": run, "part_queries": part_queries}
                if world()[0] == 0:
                    _write_json(path / MANIFEST, found)
            self.manifest = found
            self.complete = bool(found["complete"])
            if not self.complete:
                self._parts.mkdir(exist_ok=True)
                probe = self._parts / f"probe-{world()[0]}"
                probe.write_bytes(b"")
                probe.unlink()
        except OSError as error:
            raise type(error)(f"out={path}: cannot be written ({error}); choose another folder") from None
        different = [key for key in run if found["run"].get(key) != run[key]]
        if different:
            told = ", ".join(f"{key}={found['run'].get(key)!r} there, {run[key]!r} here" for key in different[:3])
            raise ValueError(f"out={path}: the folder holds another run ({told}); give a new folder to keep both")
        self.part_queries = int(found["part_queries"])

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Those of the numbers whose part is not there yet."""
        return [number for number in numbers if not self._file(number).exists()]

    def put(self, number: int, part: Part) -> None:
        """Write a part, whole or not at all."""
        draft = self._parts / f"{number:08d}.{world()[0]}.tmp"
        with draft.open("wb") as file:
            np.savez(file, **part)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self._file(number))

    def finish(self, total: int, constant: dict[str, np.ndarray], manifest: dict[str, Any]) -> None:
        """Put all parts together into one `.npy` an array, then the manifest, then remove the parts."""
        files = [self._file(number) for number in range(total)]
        arrays, sums = _merge(files, self.path)
        for name, values in constant.items():
            _write_array(self.path / f"{name}.npy", values)
            arrays.append(name)
        write_manifest(self.path, {**self.manifest, **manifest, **sums}, arrays)
        shutil.rmtree(self._parts)

    def _file(self, number: int) -> Path:
        return self._parts / f"{number:08d}.npz"


def _merge(files: list[Path], folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Every array of the parts, one after the other, written part by part; names of the arrays, and what is summed."""
    with np.load(files[0]) as part:
        names = list(part.files)
        types = {name: part[name].dtype for name in names}
    sums = {name: _sum_of(files, name) for name in names if name in SUMS}
    names = [name for name in names if name not in SUMS]
    for name in names:
        sizes = [_length(file, name) for file in files]
        counts = name in OFFSETS
        out = np.lib.format.open_memmap(
            folder / f"{OFFSETS.get(name, name)}.npy.tmp",
            mode="w+",
            dtype=np.int64 if counts else types[name],
            shape=(sum(sizes) + counts,),
        ) if sum(sizes) + counts else np.zeros(0, dtype=types[name])  # fmt: skip
        at = 0
        for file, size in zip(files, sizes):
            with np.load(file) as part:
                values = part[name]
            if counts:
                out[at + 1 : at + size + 1] = np.cumsum(values) + out[at]
            else:
                out[at : at + size] = values
            at += size
        path = folder / f"{OFFSETS.get(name, name)}.npy"
        if isinstance(out, np.memmap):
            out.flush()
            del out
            path.with_suffix(".npy.tmp").rename(path)
        else:
            _write_array(path, out)
    return [OFFSETS.get(name, name) for name in names], sums


def _length(file: Path, name: str) -> int:
    with np.load(file) as part:
        return len(part[name])


def _sum_of(files: list[Path], name: str) -> list[int]:
    total: Any = 0
    for file in files:
        with np.load(file) as part:
            total = total + part[name]
    return [int(value) for value in total]


def _write_array(path: Path, values: np.ndarray) -> None:
    draft = path.with_suffix(".npy.tmp")
    with draft.open("wb") as file:
        np.save(file, values, allow_pickle=False)
    draft.rename(path)


def write_manifest(folder: Path, manifest: dict[str, Any], arrays: Iterable[str]) -> None:
    """The manifest of a complete result, with the checksum of every array."""
    sums = {f"{name}.npy": checksum(folder / f"{name}.npy") for name in arrays}
    _write_json(folder / MANIFEST, {**manifest, "format": FORMAT, "complete": True, "sha256": sums})


def write_result(folder: Path, arrays: dict[str, np.ndarray], manifest: dict[str, Any]) -> None:
    """A complete result as a new folder, made under another name and renamed.

    Raises:
        FileExistsError: when the folder is there already.
    """
    if folder.exists():
        raise FileExistsError(f"folder={folder} exists; save under another name")
    draft = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for name, values in arrays.items():
        np.save(draft / f"{name}.npy", values, allow_pickle=False)
    write_manifest(draft, manifest, arrays)
    for file in (*draft.iterdir(), draft):
        sync(file)
    draft.rename(folder)


def read_result(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays, memory-mapped, and manifest of a complete result, every file checked first.

    Raises:
        DamagedResultError: naming the file that is missing, changed or of another format, or an unfinished run.
    """
    manifest = read_manifest(folder)
    if not manifest["complete"]:
        raise DamagedResultError(f"{folder}: the run is not finished; call again with the same arguments to go on")
    arrays = {}
    for name, digest in manifest["sha256"].items():
        path = folder / name
        if not path.is_file() or checksum(path) != digest:
            raise DamagedResultError(f"{path}: missing or changed since it was written; mine again")
        try:
            arrays[path.stem] = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:  # numpy maps no empty array
            arrays[path.stem] = np.load(path, allow_pickle=False)
    return arrays, manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run or a result.

    Raises:
        DamagedResultError: when it cannot be read or is of another format.
    """
    try:
        manifest: dict[str, Any] = dict(json.loads((folder / MANIFEST).read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise DamagedResultError(f"{folder / MANIFEST}: not readable ({error}); is this a mining result?") from None
    if manifest.get("format") != FORMAT or "complete" not in manifest:
        raise DamagedResultError(f"{folder}: format {manifest.get('format')}, this version reads {FORMAT}; mine again")
    return manifest


def _write_json(path: Path, values: dict[str, Any]) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(values, indent=1))
    draft.rename(path)
