"""When a new snapshot is due, how it is built, and how it is swapped in.

    due → (re-encode) → build beside the old one → validate → swap one reference

Staleness is measured, not assumed, on a fixed random sample of rows S:

    drift    1 − mean_{i∈S} cos(b_i, z_i),   b_i the snapshot's row, z_i a fresh embedding
    overlap  mean_{i∈S} |T_i(old) ∩ T_i(new)| / k,   T_i the top k of row i
    age      optimiser steps since a row was written
    probe    fresh similarities where a proposal looks (proposals/probe.py), for proposals that adapt to them
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from negbank.bank import EmbeddingBank, unit_rows
from negbank.bounds import Count, Gt, Le, checked
from negbank.proposals import Anchors, Probe
from negbank.snapshot import Snapshot

OVERLAP_AT = 10
"""k of the overlap."""
BLOCK = 512
"""Rows encoded at once in "full" mode."""
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
    """Builds a snapshot of the bank again and again, or sooner when the measured drift passes a bound.

    Args:
        bank: whose rows are frozen; in `full` mode they are rewritten first.
        every: how often the index is rebuilt.
        unit: what `every` counts, optimiser steps or epochs.
        mode: rolling takes the rows as training wrote them; full encodes the whole data set anew first.
        max_drift: rebuild early when 1 − mean cosine on the sample passes this; None never does.
        check_every: steps between drift checks with `max_drift`, and between probes with `measure`.
        probe_rows: rows of the fixed random sample that drift and overlap are measured on.
        epoch: optimiser steps of an epoch. As long as it is 1, `every` counts steps.
        factory, target_recall: of the index, see `FaissIndex`.
        encode: rows (B,) → embeddings (B, D) of the current encoder, without gradient. "full" and drift need it.
        rewrite: (rows, step), writes fresh rows in full mode; None: what `encode` gives into the bank.
        measure: (snapshot, step) → probe of its staleness: after every swap and at every check; None does not.
        seed: of the sample and the index.

    Raises:
        ValueError: for an argument out of bounds, or `encode` missing where it is needed.
    """

    @checked
    def __init__(
        self,
        bank: EmbeddingBank,
        *,
        every: Count = 1,
        unit: Literal["steps", "epochs"] = "epochs",
        mode: Literal["rolling", "full"] = "rolling",
        max_drift: Annotated[float, Gt(0), Le(2)] | None = None,
        check_every: Count = 50,
        probe_rows: Count = 256,
        epoch: Count = 1,
        factory: str = "auto",
        target_recall: float = 0.95,
        encode: Callable[[Tensor], Tensor] | None = None,
        rewrite: Callable[[Tensor, int], None] | None = None,
        measure: Callable[[Snapshot, int], Probe] | None = None,
        seed: int = 0,
    ) -> None:
        if encode is None and (mode == "full" or max_drift is not None):
            raise ValueError(f"encode=None: mode={mode!r} with max_drift={max_drift} needs rows → embeddings")
        self.bank, self.every, self.mode = bank, every * (epoch if unit == "epochs" else 1), mode
        self.max_drift, self.check_every = max_drift, check_every
        self.factory, self.target_recall, self.seed = factory, target_recall, seed
        order = torch.randperm(len(bank), generator=torch.Generator().manual_seed(seed))
        self._sample = order[:probe_rows].sort().values.to(bank.device)
        self._encode, self._measure, self._rewrite = encode, measure, rewrite or self._write
        self.snapshot: Snapshot | None = None
        self.probe: Probe | None = None

    def step(self, step: int) -> RefreshReport | None:
        """Refresh if one is due after `step` optimiser steps; what happened, or None when nothing was due.

        `probe` is measured anew when a snapshot was swapped in, and at every check.
        """
        report = self._refresh_if_due(step)
        if self._measure is not None and self.snapshot is not None:
            swapped = report is not None and report.swapped
            if swapped or (step % self.check_every == 0 and step != self.snapshot.step):
                self.probe = self._measure(self.snapshot, step)
        return report

    def _refresh_if_due(self, step: int) -> RefreshReport | None:
        if self.snapshot is None:
            due = self.mode == "full" or (step % self.every == 0 and int(self.bank.written.sum()) >= 2)
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
        """1 − mean cosine of the snapshot's rows to fresh embeddings; NaN without a snapshot or `encode`."""
        if self.snapshot is None or self._encode is None:
            return float("nan")
        rows = self._indexed(self.snapshot)
        if len(rows) == 0:
            return float("nan")
        fresh = unit_rows(self._encode(rows))
        return 1.0 - float((self.snapshot.vectors[rows] * fresh).sum(-1).double().mean())

    def refresh(self, step: int, reason: str = "asked for", drift: float | None = None) -> RefreshReport:
        """Build, validate and swap in a snapshot now. `drift`: where it was measured just before.

        A later snapshot whose index misses its recall is not swapped in: the old one stays.

        Raises:
            ValueError: when the very first index misses its recall, or a fresh embedding is not finite.
        """
        drift = self.drift() if drift is None else drift
        if self.mode == "full":
            for rows in torch.arange(len(self.bank), device=self.bank.device).split(BLOCK):
                self._rewrite(rows, step)
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

    def _write(self, rows: Tensor, step: int) -> None:
        assert self._encode is not None
        self.bank.write(rows, self._encode(rows), step=step)

    def state_dict(self) -> dict[str, Any]:
        """Which snapshot is in use, and its probe; the snapshot itself is saved with `Snapshot.save`."""
        version = None if self.snapshot is None else self.snapshot.version
        return {"version": version, "probe": self.probe and [*self.probe.anchors, *self.probe[1:]]}

    def load_state_dict(self, state: dict[str, Any], snapshot: Snapshot | None) -> None:
        """Restore `state_dict` with the snapshot it names.

        Raises:
            ValueError: when `snapshot` is of another version.
        """
        version = None if snapshot is None else snapshot.version
        if version != state["version"]:
            raise ValueError(f"snapshot: version {version}, the state was taken with {state['version']}")
        self.snapshot = snapshot
        self.probe = None
        if state["probe"]:
            probe = [each.to(self.bank.device) for each in state["probe"]]
            self.probe = Probe(Anchors(*probe[:2]), *probe[2:])

    def _indexed(self, snapshot: Snapshot) -> Tensor:
        """The rows of the sample that the snapshot's index knows."""
        return self._sample if snapshot.rows is None else self._sample[torch.isin(self._sample, snapshot.rows)]

    def _overlap(self, old: Snapshot | None, new: Snapshot) -> float:
        if old is None:
            return float("nan")
        rows, k = self._indexed(old), min(OVERLAP_AT, len(old.index) - 1)
        if len(rows) == 0 or k < 1:
            return float("nan")
        before, after = (s.index.search(s.vectors[rows], k, exclude=rows[:, None]).ids for s in (old, new))
        return float((before[:, :, None] == after[:, None, :]).any(1).double().mean())
