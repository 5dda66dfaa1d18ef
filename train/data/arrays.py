"""Arrays of a file: .npy, .npz, .safetensors and .pt, and the one place where their readers' errors get a sentence.

A file is regular, or it is not opened; one that packs its arrays declares no more than the machine has memory for; and
whatever its library raises, be it `BadZipFile`, `SafetensorError` or `MemoryError`, becomes a ValueError with a remedy.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from negbank.remedies import opened

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""What tensors can be indexed in; other numbers are read as float32 or int64."""


def read(path: str, key: str | None = None) -> Tensor | np.ndarray:
    """The numbers of a file: of an .npy a mapped array, else a tensor, floating or integer.

    Args:
        key: name of the array, in a file of several.

    Raises:
        ValueError: saying what the file is instead, or what its system says of it.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in READERS:
        raise ValueError(f"ends in {suffix or 'nothing'}; expected .npy, .npz, .safetensors or .pt")
    problem = ""
    try:
        with opened(Path(path)) as file:
            declared = _declared(file) if suffix != ".safetensors" else 0
        found = None
        if declared > memory():
            problem = (
                f"declares {declared} bytes, more than this machine has memory for; save an .npy, read where it lies"
            )
        else:
            found = READERS[suffix](path)
        if isinstance(found, Mapping):
            problem = _misfit(found, key, suffix)
            found = None if problem else found[next(iter(found)) if key is None else key]
    except OSError as error:
        raise ValueError(f"{error.strerror or error}") from None
    except Exception as error:  # numpy, zip, pickle, torch and safetensors have each their own for other bytes
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"not readable ({type(error).__name__}: {reason}); {REMEDY}") from error
    if problem:
        raise ValueError(problem)
    return _numbers(found)


def _misfit(found: Mapping[str, Any], key: str | None, suffix: str) -> str:
    """Why a file of named arrays does not give one."""
    names = ", ".join(sorted(map(str, found))[:20]) or "no array"
    if suffix == ".npy":
        return "an archive of arrays; name it .npz, or give an .npy file"
    if key is None:
        return "" if len(found) == 1 else f"holds {names}; choose one by key"
    return "" if key in found else f"key={key} is not in it; it holds {names}"


def _safetensors(path: str) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _torch(path: str) -> Any:
    """Mapped where torch can do it: not in its format before 1.6."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


READERS: Mapping[str, Callable[[str], Any]] = {
    ".npy": lambda path: np.load(path, mmap_mode="r", allow_pickle=False),
    ".npz": lambda path: np.load(path, allow_pickle=False),
    ".safetensors": _safetensors,
    ".pt": _torch,
    ".pth": _torch,
}
REMEDY = "save the array again, as numpy.save, numpy.savez, safetensors or torch.save writes it"


def _declared(file: Any) -> int:
    """Bytes that the members of a zip say they have; 0 of what is none."""
    if not zipfile.is_zipfile(file):
        return 0
    with zipfile.ZipFile(file) as archive:
        return sum(member.file_size for member in archive.infolist())


def memory() -> int:
    """Bytes of memory of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # a system that does not say
        return 1 << 62


def _numbers(found: Any) -> Tensor | np.ndarray:
    """What was found, if it is numbers that lie side by side, in a type that can be indexed."""
    if isinstance(found, np.ndarray):
        if found.dtype.kind not in "fiu":
            raise ValueError(f"holds {found.dtype}; expected floating or integer numbers")
        if found.dtype.kind == "u" and found.dtype.itemsize == 8 and found.size and found.max() >= 2**63:
            raise ValueError(f"holds {found.max()}; expected whole numbers below 2**63")
        return found
    if not isinstance(found, Tensor):
        raise ValueError(f"holds a {type(found).__name__}; expected a tensor")
    if found.layout != torch.strided or found.is_quantized or found.is_nested or found.is_meta:
        raise ValueError("holds a sparse, quantized, nested or empty (meta) tensor; save it after to_dense(), or alike")
    if found.is_complex() or found.dtype == torch.bool:
        raise ValueError(f"holds {found.dtype}; expected floating or integer numbers")
    if found.dtype == torch.uint64 and found.numel() and int(found.view(torch.int64).min()) < 0:
        raise ValueError("holds a whole number of 2**63 or more; expected smaller ones")
    found = found.detach()
    if found.dtype in (*FLOATS, *WHOLE):
        return found
    return found.to(torch.float32 if found.is_floating_point() else torch.int64)


def read_labels(path: str, name: str = "labels") -> Tensor:
    """The integers (N,) of an .npy file, as int64; errors call it by the option's `name`.

    Raises:
        ValueError: for a file that is none, or of anything else.
    """
    remedy = "give an .npy file of integer labels (N,), as numpy.save writes it"
    try:
        if Path(path).suffix.lower() != ".npy":
            raise ValueError(f"ends in {Path(path).suffix or 'nothing'}")
        found = read(path)
    except ValueError as error:
        raise ValueError(f"{name}={path}: {error}; {remedy}") from None
    if found.dtype.kind not in "iu" or found.ndim != 1:  # type: ignore[union-attr]
        raise ValueError(f"{name}={path}: holds {found.dtype} of shape {tuple(found.shape)}; {remedy}")
    return torch.from_numpy(np.asarray(found).astype(np.int64))
