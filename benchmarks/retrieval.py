"""Which batches retrieve best: methods × batch sizes × seeds on pairs of texts, at equal encodings. Resumable.

    python benchmarks/retrieval.py OUT --data pairs.tsv [--corpus full one code] [--methods ...] [--seeds 0 1 2]

pairs.tsv has the columns short, long and source (a number: documents of one source are siblings). "one" keeps the
first document of every source, "code" are the functions of the installed packages. Every run is `negbank train` with
configs/retrieval_pairs.yaml or configs/retrieval_quickstart.yaml and what is listed below; a seed is a split of its
own. A run that has finished is not run again. OUT/results.csv has a row a run, `--table` prints means over seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
METHODS = {
    "in_batch": ["batches.type=uniform"],
    "knn": ["batches.type=knn"],
    "prosampler": ["batches.type=prosampler", "batches.candidates=null", "batches.neighbors=20"],
    "communities": ["batches.type=communities"],
    "groups": ["batches.type=drawn", "batches.group=4", "batches.proposal.type=nearest", "batches.proposal.k=64"],
    "drawn": ["batches.type=drawn", "batches.group=4", "negatives.type=importance", "negatives.draws=0"],
    "sogclr": ["batches.type=uniform", "negatives.type=sogclr", "negatives.relative=true"],
    "mined": ["batches.type=uniform", "negatives.type=mined"],
    "importance": ["batches.type=uniform", "negatives.type=importance", "negatives.pool=true", "negatives.draws=128"],
    "emc2": ["batches.type=uniform", "negatives.type=emc2", "negatives.pool=true", "negatives.draws=128"],
}
CURVES = ("step", "encodings", "recall@1", "mrr@10", "train_recall@1")
SHOWN = ("recall@1", "mrr@10", "train_recall@1", "recall@1_siblings", "recall@1_alone")


def corpora(data: Path | None, out: Path) -> dict[str, list[str]]:
    """The configuration file of each corpus and what it is told of it."""
    pairs = [str(ROOT / "configs" / "retrieval_pairs.yaml")]
    paths = lambda path: [f"data.{side}.path={path}" for side in ("left", "right")]  # noqa: E731
    found = {"code": [str(ROOT / "configs" / "retrieval_quickstart.yaml")]}
    if data is None:
        return found
    one, seen = out / "one.tsv", set()
    if not one.exists():
        header, *lines = data.read_text().splitlines()
        at = header.split("\t").index("source")
        kept = [line for line in lines if (s := line.split("\t")[at]) not in seen and not seen.add(s)]
        one.write_text("\n".join([header, *kept]) + "\n")
    return {**found, "full": [*pairs, *paths(data)], "one": [*pairs, *paths(one)]}


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    known = corpora(options.data, options.out)
    runs = [
        (corpus, method, size, seed)
        for corpus in options.corpus for seed in options.seeds for size in options.sizes for method in options.methods
    ]  # fmt: skip
    for corpus, method, size, seed in [] if options.table else runs:
        name = f"{corpus}/{method}{options.name}_b{size}_lr{options.lr:g}_e{options.encodings}/{seed}"
        folder = options.out / name
        if (folder / "manifest.json").exists():
            continue
        steps = options.encodings // (2 * size)
        config, *overrides = known[corpus]
        command = [
            config, *overrides, *METHODS[method], f"batches.batch_size={size}", f"run.seed={seed}", f"run.dir={folder}",
            f"run.steps={steps}", f"eval.every={max(1, steps // 8)}", f"run.checkpoint_every={steps}",
            f"optim.lr={options.lr}", "run.log_every=100", *options.override,
        ]  # fmt: skip
        print(name, flush=True)
        with (options.out / "log.txt").open("a") as log:
            subprocess.run([sys.executable, "-m", "negbank", "train", *command, "--overwrite"], stderr=log, stdout=log)
        collect(options.out)
    collect(options.out)
    show(options.out)
    if options.plot is not None:
        draw(options.out / "curves.csv", options.plot)


def collect(out: Path) -> None:
    """OUT/results.csv and OUT/curves.csv, anew."""
    rows, curves = [], []
    for path in sorted(out.glob("*/*/*/summary.json")):
        corpus, method, seed = path.parts[-4:-1]
        which = {"corpus": corpus, "method": method, "seed": int(seed)}
        found = json.loads(path.read_text())
        rows.append({**which, **{name: found[name] for name in sorted(found) if isinstance(found[name], int | float)}})
        logged = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
        curves += [which | {k: row[k] for k in CURVES} for row in logged if "recall@1" in row]
    for name, table in (("results", rows), ("curves", curves)):
        with (out / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in table for key in row)))
            writer.writeheader()
            writer.writerows(table)


def draw(curves: Path, path: Path) -> None:
    """Recall@1 of held-out queries against encodings, mean over seeds, a line a method and batch size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points: dict[tuple[str, int], dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    with curves.open() as file:
        for row in csv.DictReader(file):
            name, _, rest = row["method"].rpartition("_b")
            at = points[name, int(rest.split("_")[0])][int(row["step"])]
            at.append((float(row["encodings"]), float(row["recall@1"])))
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes, colours = figure.add_subplot(), {"in_batch": "#8a8f98", "communities": "#2c7a3f", "prosampler": "#c4572b"}
    styles = {32: "-", 128: "--", 1024: ":"}
    for (name, size), steps in sorted(points.items(), key=lambda each: (each[0][1], each[0][0])):
        means = [[statistics.mean(each) for each in zip(*found)] for _, found in sorted(steps.items())]
        label = f"{'random' if name == 'in_batch' else name}, B = {size}"
        axes.plot(*zip(*means), styles.get(size, "-."), color=colours.get(name), marker="o", markersize=3, label=label)
    axes.set_xlabel("encodings, all that are made counted")
    axes.set_ylabel("recall@1 of held-out queries, whole corpus")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


HEAD = "| corpus, batches | B | lr | seeds | recall@1 | MRR@10 | less random, same B | siblings / alone | train | k |"


def show(out: Path) -> None:
    """A Markdown table: means over seeds, standard deviations in brackets; recall@1 and MRR@10 less those of in-batch
    InfoNCE over random batches of the same size and seeds; recall@1 of queries with and without siblings, and of
    training pairs; thousands of encodings."""
    found: dict[tuple[str, int, str, str, str], dict[int, dict[str, str]]] = defaultdict(dict)
    with (out / "results.csv").open() as file:
        for row in csv.DictReader(file):
            name, _, rest = row["method"].rpartition("_b")
            size, lr, encodings = rest.split("_")
            found[row["corpus"], int(size), name, lr.removeprefix("lr"), encodings][int(row["seed"])] = row
    print(f"{HEAD}\n{'|---' * HEAD.count('| ')}|")
    for (corpus, size, name, lr, encodings), rows in sorted(found.items()):
        mean = {key: spread([float(row[key] or "nan") for row in rows.values()], ".3f") for key in SHOWN}
        base = found.get((corpus, size, "in_batch", lr, encodings), {})
        gains = [
            spread([float(rows[seed][key]) - float(base[seed][key]) for seed in rows if seed in base], "+.3f")
            for key in ("recall@1", "mrr@10")
            if name != "in_batch" and base.keys() & rows.keys()
        ]
        thousands = statistics.mean(float(row["encodings"]) for row in rows.values()) / 1e3
        cells = [
            f"{corpus}, {name}", size, lr, len(rows), mean["recall@1"], mean["mrr@10"], " / ".join(gains),
            f"{mean['recall@1_siblings']} / {mean['recall@1_alone']}", mean["train_recall@1"], f"{thousands:.0f}",
        ]  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |")


def spread(values: list[float], spec: str) -> str:
    """The mean, and of several values the standard deviation."""
    mean = format(statistics.mean(values), spec)
    return mean if len(values) < 2 else f"{mean} ({statistics.stdev(values):{spec.lstrip('+')}})"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--corpus", nargs="+", choices=("full", "one", "code"), default=["full"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[32])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--encodings", type=int, default=600_000)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--name", default="", help="tells runs with other overrides apart")
    parser.add_argument("--override", nargs="*", default=[], help="key=value of every run")
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    parser.add_argument("--plot", type=Path, help="a PNG of recall@1 against encodings")
    return parser.parse_args()


if __name__ == "__main__":
    main()
