"""Vectors, ids, labels and links in whatever people hold them: each read in one documented way, or refused by name.

    rows    floating point (N, D), in one piece or as shards          `as_rows`
    ids     N integers of 64 bits with a sign, or N strings           `as_ids`
    labels  ids, of which a negative integer is no label              `as_labels`
    links   which of N rows belongs with which, of M                  `as_links`, links.py

Mining, `Exclusions` and the command line ask nobody else, so that a container means the same everywhere. Nothing is
guessed: what could be read in two ways, and what a cast would change, is refused with what to give instead.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Shard = np.ndarray | Tensor
NO_GROUP = -1
"""Label of a row that shares a group with no row."""
OTHERS = {
    ".npz": "an archive", ".pt": "a torch file", ".pth": "a torch file", ".safetensors": "safetensors",
    ".parquet": "a table", ".arrow": "a table", ".csv": "a table", ".tsv": "a table", ".jsonl": "a table",
    ".faiss": "a Faiss index", ".gz": "compressed", ".zst": "compressed", ".pkl": "a pickle", ".json": "JSON",
}  # fmt: skip
"""Endings of files that hold vectors elsewhere."""


def as_rows(source: Any, name: str) -> list[Shard]:
    """The shards, one for most sources, of floating-point rows (n, D); arrays as they are, `.npy` files mapped.

    Args:
        source: an array, tensor or data frame (N, D); a list of N rows; the path of an `.npy` file, or of a folder of
            them, in the order of the numbers in their names; for shards, a tuple of arrays or paths, or a list of paths
            or maps. A list of (n, D) arrays in memory is refused: encoders that give a token a vector return these.

    Raises:
        ValueError: naming what was given and what to give instead.
        FileNotFoundError: for a path that does not exist.
    """
    if isinstance(source, str | Path):
        return _files(Path(source), name)
    if isinstance(source, Tensor) and source.layout is torch.strided:
        return [_floating(source.detach(), name)]
    table = columns_of(source)
    if table is not None:
        columns = {each: plain(column, f"{name}, column {each!r}") for each, column in table.items()}
        others = [each for each, column in columns.items() if column.dtype.kind != "f" or column.ndim != 1]
        if others or not columns:
            raise ValueError(f"{name}: columns {others[:4]} of a table hold no floating numbers; leave them out")
        return [np.stack(list(columns.values()), axis=1)]
    if not isinstance(source, list | tuple):
        found = plain(source, name, keep=True)
        nested = found.dtype.kind == "O" and found.ndim == 1
        return as_rows(list(found), name) if nested else [_floating(found, name)]
    if not len(source):
        raise ValueError(f"{name}: an empty {type(source).__name__}; there is nothing to mine from")
    given = [each if isinstance(each, str | Path | Tensor) else plain(each, name, keep=True) for each in source]
    paths = [isinstance(each, str | Path) for each in given]
    widths = {tuple(each.shape) for each in given if not isinstance(each, str | Path)}
    if widths and not any(paths) and all(len(shape) == 1 for shape in widths):
        if len(widths) > 1:
            raise ValueError(f"{name}: rows of shapes {sorted(widths)[:4]}; embed all with one model")
        tensors = [each for each in given if isinstance(each, Tensor)]
        whole = torch.stack(tensors) if len(tensors) == len(given) else np.stack([plain(each, name) for each in given])
        return as_rows(whole, name)
    mapped = [path or isinstance(each, np.memmap) for path, each in zip(paths, given)]
    if isinstance(source, list) and not all(mapped):
        raise ValueError(
            f"{name}: a list of {len(given)} arrays of shapes {sorted(widths)[:4]}: is each a shard, or the vectors of "
            f"one text? For shards give a tuple; for single rows np.concatenate; several vectors a row are not offered"
        )
    return [part for number, each in enumerate(given) for part in as_rows(each, f"{name}, shard {number}")]


def as_tensor(part: Shard) -> Tensor:
    """The rows as a tensor; copied where torch could not read them in place without a warning or at all."""
    if isinstance(part, Tensor):
        return part
    native = part.dtype.newbyteorder("=")
    kind = native if native in (np.float16, np.float32, np.float64) else np.dtype(np.float64)
    if part.dtype == kind and part.flags.writeable and all(stride >= 0 for stride in part.strides):
        return torch.from_numpy(np.asarray(part))
    return torch.from_numpy(np.array(part, dtype=kind, order="C"))


def plain(values: Any, name: str, *, keep: bool = False) -> np.ndarray:
    """What holds an array, as a numpy array of the same shape and type, its memory shared where it can be.

    Args:
        keep: a memory map stays one.

    Raises:
        ValueError: for what is masked, sparse, of rows that differ in length, or no array at all.
    """
    kind = f"{type(values).__module__.partition('.')[0]}.{type(values).__name__}".removeprefix("builtins.")
    if isinstance(values, Tensor) and values.layout is torch.strided:
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if isinstance(values, Tensor) or hasattr(values, "tocoo"):
        raise ValueError(f"{name}: {kind} is sparse; give a dense array, such as {name}.toarray()")
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.getmaskarray(values).any():
            raise ValueError(f"{name}: {np.ma.count_masked(values)} masked value(s); drop these rows, or fill them")
        values = values.data
    if isinstance(values, np.ndarray):
        return values if keep and isinstance(values, np.memmap) else np.asarray(values)
    if isinstance(values, str | bytes | Mapping | set) or not (
        hasattr(values, "__array__") or (hasattr(values, "__len__") and hasattr(values, "__getitem__"))
    ):
        raise ValueError(f"{name}: {kind}, expected an array, a tensor, a list or a column; np.asarray may make one")
    try:
        found = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {kind} is no array ({error}); give rows of one length") from None
    if found.dtype.kind == "O" and found.size and isinstance(found.flat[0], Mapping):
        raise ValueError(f"{name}: {kind} is a table; give one of its columns")
    return found


def as_ids(values: Any, name: str) -> np.ndarray:
    """Ids (n,) as int64 or as strings (dtype U).

    Raises:
        ValueError: for another shape, and for floats, booleans, missing values, types that are mixed, and integers of
            2⁶³ or more, which no cast would keep.
    """
    array = values if isinstance(values, list | tuple) else plain(values, name)
    if isinstance(array, np.ndarray):
        if array.ndim != 1:
            raise ValueError(f"{name}: shape {array.shape}, expected (n,), one id a row")
        if array.dtype.kind in "iu":
            if array.dtype.kind == "u" and array.size and int(array.max()) >= 2**63:
                raise ValueError(f"{name}: {int(array.max())} does not fit 64 bits with a sign; give ids as strings")
            return array.astype(np.int64, copy=False)
        if array.dtype.kind == "U":
            return array
        if array.size == 0:
            return np.zeros(0, dtype=np.int64)
        if array.dtype.kind not in "OT":
            raise ValueError(f"{name}: ids of type {array.dtype}; expected integers or strings")
        array = array.tolist()
    return _ids_of(list(array), name)


def as_labels(values: Any, name: str) -> tuple[np.ndarray, ...]:
    """Labels of rows, or of a tuple of several sets of rows: int64, `NO_GROUP` for a negative integer.

    Strings are numbered together. Raises ValueError as `as_ids`, and for integers beside strings.
    """
    several = values if isinstance(values, tuple) and values and all(dimensions(v) == 1 for v in values) else (values,)
    found = [as_ids(each, name) for each in several]
    if all(each.dtype.kind == "i" for each in found):
        return tuple(np.maximum(each, NO_GROUP) for each in found)
    if any(each.dtype.kind == "i" and len(each) for each in found):
        raise ValueError(f"{name}: integers and strings mixed; give labels of one type")
    codes = np.unique(np.concatenate([each.astype(str) for each in found]), return_inverse=True)[1]
    return tuple(np.split(codes, np.cumsum([len(each) for each in found])[:-1]))


def dimensions(values: Any) -> int:
    """Of an array; 1 for a list and anything else with a length, 0 for a number or a string."""
    found: int = getattr(values, "ndim", int(hasattr(values, "__len__") and not isinstance(values, str)))
    return found


def columns_of(table: Any) -> dict[str, Any] | None:
    """The columns by name of a data frame, an Arrow table or a data set; None for what is none."""
    names = getattr(table, "column_names", getattr(table, "columns", None))
    if names is None or callable(names) or isinstance(table, Mapping):
        return None
    return {name: table[name] for name in names}


def _ids_of(values: list[Any], name: str) -> np.ndarray:
    if not values:
        return np.zeros(0, dtype=np.int64)
    if all(isinstance(v, str) for v in values):
        cut = [v for v in values if v.endswith("\0")]
        if cut:
            raise ValueError(f"{name}: {cut[0]!r} ends in a NUL, which an array of strings drops; rename it")
        return np.array(values, dtype=str)
    names = any(isinstance(v, str) for v in values)
    if names and all(isinstance(v, str | int | np.integer) for v in values):
        raise ValueError(f"{name}: integers and strings mixed; give ids of one type")
    for place, v in enumerate(values):
        if isinstance(v, bool | np.bool_) or not (hasattr(v, "__index__") or (names and isinstance(v, str))):
            kind = f"ids of type {type(v).__name__}"
            raise ValueError(f"{name}: {v!r} at place {place}: {kind}; expected integers or strings, one a row")
    try:
        return np.array([operator.index(v) for v in values], dtype=np.int64)
    except OverflowError:
        worst = max(values, key=abs)
        raise ValueError(f"{name}: {worst} does not fit 64 bits with a sign; give ids as strings") from None
    except TypeError as error:
        raise ValueError(f"{name}: {error}; expected integers or strings, one a row") from None


def _files(path: Path, name: str) -> list[Shard]:
    where = f"{name}={path}"
    if path.is_dir():
        found = sorted(path.glob("*.npy"), key=lambda f: (by_number(f.name), f.name))
        others = sorted(f.name for f in path.iterdir() if f.suffix in OTHERS and f.suffix not in (".json", ".jsonl"))
        if not found or others:
            also = f" but {', '.join(others[:3])}, which are not read here" if others else ""
            raise ValueError(
                f"{where}: the folder holds {'' if found else 'no '}.npy files{also}; save shards by np.save"
            )
        return [part for file in found for part in _files(file, name)]
    if not path.exists():
        raise FileNotFoundError(f"{where}: no such file or folder")
    if not path.is_file():
        raise ValueError(f"{where}: neither a file nor a folder; give the path of an .npy file")
    if path.suffix in OTHERS:
        raise ValueError(f"{where}: {OTHERS[path.suffix]}, which is not read here; save the rows by np.save as .npy")
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{where}: no complete .npy file ({error}); write this shard again") from None
    if not isinstance(mapped, np.ndarray):
        raise ValueError(f"{where}: no complete .npy file (a {type(mapped).__name__}); write this shard again")
    return [_floating(mapped, where)]


def by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts names by the numbers in them: 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _floating(part: Shard, where: str) -> Shard:
    floating = part.dtype.is_floating_point if isinstance(part, Tensor) else part.dtype.kind == "f"
    if part.ndim == 2 and floating:
        return part
    hint = {0: "a number", 1: "one row is x[None]", 2: "cast them"}.get(
        part.ndim, "several vectors a row are not offered"
    )
    raise ValueError(
        f"{where}: {part.dtype} of shape {tuple(part.shape)}, expected floating point (N, D) embeddings ({hint})"
    )
