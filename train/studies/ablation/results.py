"""What an ablation leaves in its folder beside its measurements: averages, figures, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from negbank.train.studies.ablation import report
from negbank.train.studies.ablation.answer import Answer, answer
from negbank.train.studies.ablation.average import summarise
from negbank.train.studies.ablation.figures import draw_bias, draw_tv
from negbank.train.studies.ablation.measurement import TIMED, Measurement, block
from negbank.train.studies.rows import write_csv


def write(folder: Path, found: Sequence[Measurement], *, what: str, settings: Mapping[str, Any], rows: int) -> Answer:
    """ablation.csv, figures and report of measurements over N = rows; the answer that the report opens with."""
    averages = summarise(found)
    write_csv(averages, folder / "ablation.csv")
    draw_tv(averages, folder / "tv.png")
    draw_bias(averages, folder / "bias.png")
    best = answer(found, what)
    anchors = len(found[-1].anchors)
    scale = f"{anchors} anchors, {rows} rows; timed in calls of {min(TIMED, block(rows), anchors)} anchors."
    report.write(folder, best, averages, settings, scale=scale)
    return best
