"""What a run shows at its end: `summary.json`, `summary.png`, and a table."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from negbank import files

REFRESH, EVALUATION, STEP = "refresh", "eval", "step"
"""The `event` of a row in metrics.jsonl."""

UNTRAINED = ("knn_accuracy", "recall@1", "mrr@10", "left_to_right_at_1", "right_to_left_at_1")
"""What of the first evaluation is kept, to be held against the last."""
NAMES = {
    "knn_accuracy": "kNN accuracy, trained encoder",
    "untrained_knn_accuracy": "kNN accuracy, untrained encoder",
    "pixel_knn_accuracy": "kNN accuracy, raw pixels",
    "linear_probe_accuracy": "linear probe accuracy",
    "view_retrieval_at_1": "view retrieval@1",
    "view_retrieval_at_5": "view retrieval@5",
    "recall@1": "recall@1",
    "untrained_recall@1": "recall@1, untrained encoder",
    "recall@1_siblings": "recall@1, queries with siblings",
    "recall@1_alone": "recall@1, queries without",
    "recall@10": "recall@10",
    "mrr@10": "MRR@10",
    "ndcg@10": "NDCG@10",
    "train_recall@1": "recall@1, training pairs",
    "spearman": "Spearman, sentence pairs",
    "global_loss": "global loss",
    "alignment": "alignment",
    "uniformity": "uniformity",
    "mean_cosine": "mean pairwise cosine",
    "steps": "optimiser steps",
    "encodings": "encoder forward passes",
    "seconds": "seconds",
}
"""What the final table calls the entries of summary.json, in its order."""


class Metrics:
    """Adds rows to a run's metrics.jsonl, and knows what it then holds."""

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, path.open("a+b")
        self._file.seek(0)
        self._digest = hashlib.sha256(self._file.read())

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        self._digest.update(line)
        self._file.write(line)

    def whole(self) -> bytes:
        """All of the file, once the disk holds it.

        Raises:
            DamagedError: when somebody else has changed it.
            OSError: as the disk says.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        found = self.path.read_bytes() if self.path.exists() else b""
        if hashlib.sha256(found).digest() != self._digest.digest():
            raise files.DamagedError(f"{self.path}: changed while the run was writing it; resume the run to restore it")
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def draw_summary(rows: list[dict[str, Any]], summary: dict[str, Any], path: Path) -> None:
    """Loss, kNN accuracy, acceptance and staleness over steps, as a PNG at `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    (loss, knn), (acceptance, staleness) = figure.subplots(2, 2)
    _line(loss, rows, STEP, "loss", "InfoNCE in the batch")
    loss.set_title("loss")
    _line(knn, rows, EVALUATION, "knn_accuracy", "encoder", marker="o")
    for key, name in (("pixel_knn_accuracy", "raw pixels"), ("untrained_knn_accuracy", "untrained encoder")):
        if key in summary:
            knn.axhline(summary[key], linestyle="--", color="grey", linewidth=1)
            knn.annotate(
                name, (0.99, summary[key]), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
            )
    knn.set_title("kNN accuracy, held-out images")
    if any("recall@1" in row for row in rows):
        for key, name in (
            ("recall@1", "recall@1"),
            ("mrr@10", "MRR@10"),
            ("train_recall@1", "recall@1, training pairs"),
        ):
            _line(knn, rows, EVALUATION, key, name, marker="o", across="encodings")
        knn.set_title("held-out queries against the whole corpus")
    for key, name in (
        ("acceptance_in_batch", "in-batch"),
        ("acceptance_index", "index"),
        ("moved", "chains that moved"),
    ):
        _line(acceptance, rows, STEP, key, name)
    acceptance.set_title("chains: acceptance rate")
    acceptance.set_ylim(0, 1)
    _line(staleness, rows, REFRESH, "drift", "drift: 1 − mean cosine to fresh", marker="o")
    _line(staleness, rows, REFRESH, "overlap", "top-10 overlap, old and new", marker="o")
    staleness.set_title("staleness at refreshes")
    staleness.set_ylim(0, 1)
    for axes in (loss, knn, acceptance, staleness):
        axes.set_xlabel("encodings" if axes is knn and "recall@1" in summary else "step")
        axes.grid(alpha=0.3)
        if axes.lines and (axes is not knn or "recall@1" in summary):
            axes.legend(fontsize=8)
        if not axes.lines:
            axes.text(0.5, 0.5, "not part of this method", transform=axes.transAxes, ha="center", color="grey")
    save(figure, path)


def save(figure: Any, path: Path, *, dpi: int = 120) -> None:
    """Write a figure as PNG, whole or not at all."""
    files.write(path, lambda file: figure.savefig(file, dpi=dpi, format="png"))


def _line(
    axes: Any, rows: list[dict[str, Any]], event: str, key: str, name: str, *, across: str = "step", **style: Any
) -> None:
    points = [(r[across], r[key]) for r in rows if r["event"] == event and _finite(r.get(key))]
    if points:
        axes.plot(*zip(*points), label=name, linewidth=1.2, markersize=3, **style)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def table(summary: dict[str, Any]) -> str:
    """The final table that a run prints."""
    shown = [(name, summary[key]) for key, name in NAMES.items() if key in summary]
    width = max(len(name) for name, _ in shown)
    return "\n".join(
        f"  {name:<{width}}  {value:>10,}" if isinstance(value, int) else f"  {name:<{width}}  {value:>10.4f}"
        for name, value in shown
    )
