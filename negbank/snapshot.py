"""One frozen version of the bank with its index: what proposals, batch samplers and the miner read.

A snapshot never changes. A refresh builds the next one beside it and swaps one reference, so that every draw and every
density of a step comes from the same version. It is saved and loaded whole, with a checksum over every file.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from negbank import files
from negbank.arrays import as_rows, as_tensor
from negbank.bank import require_finite, unit_rows
from negbank.exclusions import Exclusions
from negbank.index import Cells, ExactIndex, FaissIndex, Index
from negbank.index.faiss import kmeans_cells

FORMAT = 1
REMEDY = "rebuild it from the embeddings; a damaged index would return wrong rows without a word"


class DamagedSnapshotError(files.DamagedError):
    """A saved snapshot whose files are missing, changed, or of another format; it must not be searched."""


class Snapshot:
    """Frozen unit rows, an index over those that were ever written, and when they were taken.

    Attributes:
        vectors: (N, D) float32 unit rows; a row never written is zero.
        index: the index over `rows`.
        rows: (n,) ascending ids of the indexed rows, or None when all N are.
        positives: (N, D) unit rows of each row's positive view, or None.
        step: the optimiser step the rows were taken at.
        version: counts the snapshots of one run from 0.
        fingerprint: what tells the model that made the rows, or None.
    """

    def __init__(
        self,
        vectors: Tensor,
        index: Index,
        *,
        rows: Tensor | None,
        positives: Tensor | None,
        step: int,
        version: int,
        fingerprint: str | None = None,
    ) -> None:
        self.vectors, self.index, self.rows = vectors, index, rows
        self.positives, self.step, self.version, self.fingerprint = positives, step, version, fingerprint

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def build(
        cls,
        vectors: Tensor | np.ndarray,
        *,
        positives: Tensor | np.ndarray | None = None,
        step: int = 0,
        factory: str = "auto",
        written: Tensor | None = None,
        version: int = 0,
        target_recall: float = 0.95,
        recall_at: int = 64,
        warm: Snapshot | None = None,
        seed: int = 0,
        fingerprint: str | None = None,
    ) -> Snapshot:
        """Normalise a copy of `vectors` (N, D) and index it.

        Args:
            vectors: finite rows, of any floating dtype, on any device.
            positives: (N, D) embeddings of each row's positive view, for samplers that need the pair.
            step: when the rows were taken.
            factory: "auto", "exact" (torch), or any Faiss factory string.
            written: (N,) bool, the rows that hold an embedding; all by default. The others are not indexed.
            version: number of this snapshot in its run.
            target_recall, recall_at, seed: see `FaissIndex`.
            warm: an earlier snapshot, whose cells an IVF starts from.
            fingerprint: what tells the model the rows come from, such as a hash of its weights; kept in the manifest.

        Raises:
            ValueError: for fewer than two rows, rows that are not finite, or written rows that are zero.
        """
        frozen = _unit_copy(vectors, "vectors")
        partial = written is not None and not bool(written.all())
        rows = written.to(frozen.device).nonzero().flatten() if partial and written is not None else None
        indexed = frozen if rows is None else frozen[rows]
        if len(indexed) < 2:
            raise ValueError(f"vectors: {len(indexed)} written row(s) of {len(frozen)}; an index needs at least two")
        zero = (indexed == 0).all(-1).nonzero().flatten()
        if len(zero):
            named = (zero if rows is None else rows[zero]).tolist()[:8]
            raise ValueError(f"vectors: rows {named} are all zero and have no direction; leave them out with `written`")
        pairs = None if positives is None else _unit_copy(positives, "positives")
        if pairs is not None and pairs.shape != frozen.shape:
            raise ValueError(f"positives: shape {tuple(pairs.shape)}, expected {tuple(frozen.shape)} as the vectors")
        if factory == "exact":
            index: Index = ExactIndex(frozen, rows=rows)
        else:
            index = FaissIndex(
                frozen,
                rows=rows,
                factory=factory,
                target_recall=target_recall,
                recall_at=recall_at,
                warm=None if warm is None else warm.index,
                seed=seed,
            )
        return cls(frozen, index, rows=rows, positives=pairs, step=step, version=version, fingerprint=fingerprint)

    @cached_property
    def exclude_self(self) -> Exclusions:
        """D_i = every row but i: the exclusions of a proposal that is given no others."""
        return Exclusions(len(self)).to(self.vectors.device)

    def excluded(self, exclude: Exclusions | None) -> Exclusions:
        """`exclude` on the snapshot's device; `exclude_self` where there is none."""
        return self.exclude_self if exclude is None else exclude.to(self.vectors.device)

    @cached_property
    def cells(self) -> Cells:
        """A partition of the indexed rows: the index's own cells, else k-means with about 1.5 √n cells, run once."""
        if self.index.cells is not None:
            return self.index.cells
        return kmeans_cells(self.vectors, self.rows, max(1, round(1.5 * math.sqrt(len(self.index)))))

    @property
    def written(self) -> Tensor:
        """(N,) bool: which rows the bank holds, and the index knows."""
        every = torch.ones(len(self), dtype=torch.bool, device=self.vectors.device)
        return every if self.rows is None else torch.zeros_like(every).index_fill_(0, self.rows, True)

    def save(self, folder: str | Path) -> None:
        """Write the snapshot as a new folder.

        Raises:
            FileExistsError: when the folder is there already; a snapshot is never overwritten.
        """
        arrays = {"vectors": self.vectors, "positives": self.positives, "rows": self.rows}
        about = {
            "format": FORMAT,
            "step": self.step,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "shape": list(self.vectors.shape),
            "dtype": "float32",
            "index": self.index.report.factory,
        }
        with files.folder(Path(folder), about) as draft:
            for name, tensor in arrays.items():
                if tensor is not None:
                    np.save(draft / f"{name}.npy", tensor.cpu().numpy(), allow_pickle=False)
            if isinstance(self.index, FaissIndex):
                torch.save(self.index.state(), draft / "index.pt")

    @classmethod
    def load(
        cls, folder: str | Path, *, device: torch.device | str = "cpu", fingerprint: str | None = None
    ) -> Snapshot:
        """Read a saved snapshot back, every file checked against its checksum first.

        Args:
            fingerprint: of the model that will ask; rows known to be of another one are refused.

        Raises:
            DamagedSnapshotError: naming the file that is missing, changed, or of another format or shape.
            ValueError: for rows of another model.
        """
        folder = Path(folder)
        try:
            manifest = files.manifest(folder)
        except files.DamagedError as error:
            raise DamagedSnapshotError(f"{error}; {REMEDY}") from None
        if manifest.get("format") != FORMAT:
            raise DamagedSnapshotError(
                f"{folder}: format {manifest.get('format')}, this version reads {FORMAT}; {REMEDY}"
            )
        missing = [key for key in ("shape", "dtype", "step", "version", "sha256") if key not in manifest]
        if missing or "vectors.npy" not in manifest["sha256"]:
            lacks = ", ".join(missing) or "vectors.npy"
            raise DamagedSnapshotError(f"{folder}: holds no snapshot, its manifest has no {lacks}; {REMEDY}")
        made_by = manifest.get("fingerprint")
        if fingerprint is not None and made_by is not None and made_by != fingerprint:
            raise ValueError(
                f"{folder}: rows of the model {made_by[:12]}…, asked for by {fingerprint[:12]}…; "
                f"embed the corpus again with this model"
            )
        try:
            return cls._read(folder, manifest, device)
        except (files.DamagedError, OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whole, as its checksums say, and yet refused by this numpy, torch or Faiss
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise DamagedSnapshotError(f"{folder}: whole, but not readable ({reason}); {REMEDY}") from error

    @classmethod
    def _read(cls, folder: Path, manifest: dict[str, Any], device: torch.device | str) -> Snapshot:
        """What the files of a folder hold, which its manifest is of."""
        arrays = {
            name: torch.from_numpy(np.load(folder / f"{name}.npy", allow_pickle=False)).to(device)
            for name in ("vectors", "positives", "rows")
            if f"{name}.npy" in manifest["sha256"]
        }
        vectors, rows = arrays["vectors"], arrays.get("rows")
        found = [list(vectors.shape), str(vectors.dtype).removeprefix("torch.")]
        if found != [manifest["shape"], manifest["dtype"]]:
            raise DamagedSnapshotError(f"{folder}: vectors are {found}, the manifest says {manifest['shape']}")
        if "index.pt" in manifest["sha256"]:
            index: Index = FaissIndex.restore(
                vectors, rows, torch.load(folder / "index.pt", map_location="cpu", weights_only=True)
            )
        else:
            index = ExactIndex(vectors, rows=rows)
        return cls(
            vectors,
            index,
            rows=rows,
            positives=arrays.get("positives"),
            step=manifest["step"],
            version=manifest["version"],
            fingerprint=manifest.get("fingerprint"),
        )


def _unit_copy(vectors: Tensor | np.ndarray, name: str) -> Tensor:
    shards = [as_tensor(part) for part in as_rows(vectors, name)]
    tensor = shards[0] if len(shards) == 1 else torch.cat(shards)
    require_finite(tensor, what=name)
    return unit_rows(tensor).contiguous().clone()
