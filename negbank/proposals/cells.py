"""First a cell, then any row of it, with a uniform floor λ:

    q_i(j) = λ / |D_i| + (1 − λ) · P_i(c(j)) / n_i(c(j)),      P_i(c) ∝ n_i(c) · exp(a_i(c))

n_i(c) are the rows of cell c in D_i, counted exactly (cell_rows.py), and a_i(c) ≈ log mean_{x ∈ c} exp(z_i·x / τ) what
each of them weighs (cell_scores.py). It asks nothing of the index but its cells: no search. Rows that were never
written have no cell and are reached by the floor alone.
"""

from __future__ import annotations

from typing import Annotated

from negbank.bounds import Gt, Le, Supplied, checked
from negbank.exclusions import Exclusions
from negbank.proposals.adapt import Probe, tune
from negbank.proposals.cell_rows import CellRows
from negbank.proposals.cell_scores import CellScores
from negbank.proposals.contract import Anchors
from negbank.proposals.head_tail import HeadTailDistribution
from negbank.snapshot import Snapshot


class Cells:
    """Softmax over cells, uniform inside of one.

    Args:
        snapshot: whose cells are drawn from.
        temperature: of the softmax, τ; the loss's own where a run does not say.
        floor: share of uniform draws, λ, without which rows that have no cell are never reached.
        adapt: fit temperature and floor to measured staleness, once there is a probe; `temperature` is then the
            target's.
        probe: that measurement (probe.py, adapt.py).
        exclude: what may not be drawn; the anchor's own row by default.

    Raises:
        ValueError: for a temperature or floor out of bounds.
    """

    @checked
    def __init__(
        self,
        snapshot: Snapshot,
        temperature: Annotated[float, Gt(0), Supplied("loss.temperature")] = 0.07,
        floor: Annotated[float, Gt(0), Le(1)] = 0.1,
        *,
        adapt: bool = False,
        probe: Probe | None = None,
        exclude: Exclusions | None = None,
    ) -> None:
        self._exclude = snapshot.excluded(exclude)
        self._rows = CellRows(snapshot.cells, self._exclude)
        self._scores = CellScores(snapshot.vectors, snapshot.cells)
        self.temperature, self.floor = temperature, floor
        if adapt:
            tune(self, probe)

    def __call__(self, anchors: Anchors) -> HeadTailDistribution:
        no_head = anchors.rows.new_empty(len(anchors.rows), 0)
        cells = self._rows.of(anchors.rows)
        logits = self._scores(anchors.queries, self.temperature)
        return HeadTailDistribution(anchors.rows, no_head, no_head.double(), cells, logits, self.floor, self._exclude)
