"""Where a truth and banks that lag behind it come from: a file of embeddings, or two snapshots of a run."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from negbank import Snapshot
from negbank.bounds import Annotated, Gt, Le, checked
from negbank.files import MANIFEST
from negbank.index.factory import require_trainable
from negbank.train.data.arrays import read

MIN_ROWS = 8
CLOSE = 1e-3
"""How far a bank's mean cosine may be from the one that was asked for."""


class Source(NamedTuple):
    """What is ablated.

    what: as the report calls it.
    truth: (N, D) float64 unit rows.
    levels: name → bank, one a level of staleness, built when it is called.
    inputs: path → sha256 of everything that was read.
    """

    what: str
    truth: Tensor
    levels: Mapping[str, Callable[[], Snapshot]]
    inputs: Mapping[str, str]


@checked
def npy(
    *,
    path: str,
    cosines: tuple[Annotated[float, Gt(0), Le(1)], ...] = (0.99, 0.97, 0.9, 0.77),
    factory: str = "auto",
    target_recall: Annotated[float, Gt(0), Le(1)] = 0.95,
    seed: int,
) -> Source:
    """An .npy file of embeddings as the truth; the bank is a copy of it, moved by Gaussian noise.

    Args:
        path: the .npy file, floating point (N, D); rows are normalised.
        cosines: mean cosines of the banks to the truth.
        factory: of the banks' index: auto, exact, or a Faiss factory string such as IVF1024,Flat.
        target_recall: recall that an approximate index is tuned to.
        seed: of the noise and the index.

    Raises:
        ValueError: for a file that is missing or no floating-point (N, D) array, rows that hold NaN or infinity or are
            zero, fewer than 8 rows, or a mean cosine that no noise reaches.
    """
    try:
        array = read(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; give an .npy file of embeddings (N, D)") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{path}: {array.dtype} of shape {tuple(array.shape)}, expected floating point (N, D)")
    require_trainable(factory, *array.shape)
    truth = unit(torch.from_numpy(np.array(array, dtype=np.float64)), str(path))
    for cosine in cosines:  # before any work
        noise_size(truth, _noise(truth, seed), cosine)

    def bank(cosine: float) -> Snapshot:
        rows = moved(truth, cosine, seed=seed)
        return Snapshot.build(rows, factory=factory, target_recall=target_recall, seed=seed)

    levels = {f"cosine {cosine}": functools.partial(bank, cosine) for cosine in cosines}
    digest = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    return Source(Path(path).name, truth, levels, {str(path): digest})


def snapshots(*, bank: str, truth: str) -> Source:
    """Two snapshots of one run: the older as the bank, the newer as the truth.

    Args:
        bank: folder of the older snapshot, such as RUN_DIR/checkpoints/step_00000500/snapshot.
        truth: folder of the newer snapshot, which has every row written.

    Raises:
        ValueError: for a folder that is missing, snapshots of different shape, a truth that is not the newer one or has
            rows never written, or fewer than 8 rows.
        DamagedError: for a folder that is no whole snapshot.
    """
    for path in (bank, truth):
        if not Path(path).is_dir():
            raise ValueError(f"{path}: no such folder; give one that holds a {MANIFEST}, as Snapshot.save writes it")
    old, new = Snapshot.load(bank), Snapshot.load(truth)
    if old.vectors.shape != new.vectors.shape:
        raise ValueError(
            f"{truth}: of shape {tuple(new.vectors.shape)}, and {bank} of {tuple(old.vectors.shape)}; "
            f"give two snapshots of one run"
        )
    if new.step <= old.step:
        raise ValueError(
            f"{truth}: of step {new.step}, not newer than {bank} of step {old.step}; give the newer one as the truth"
        )
    if new.rows is not None:
        raise ValueError(
            f"{truth}: only {len(new.rows)} of its {len(new)} rows were ever written; give a snapshot of a later step"
        )
    inputs = {str(p): hashlib.sha256((Path(p) / MANIFEST).read_bytes()).hexdigest() for p in (bank, truth)}
    level = f"step {old.step} seen from {new.step}"
    return Source("this run", unit(new.vectors.double(), str(truth)), {level: lambda: old}, inputs)


def unit(vectors: Tensor, what: str) -> Tensor:
    """Rows (N, D) scaled to length 1, in their dtype.

    Raises:
        ValueError: for fewer than 8 rows or 2 columns, or rows that are not finite or zero, named.
    """
    if vectors.ndim != 2 or len(vectors) < MIN_ROWS or vectors.shape[1] < 2:
        raise ValueError(f"{what}: shape {tuple(vectors.shape)}, expected (N, D) with N ≥ {MIN_ROWS} and D ≥ 2")
    for bad, words in ((~vectors.isfinite().all(1), "hold NaN or infinity"), ((vectors == 0).all(1), "are all zero")):
        rows = bad.nonzero().flatten().tolist()
        if rows:
            raise ValueError(f"{what}: {len(rows)} row(s) {words}, the first at {rows[:8]}; leave them out")
    return torch.nn.functional.normalize(vectors, dim=1)


def moved(z: Tensor, cosine: float, *, seed: int) -> Tensor:
    """Unit rows z (N, D), moved by Gaussian noise to mean cosine `cosine` with themselves: unit rows (N, D).

    The noise of a seed has the same directions at every cosine: levels of staleness are compared like with like.
    """
    noise = _noise(z, seed)
    return torch.nn.functional.normalize(noise.mul_(noise_size(z, noise, cosine)).add_(z), dim=1)


def _noise(z: Tensor, seed: int) -> Tensor:
    return torch.randn(z.shape, generator=torch.Generator().manual_seed(seed), dtype=z.dtype)


def noise_size(z: Tensor, noise: Tensor, cosine: float) -> float:
    """The σ for which z + σ noise is at mean cosine `cosine` to unit rows z (N, D), by bisection.

    With a = z·n and b = |n|² of a row, cos(z, z + σn) = (1 + σa) / √(1 + 2σa + σ²b).

    Raises:
        ValueError: for a cosine that no σ reaches.
    """
    a, b = (z * noise).sum(1), noise.square().sum(1)

    def mean(sigma: float) -> float:
        return float(((1 + sigma * a) / (1 + 2 * sigma * a + sigma**2 * b).sqrt()).mean())

    low, high = 0.0, 1.0
    while mean(high) > cosine and high < 1e6:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) > cosine else (low, middle)
    if abs(mean(high) - cosine) > CLOSE:
        raise ValueError(f"cosine={cosine}: noise moves these rows to {mean(high):.4f} at most; ask for more than that")
    return high
