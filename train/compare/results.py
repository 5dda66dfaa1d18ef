"""What a comparison found, read from its runs' folders alone: a row a cell, and a row a method and budget."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from train import report
from train.compare.cells import STEPS, TUNING, Cell, Curve
from train.compare.processes import diverged, finished
from train.run import METRICS
from train.trainer import PHASES

HOLDERS = ("bank", "snapshot", "momentum_encoder", "negatives", "batches")
"""What memory beyond SimCLR's is split into, see `train.memory`."""
ACCURACIES = ("knn_accuracy", "linear_probe_accuracy")
MEASURES = (
    "steps",
    "encodings",
    *ACCURACIES,
    "view_retrieval_at_1",
    "global_loss",
    "loss",
    "ms_step",
    *(f"ms_{phase}" for phase in PHASES),
    "extra_bytes",
    *(f"bytes_{holder}" for holder in HOLDERS),
)
"""What is averaged over seeds. loss: InfoNCE in the batch at the last step. ms: wall time of a step."""

Row = dict[str, Any]


def rows(cells: Sequence[Cell]) -> list[Row]:
    """The rows of results.csv: all cells that are finished, in their order; a measure that a run lacks is NaN."""
    return [_row(cell) for cell in cells if finished(cell)]


def summarise(found: Sequence[Row]) -> list[Row]:
    """The rows of summary.csv: count, mean and standard deviation over the seeds of a method and budget.

    The deviation is that of a sample, √(Σ(x − x̄)² / (n − 1)), and NaN of one. Tuning runs, of other seeds and learning
    rates, are left out; runs that diverged count in `diverged` and nowhere else.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in (each for each in found if each["budget"] != TUNING):
        groups.setdefault((row["budget"], row["method"]), []).append(row)
    summary = []
    for (budget, method), here in groups.items():
        whole = [row for row in here if not row["diverged"]]
        mean = {"method": method, "budget": budget, "lr": here[0]["lr"]}
        mean |= {"count": len(whole), "diverged": len(here) - len(whole)}
        for name in MEASURES:
            values = [row[name] for row in whole if not math.isnan(row[name])]
            mean[name] = statistics.fmean(values) if values else math.nan
            mean[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else math.nan
        summary.append(mean)
    return summary


def evaluations(cell: Cell) -> list[Row]:
    """What a finished run that did not diverge measured, first before any step: step, encodings, knn_accuracy."""
    whole = finished(cell) and diverged(cell) is None
    logged = report.read_metrics(cell.folder / METRICS) if whole else []
    return [row for row in logged if row["event"] == report.EVALUATION and "knn_accuracy" in row]


def curve(cell: Cell) -> Curve:
    """Encodings by step of a finished run that did not diverge."""
    logged = [row for row in report.read_metrics(cell.folder / METRICS) if row["event"] == report.STEP]
    return [(0, 0), *((row["step"], row["encodings"]) for row in logged)]


def gradients(cells: Sequence[Cell]) -> list[Row]:
    """The rows of gradient.csv: what runs measured of their gradients, see `train.gradient`."""
    found = []
    for cell in (each for each in cells if each.budget == STEPS and finished(each) and diverged(each) is None):
        for row in report.read_metrics(cell.folder / METRICS):
            if row.pop("event") == report.GRADIENT:
                found.append({"method": cell.method, "seed": cell.seed, "step": row.pop("step"), **row})
    return found


def _row(cell: Cell) -> Row:
    row: Row = {"method": cell.method, "budget": cell.budget, "seed": cell.seed, "lr": cell.lr}
    row |= {"diverged": diverged(cell) is not None, "folder": str(cell.folder)} | dict.fromkeys(MEASURES, math.nan)
    if row["diverged"]:
        return row
    summary = json.loads((cell.folder / "summary.json").read_text())
    row |= {name: summary[name] for name in MEASURES if name in summary}
    steps = [each for each in report.read_metrics(cell.folder / METRICS) if each["event"] == report.STEP]
    row["loss"] = steps[-1]["loss"]
    seconds = summary["seconds_by_phase"]
    row |= {f"ms_{phase}": 1000 * seconds.get(phase, 0.0) / summary["steps"] for phase in PHASES}
    row["ms_step"] = sum(row[f"ms_{phase}"] for phase in PHASES)
    row |= {f"bytes_{holder}": summary["bytes"][holder] for holder in HOLDERS}
    row["extra_bytes"] = sum(summary["bytes"].values())
    return row
