"""When a new snapshot is due, how it is built, and how it is swapped in.

    due → (re-encode) → build beside the old one → validate → swap one reference

Staleness is measured, not assumed, on a fixed random probe of rows P:

    drift    1 − mean_{i∈P} cos(b_i, z_i),   b_i the snapshot's row, z_i a fresh embedding
    overlap  mean_{i∈P} |T_i(old) ∩ T_i(new)| / k,   T_i the top k of row i
    age      optimiser steps since a row was written
    probe    fresh similarities where a proposal looks (proposals/probe.py), for proposals that adapt to them
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from negbank.bank import EmbeddingBank, unit_rows
from negbank.proposals import Anchors, Probe
from negbank.snapshot import Snapshot

MODES = ("rolling", "full")
RECALL_SLACK = 0.05
"""A rebuilt index may miss its target recall by this much (its own sampling error) and still be swapped in."""


class RefreshReport(NamedTuple):
    """One refresh. drift and overlap are NaN for the first snapshot, which has no older one to be held against."""

    step: int
    version: int
    swapped: bool
    reason: str
    drift: float
    overlap: float
    coverage: float
    mean_age: float
    max_age: int
    recall: float
    factory: str


class Refresher:
    """Builds a snapshot of the bank every `every` steps, or sooner when the measured drift passes a bound.

    Args:
        bank: whose rows are frozen; in `full` mode they are rewritten first.
        every: optimiser steps between refreshes.
        mode: "rolling" takes the rows as training wrote them; "full" re-encodes the data set first.
        encode: rows (B,) → embeddings (B, D) of the current encoder, without gradient. "full" and drift need it.
        max_drift: refresh early when 1 − mean cosine on the probe passes it; None never does.
        measure: (snapshot, rows → embeddings, step) → probe: after every swap and drift check; None does not.
        check_every: steps between drift checks with `max_drift`, and between probes with `measure`.
        probe_rows: size of the probe.
        overlap_at: k of the overlap.
        encode_batch: rows re-encoded at once in "full" mode.
        factory, target_recall: of the index, see `FaissIndex`.
        seed: of the probe and the index.

    Raises:
        ValueError: for an unknown mode, a count below 1, or `encode` missing where it is needed.
    """

    def __init__(
        self,
        bank: EmbeddingBank,
        *,
        every: int,
        mode: str = "rolling",
        encode: Callable[[Tensor], Tensor] | None = None,
        max_drift: float | None = None,
        measure: Callable[[Snapshot, Callable[[Tensor], Tensor], int], Probe] | None = None,
        check_every: int = 50,
        probe_rows: int = 256,
        overlap_at: int = 10,
        encode_batch: int = 512,
        factory: str = "auto",
        target_recall: float = 0.95,
        seed: int = 0,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: expected one of {', '.join(MODES)}")
        if min(every, check_every, probe_rows, overlap_at, encode_batch) < 1:
            raise ValueError(f"every={every}, check_every={check_every}, probe_rows={probe_rows}: expected at least 1")
        if encode is None and (mode == "full" or max_drift is not None or measure is not None):
            raise ValueError(f"encode=None: mode={mode!r} max_drift={max_drift} and `measure` need rows → embeddings")
        self.bank, self.every, self.mode, self.encode = bank, every, mode, encode
        self.max_drift, self.check_every = max_drift, check_every
        self.factory, self.target_recall, self.seed = factory, target_recall, seed
        self._overlap_at, self._encode_batch = overlap_at, encode_batch
        order = torch.randperm(len(bank), generator=torch.Generator().manual_seed(seed))
        self.probe = order[:probe_rows].sort().values.to(bank.vectors.device)
        self.snapshot: Snapshot | None = None
        self.staleness: Probe | None = None
        self._measure = measure
        self.encodings = 0

    def step(self, step: int) -> RefreshReport | None:
        """Refresh if one is due after `step` optimiser steps; what happened, or None when nothing was due.

        `staleness` is measured anew when a snapshot was swapped in, and at every check.
        """
        report = self._refresh_if_due(step)
        if self._measure is not None and self.snapshot is not None:
            swapped = report is not None and report.swapped
            if swapped or (step % self.check_every == 0 and step != self.snapshot.step):
                self.staleness = self._measure(self.snapshot, self._encode, step)
        return report

    def _refresh_if_due(self, step: int) -> RefreshReport | None:
        if self.mode == "rolling" and int(self.bank.written.sum()) < 2:
            return None
        if self.snapshot is None:
            due = self.mode == "full" or step % self.every == 0
            return self.refresh(step, "first") if due else None
        if step == self.snapshot.step:
            return None
        if step % self.every == 0:
            return self.refresh(step, "scheduled")
        if self.max_drift is not None and step % self.check_every == 0:
            drift = self.drift()
            if drift > self.max_drift:
                return self.refresh(step, f"drift {drift:.3f} > {self.max_drift}", drift)
        return None

    def drift(self) -> float:
        """1 − mean cosine of the snapshot's probe rows to fresh embeddings; NaN without a snapshot or `encode`."""
        if self.snapshot is None or self.encode is None:
            return float("nan")
        probe = self.probe if self.snapshot.rows is None else self.probe[torch.isin(self.probe, self.snapshot.rows)]
        if len(probe) == 0:
            return float("nan")
        fresh = unit_rows(self._encode(probe))
        return 1.0 - float((self.snapshot.vectors[probe] * fresh).sum(-1).double().mean())

    def refresh(self, step: int, reason: str = "asked for", drift: float | None = None) -> RefreshReport:
        """Build, validate and swap in a snapshot now. `drift`: where it was measured just before.

        A later snapshot whose index misses its recall is not swapped in: the old one stays.

        Raises:
            ValueError: when the very first index misses its recall, or a fresh embedding is not finite.
        """
        drift = self.drift() if drift is None else drift
        if self.mode == "full":
            for rows in torch.arange(len(self.bank), device=self.bank.vectors.device).split(self._encode_batch):
                self.bank.write(rows, self._encode(rows), step=step)
        old = self.snapshot
        new = Snapshot.build(
            self.bank.vectors,
            step=step,
            factory=self.factory,
            written=self.bank.written,
            version=0 if old is None else old.version + 1,
            target_recall=self.target_recall,
            warm=old,
            seed=self.seed,
        )
        recall = new.index.report.recall
        swapped = recall >= self.target_recall - RECALL_SLACK
        if not swapped and old is None:
            raise ValueError(
                f"factory={self.factory!r}: recall@{new.index.report.recall_at} is {recall:.3f} at most, below "
                f"target_recall={self.target_recall}; choose a finer index or lower the target"
            )
        if not swapped:
            reason = f"{reason}; kept version {old.version if old else 0}: recall {recall:.3f} misses the target"
        coverage, mean_age, max_age = self.bank.statistics(step)
        report = RefreshReport(
            step, new.version, swapped, reason, drift, self._overlap(old, new), coverage, mean_age, max_age, recall,
            new.index.report.factory,
        )  # fmt: skip
        if swapped:
            self.snapshot = new
        return report

    def state_dict(self) -> dict[str, Any]:
        """Which snapshot is in use and the encodings spent; the snapshot itself is saved with `Snapshot.save`."""
        version = None if self.snapshot is None else self.snapshot.version
        probe = self.staleness
        saved = None if probe is None else {**probe.anchors._asdict(), **probe._asdict(), "anchors": None}
        return {"version": version, "encodings": self.encodings, "staleness": saved}

    def load_state_dict(self, state: dict[str, Any], snapshot: Snapshot | None) -> None:
        """Restore `state_dict` with the snapshot it names.

        Raises:
            ValueError: when `snapshot` is of another version.
        """
        version = None if snapshot is None else snapshot.version
        if version != state["version"]:
            raise ValueError(f"snapshot: version {version}, the state was taken with {state['version']}")
        self.snapshot, self.encodings = snapshot, state["encodings"]
        p = state["staleness"]
        self.staleness = p and Probe(Anchors(p["rows"], p["queries"]), p["ids"], p["log_q"], p["scores"])

    def _encode(self, rows: Tensor) -> Tensor:
        assert self.encode is not None
        self.encodings += len(rows)
        return self.encode(rows)

    def _overlap(self, old: Snapshot | None, new: Snapshot) -> float:
        if old is None:
            return float("nan")
        probe = self.probe if old.rows is None else self.probe[torch.isin(self.probe, old.rows)]
        k = min(self._overlap_at, len(old.index) - 1)
        if len(probe) == 0 or k < 1:
            return float("nan")
        before, after = (s.index.search(s.vectors[probe], k, exclude=probe[:, None]).ids for s in (old, new))
        return float((before[:, :, None] == after[:, None, :]).any(1).double().mean())
