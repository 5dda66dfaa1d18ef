"""Faiss on a CUDA device: what moves there, what stays, and device tensors searched where they lie.

    moved      every index that Faiss has a GPU form of, also behind a transform (OPQ, PCA)
    stays      what has none, what is searched in more lists than a GPU kernel takes, and all where Faiss is faiss-cpu;
               said in a warning
    no memory  an error: a search on the CPU instead would be a hundred times slower without a word

Faiss works on the stream that torch works on, so that neither has to wait for the other.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import faiss
import torch
from torch import Tensor

TEMP_MEMORY = 64 << 20
"""Bytes of scratch memory, instead of Faiss's 1.5 GiB."""
MOST = 2048
"""Where its kernels end: the largest k, and nprobe."""


def available() -> bool:
    """Whether this Faiss was built with its GPU part; faiss-cpu, the only one there is for aarch64, was not."""
    return all(hasattr(faiss, name) for name in ("StandardGpuResources", "GpuIndex", "GpuDistanceParams"))


def placed(index: Any) -> bool:
    """Whether an index, or what is behind its transforms, is on a GPU."""
    return available() and isinstance(_behind(index), faiss.GpuIndex)


def lists_of(index: Any) -> Any:
    """The part of an index that has `nlist` and `nprobe`, on the CPU or a GPU; None where it has no lists."""
    kinds = (faiss.IndexIVF, faiss.GpuIndexIVF) if available() else faiss.IndexIVF
    found = _behind(index)
    return found if isinstance(found, kinds) else None


def to_gpu(index: Any, device: torch.device) -> Any:
    """The index on a CUDA device, or where it has to stay (see above) as it is.

    Raises:
        RuntimeError: when the device has no room for it.
    """
    if device.type != "cuda":
        return index
    lists = lists_of(index)
    probes = None if lists is None else lists.nprobe
    if not available():
        return _stays(index, "this Faiss has no GPU part; install faiss-gpu")
    if probes is not None and probes > MOST:
        return _stays(index, f"nprobe {probes} is above the {MOST} that a GPU searches; take fewer lists")
    try:
        moved = faiss.index_cpu_to_gpu(_resources(device), _number(device), index)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        if any(word in str(error).lower() for word in ("alloc", "out of memory", "cudaerrormemory")):
            raise RuntimeError(
                f"{device}: no room for an index of {index.ntotal} rows of width {index.d} ({reason}); take an "
                f"index.factory of smaller codes, such as IVF1024,SQ8, or run.device=cpu"
            ) from error
        return _stays(index, f"Faiss has no GPU form of it ({reason})")
    if not placed(moved):
        return _stays(index, "Faiss has no GPU form of it")
    if probes is not None:
        lists_of(moved).nprobe = probes
    return moved


def to_cpu(index: Any) -> Any:
    """The index where it can be written to a file."""
    return faiss.index_gpu_to_cpu(index) if placed(index) else index


def search(index: Any, queries: Tensor, k: int) -> Tensor:
    """Positions (B, k) on the queries' device, for k ≤ `MOST`, −1 where an index on a GPU found fewer."""
    if not isinstance(faiss.downcast_index(index), faiss.GpuIndex):  # behind a transform, which is done on the CPU
        _resources(queries.device)
        return torch.from_numpy(index.search(queries.cpu().numpy(), k)[1]).to(queries.device)
    ids, scores = _empty(queries, k)
    _resources(queries.device)
    index.search_c(len(queries), _floats(queries), k, _floats(scores), faiss.cast_integer_to_idx_t_ptr(ids.data_ptr()))
    return ids


def knn(queries: Tensor, rows: Tensor, k: int) -> Tensor:
    """`faiss.knn_gpu` on device tensors through their addresses; `contrib.torch_utils` would patch every index."""
    ids, scores = _empty(queries, k)
    p = faiss.GpuDistanceParams()
    p.metric, p.k, p.dims, p.device = faiss.METRIC_INNER_PRODUCT, k, rows.shape[1], _number(rows.device)
    p.vectors, p.numVectors = _floats(rows), len(rows)
    p.queries, p.numQueries = _floats(queries), len(queries)
    p.vectorType = p.queryType = faiss.DistanceDataType_F32
    p.vectorsRowMajor = p.queriesRowMajor = True
    p.outDistances = _floats(scores)
    p.outIndices, p.outIndicesType = faiss.cast_integer_to_idx_t_ptr(ids.data_ptr()), faiss.IndicesDataType_I64
    faiss.bfKnn(_resources(rows.device), p)
    return ids


def _behind(index: Any) -> Any:
    """What the transforms of an index, if it has any, hand their results to."""
    found = faiss.downcast_index(index)
    return _behind(found.index) if isinstance(found, faiss.IndexPreTransform) else found


def _stays(index: Any, reason: str) -> Any:
    warnings.warn(f"{type(_behind(index)).__name__} is searched on the CPU: {reason}", RuntimeWarning, stacklevel=3)
    return index


def _empty(queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    device = queries.device
    return torch.empty(len(queries), k, dtype=torch.int64, device=device), torch.empty(len(queries), k, device=device)


def _floats(tensor: Tensor) -> Any:
    return faiss.cast_integer_to_float_ptr(tensor.data_ptr())


def _number(device: torch.device) -> int:
    """Which CUDA device: the current one where the name does not say."""
    return torch.cuda.current_device() if device.index is None else device.index


def _resources(device: torch.device) -> Any:
    """The resources of a device, on torch's current stream."""
    number = _number(device)
    resources, stream = _made(number), torch.cuda.current_stream(number).cuda_stream
    library: Any = faiss  # whose type stubs are of faiss-cpu
    resources.setDefaultStream(number, library.cast_integer_to_cudastream_t(stream))
    return resources


@functools.cache
def _made(number: int) -> Any:
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(TEMP_MEMORY)
    return resources
