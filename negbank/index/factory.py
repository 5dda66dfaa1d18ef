"""Faiss factory strings: what "auto" stands for, and whether an index can be built, known before there are rows."""

from __future__ import annotations

import math
from typing import Any

import faiss
import numpy as np
import torch

EXACT_BELOW = {"cpu": 10_000, "cuda": 1_000_000}
"""Rows below which `auto` searches exactly."""
TRIED = 4096
"""Rows up to which a training is tried before there are any: more are enough for any quantizer in use."""


def choose_factory(rows: int, dim: int, device: torch.device) -> str:
    """The factory string `auto` stands for: exact while that is cheap, then an IVF with about 4√N lists.

    Rows are stored as float16 once float32 lists would pass 4 GiB.
    """
    if rows < EXACT_BELOW["cuda" if device.type == "cuda" else "cpu"]:
        return "Flat"
    lists = max(1, min(round(4 * math.sqrt(rows)), rows // 39))
    return f"IVF{lists},{'Flat' if rows * dim * 4 <= 4 << 30 else 'SQfp16'}"


def empty_index(factory: str, dim: int) -> faiss.Index:
    """What a Faiss factory string names, for rows of `dim`, untrained; "auto" and "exact" are none.

    Raises:
        ValueError: for a string that Faiss refuses.
    """
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise ValueError(
            f"factory={factory!r}: Faiss refuses this index ({reason}); take auto, exact, or one such as IVF1024,Flat"
        ) from None


def require_trainable(factory: str, rows: int, dim: int) -> None:
    """Find out before there are rows whether an index can be built over so many of them.

    Raises:
        ValueError: for a string that Faiss refuses, more lists than rows, or, of few rows, whatever its training says
            when it is tried on random ones.
    """
    if factory in ("auto", "exact"):
        return
    index = empty_index(factory, dim)
    require_lists(factory, faiss.try_extract_index_ivf(index), rows)
    if rows > TRIED:
        return
    _hasten(index)
    x = np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    try:
        index.train(x)
        index.add(x[:1])
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].rpartition("failed: ")[2]
        raise ValueError(
            f"factory={factory!r}: Faiss cannot build it over {rows} rows of width {dim} ({reason}); take auto, exact, "
            f"or one with fewer centroids, such as IVF{max(1, rows // 39)},Flat"
        ) from None


def _hasten(index: Any) -> None:
    """Let a training whose result nobody needs take one iteration instead of dozens."""
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        ivf.cp.niter = 1
    if isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain
        for position in range(chain.size()):
            transform = faiss.downcast_VectorTransform(chain.at(position))
            if isinstance(transform, faiss.OPQMatrix):
                transform.niter = transform.niter_pq = transform.niter_pq_0 = 1
        index = faiss.downcast_index(index.index)
    holders: list[Any] = [index] if ivf is None else [index, faiss.downcast_index(ivf)]
    for holder in holders:
        if hasattr(holder, "pq"):
            holder.pq.cp.niter = 1
        if hasattr(holder, "do_polysemous_training"):
            holder.do_polysemous_training = False


def require_lists(factory: str, ivf: Any, rows: int) -> None:
    if ivf is not None and ivf.nlist > rows:
        most = rows // 39 or 1
        raise ValueError(f"factory={factory!r}: {ivf.nlist} lists for {rows} rows; use at most {most}")
