"""Where further negatives are worth more than further anchors: docs/crossing.png and its rows.

    python benchmarks/crossing.py [--out runs/crossing] [--only length temperature encodings rows]
    python benchmarks/crossing.py --cifar10 data/cifar10_jpg.zip --only cifar10
    python benchmarks/crossing.py --draw benchmarks/results/crossing.csv

Every point is a comparison (`negbank compare`) at equal encoder forward passes, E a step: SimCLR and SogCLR with E / 2
anchors; logQ with a HeadTail pool that takes a quarter, or half, of them: 3/8 E anchors and E / 4 drawn rows, E / 4
and E / 2; and batches whose rows HeadTail drew for one another (`batches: {type: drawn}`), E / 2 anchors. One of four
axes moves, the others stay at 1000 images of mnist5k, E = 32, τ = 0.07 and 120 000 encodings. The vertical axes are
what is optimised, the global loss over all rows, and view retrieval@1, as differences to SimCLR of the same seed.
Three seeds along the first axis, two elsewhere. Hours on 2 cores; the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import yaml

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from negbank.train.config import load
from negbank.train.studies.compare import run as compare
from negbank.train.studies.rows import write_csv

Row = dict[str, Any]
AXES = {"length": "total", "temperature": "temperature", "encodings": "encodings_a_step", "rows": "rows"}
TITLES = {
    "length": "training: encodings in all",
    "temperature": "temperature τ",
    "encodings": "encodings a step, E",
    "rows": "images, N",
}
NAMES = {
    "sogclr": "SogCLR",
    "logq_quarter": "logQ, a quarter drawn by HeadTail",
    "logq_half": "logQ, half drawn by HeadTail",
    "drawn": "drawn batches, groups of four",
}
MEASURES = {"global_loss": "global loss − SimCLR's", "view_retrieval_at_1": "retrieval@1 − SimCLR's"}


PROPOSAL = {"type": "head_tail", "tail": 0.5}  # the default when this was measured


class Point(NamedTuple):
    """N images, E encodings a step, τ, encodings in all."""

    rows: int = 1000
    encodings_a_step: int = 32
    temperature: float = 0.07
    total: int = 120_000


SERIES = {
    "length": [Point(total=total) for total in (240_000, 120_000, 60_000, 30_000)],
    "temperature": [Point(temperature=tau) for tau in (0.2, 0.03, 0.07)],
    "encodings": [Point(encodings_a_step=each) for each in (128, 16, 32)],
    "rows": [Point(rows=rows) for rows in (1000, 4000)],
    "cifar10": [Point(rows=2000, total=240_000)],
}


def comparison(point: Point, data: dict[str, Any], seeds: list[int], out: Path) -> dict[str, Any]:
    """What `negbank compare` reads."""
    steps, views = point.total // point.encodings_a_step, point.encodings_a_step // 2

    def pooled(size: int) -> dict[str, Any]:
        negatives = {"type": "importance", "proposal": PROPOSAL, "draws": point.encodings_a_step - 2 * size}
        return {"batches": {"batch_size": size}, "negatives": negatives}

    base = {
        "data": {**data, "rows": point.rows},
        "encoder": {
            "type": "convnet",
            "width": 16 if data["type"] == "mnist5k" else 32,
            "norm": "group",
            "projector": {"dim": 64, "norm": "none"},
        },
        "batches": {"type": "uniform", "batch_size": views},
        "loss": {"temperature": point.temperature},
        # two passes over the data, and hardly an encoding of drift probes
        "refresh": {
            "every": 4 * point.rows // point.encodings_a_step,
            "unit": "steps",
            "probe_rows": 32,
            "check_every": 10**6,
        },
        "optim": {"type": "adamw", "warmup": min(200, steps // 5)},
        "eval": {"every": steps, "global_rows": 5000},
        "run": {"steps": steps, "checkpoint_every": steps},
    }
    methods = {
        "simclr": {"negatives": {"type": "in_batch"}},
        "sogclr": {"negatives": {"type": "sogclr", "gamma": 0.9}},
        "logq_quarter": pooled(views * 3 // 4),
        "logq_half": pooled(views // 2),
        "drawn": {
            "batches": {"type": "drawn", "group": 4, "weights": "model", "proposal": PROPOSAL},
            "negatives": {"type": "importance", "draws": 0},
        },
    }
    return {"base": base, "methods": methods, "seeds": seeds, "lr": [0.001], "equal": ["steps"], "out": str(out)}


def measure(options: argparse.Namespace) -> list[Row]:
    """All rows of the series that were asked for; each point is run once."""
    found: dict[tuple[str, Point], list[Row]] = {}
    for series in options.only:
        data = {"type": "mnist5k"}
        if series == "cifar10":
            data = {"type": "image_folder", "root": str(options.cifar10), "size": 32}
        for point in SERIES[series]:
            if (data["type"], point) in found:
                continue
            name = f"{data['type']}_N{point.rows}_E{point.encodings_a_step}_tau{point.temperature}_total{point.total}"
            folder = options.out / name
            folder.mkdir(parents=True, exist_ok=True)
            path = folder.with_suffix(folder.suffix + ".yaml")
            seeds = [0, 1, 2] if point in SERIES["length"] else [0, 1]
            path.write_text(yaml.safe_dump(comparison(point, data, seeds, folder), sort_keys=False))
            config, _ = load(path, root="compare")
            print(f"{name}\n{compare.run(**dict(config))}", flush=True)
            with (folder / "results.csv").open(newline="") as file:
                kept = ("method", "seed", "encodings", *MEASURES, "knn_accuracy", "linear_probe_accuracy")
                rows = [{key: row[key] for key in kept} for row in csv.DictReader(file)]
            shown = {"data": data["type"], **point._asdict()}
            found[data["type"], point] = [shown | row for row in rows]
    return [row for rows in found.values() for row in rows]


def draw(rows: list[Row], path: Path) -> None:
    """Two measures by four axes, mean and each seed's difference to SimCLR."""
    figure, panels = plt.subplots(len(MEASURES), len(AXES), figsize=(14, 6.5), sharey="row", layout="constrained")
    middle = Point()._asdict()
    for at, (series, axis) in enumerate(AXES.items()):
        others = [key for key in middle if key != axis]
        here = [r for r in rows if r["data"] == "mnist5k" and all(float(r[key]) == middle[key] for key in others)]
        for panel, measure in zip(panels[:, at], MEASURES):
            value = {(float(r[axis]), r["method"], r["seed"]): float(r[measure]) for r in here}
            for colour, (method, name) in enumerate(NAMES.items()):
                gaps = defaultdict(list)
                for (x, each, seed), found in value.items():
                    if each == method and (x, "simclr", seed) in value:
                        gaps[x].append(found - value[x, "simclr", seed])
                xs = sorted(gaps)
                panel.plot(xs, [statistics.fmean(gaps[x]) for x in xs], f"C{colour}-", label=name)
                panel.plot([x for x in xs for _ in gaps[x]], [g for x in xs for g in gaps[x]], f"C{colour}.", alpha=0.5)
            panel.axhline(0, color="black", linewidth=0.8)
            panel.set_xscale("log")
            ticks = sorted({x for x, _, _ in value})
            panel.set_xticks(ticks, [f"{x:g}" if x < 10_000 else f"{x / 1000:g}k" for x in ticks])
            panel.minorticks_off()
        panels[-1, at].set_xlabel(TITLES[series])
    for panel, (_, text) in zip(panels[:, 0], MEASURES.items()):
        panel.set_ylabel(text)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(NAMES), frameon=False
    )
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/crossing"))
    parser.add_argument("--only", choices=SERIES, nargs="+", default=list(AXES))
    parser.add_argument("--cifar10", type=Path, default=Path("data/cifar10_jpg.zip"), help="class folders of images")
    parser.add_argument("--draw", type=Path, help="draw this file's rows, and measure nothing")
    parser.add_argument("--picture", type=Path, default=Path("docs/crossing.png"))
    options = parser.parse_args()
    if options.draw is None:
        rows = measure(options)
        write_csv(rows, options.out / "crossing.csv")
    else:
        with options.draw.open(newline="") as file:
            rows = list(csv.DictReader(file))
    draw(rows, options.picture)


if __name__ == "__main__":
    main()
