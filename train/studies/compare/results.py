"""What a comparison found, read from its runs' folders alone: a row a trial, and a row a method and budget."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence

from negbank.train import report
from negbank.train.loop import METRICS, SUMMARY
from negbank.train.studies import gradient_error
from negbank.train.studies.compare.processes import diverged, finished
from negbank.train.studies.compare.trials import STEPS, TUNING, Curve, Trial
from negbank.train.studies.rows import Row, distinct
from negbank.train.trainer import PHASES

HOLDERS = ("bank", "snapshot", "momentum_encoder", "negatives", "batches")
"""What memory beyond SimCLR's is split into, see `negbank.train.studies.memory`."""
ACCURACIES = ("knn_accuracy", "linear_probe_accuracy")
RANKINGS = ("mrr@10", "recall@1")
PAIRED = "over_reference"
MEASURES = (
    "steps",
    "encodings",
    *ACCURACIES,
    *RANKINGS,
    "train_recall@1",
    "view_retrieval_at_1",
    "global_loss",
    "loss",
    "ms_step",
    *(f"ms_{phase}" for phase in PHASES),
    "extra_bytes",
    *(f"bytes_{holder}" for holder in HOLDERS),
)
"""What is averaged over seeds. loss: InfoNCE in the batch at the last step. ms: wall time of a step."""


def judged_by(found: Sequence[Row]) -> tuple[str, str]:
    """The two measures that methods are judged by, the first of them also where one is chosen: of retrieval or not."""
    ranked = any(not math.isnan(row.get(RANKINGS[0], math.nan)) for row in found)
    return RANKINGS if ranked else ACCURACIES


def rows(trials: Sequence[Trial]) -> list[Row]:
    """The rows of results.csv: all trials that are finished, in their order; a measure that a run lacks is NaN."""
    return [_row(trial) for trial in trials if finished(trial)]


def summarise(found: Sequence[Row], reference: str) -> list[Row]:
    """The rows of summary.csv: count, mean and standard deviation over the seeds of a method and budget.

    The deviation is that of a sample, √(Σ(x − x̄)² / (n − 1)), and NaN of one. `PAIRED` is the first measure of
    `judged_by` less that of the reference with the same seed and budget. Tuning runs, of other seeds and learning
    rates, are left out, but of a method that diverged in all of them; runs that diverged count in `diverged` and
    nowhere else.
    """
    summary, (judge, _) = [], judged_by(found)
    for budget in (each for each in distinct(found, "budget") if each != TUNING):
        base = [row for row in found if (row["method"], row["budget"]) == (reference, budget)]
        paired = {row["seed"]: row[judge] for row in base}
        for method in distinct(found, "method"):
            tried = [row for row in found if row["method"] == method]
            here = [row for row in tried if row["budget"] == budget]
            if not here and all(row["diverged"] for row in tried):  # at every learning rate
                here = tried
            if not here:
                continue
            whole, rates = [row for row in here if not row["diverged"]], distinct(here, "lr")
            mean = {"method": method, "budget": budget, "lr": rates[0] if len(rates) == 1 else math.nan}
            mean |= {"count": len(whole), "diverged": len(here) - len(whole)}
            for name in MEASURES:
                mean |= _moments(name, [row[name] for row in whole])
            over = [row[judge] - paired[row["seed"]] for row in whole if row["seed"] in paired]
            summary.append(mean | _moments(PAIRED, [] if method == reference else over))
    return summary


def _moments(name: str, values: Sequence[float]) -> Row:
    """Mean and deviation of what is known of a measure."""
    known = [value for value in values if not math.isnan(value)]
    mean = statistics.fmean(known) if known else math.nan
    return {name: mean, f"{name}_sd": statistics.stdev(known) if len(known) > 1 else math.nan}


def evaluations(trial: Trial) -> list[Row]:
    """What a finished run that did not diverge measured, first before any step: step, encodings, its measures."""
    whole = finished(trial) and diverged(trial) is None
    logged = report.read_metrics(trial.folder / METRICS) if whole else []
    return [row for row in logged if row["event"] == report.EVALUATION]


def curve(trial: Trial) -> Curve:
    """Encodings by step of a finished run that did not diverge."""
    logged = [row for row in report.read_metrics(trial.folder / METRICS) if row["event"] == report.STEP]
    return [(0, 0), *((row["step"], row["encodings"]) for row in logged)]


def gradients(trials: Sequence[Trial]) -> list[Row]:
    """The rows of gradient.csv: what runs measured of their gradients, see `negbank.train.studies.gradient_error`."""
    found = []
    for trial in (each for each in trials if each.budget == STEPS and finished(each) and diverged(each) is None):
        for row in report.read_metrics(trial.folder / METRICS):
            if row.pop("event") == gradient_error.EVENT:
                found.append({"method": trial.method, "seed": trial.seed, "step": row.pop("step"), **row})
    return found


def _row(trial: Trial) -> Row:
    row: Row = {"method": trial.method, "budget": trial.budget, "seed": trial.seed, "lr": trial.lr}
    row |= {"diverged": diverged(trial) is not None, "folder": str(trial.folder), "device": "", "precision": ""}
    row |= dict.fromkeys(MEASURES, math.nan)
    if row["diverged"]:
        return row
    summary = json.loads((trial.folder / SUMMARY).read_text())
    row |= {name: summary[name] for name in ("device", "precision", *MEASURES) if name in summary}
    steps = [each for each in report.read_metrics(trial.folder / METRICS) if each["event"] == report.STEP]
    row["loss"] = steps[-1]["loss"]
    seconds = summary["seconds_by_phase"]
    row |= {f"ms_{phase}": 1000 * seconds.get(phase, 0.0) / summary["steps"] for phase in PHASES}
    row["ms_step"] = sum(row[f"ms_{phase}"] for phase in PHASES)
    row |= {f"bytes_{holder}": summary["bytes"][holder] for holder in HOLDERS}
    row["extra_bytes"] = sum(summary["bytes"].values())
    return row
