"""The `negbank` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# OpenMP threads spin for milliseconds between parallel regions. Where another process wants the cores, a step of many
# small operations then takes seconds; a short spin costs nothing measurable where none does. Read when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from negbank.train import mine
from negbank.train.config import ConfigError, describe, load, root_of
from negbank.train.options import Ablation, Comparison, Config

DIVERGED = 3
"""The exit code of a run whose loss, embeddings or gradient were no longer finite."""
EXAMPLES = """\
examples:
  negbank train configs/quickstart.yaml                          pre-train; results in runs/quickstart
  negbank train configs/quickstart.yaml negatives.type=in_batch run.dir=runs/simclr
  negbank train --resume runs/quickstart                         go on after an interruption
  negbank eval runs/quickstart                                   measure the newest checkpoint
  negbank ablate configs/ablate_npy.yaml source.path=mine.npy    compare proposals on your embeddings
  negbank compare configs/compare_mnist5k.yaml                   methods at equal steps and equal encodings
  negbank mine --corpus c.npy --queries q.npy --out mined        hard negatives for embeddings; see mine --help
  negbank validate configs/*.yaml                                check files without running them
  negbank keys                                                   every key, its default and its meaning
"""
ABLATE_EXAMPLES = """\
examples:
  negbank ablate configs/ablate_npy.yaml source.path=mine.npy    embeddings in a file, with simulated drift
  negbank ablate configs/ablate_npy.yaml source.path=mine.npy 'temperatures=[0.07, 0.2]' 'queries=[bank, fresh]'
  negbank ablate configs/ablate_npy.yaml 'proposals=[{type: uniform}, {type: nearest, k: 32}]' out=ablation/k32
  negbank ablate configs/ablate_snapshots.yaml source.bank=OLDER source.truth=NEWER
                                                                 the drift of a run, between two of its snapshots
  negbank train configs/quickstart.yaml ablation.every=500 run.dir=runs/ablated
                                                                 inside a run, into run.dir/ablation
  negbank keys ablate                                            every key, its default and its meaning
"""
COMPARE_EXAMPLES = """\
examples:
  negbank compare configs/compare_mnist5k.yaml                   minutes, on images that need no download
  negbank compare configs/compare_cifar10.yaml 'seeds=[0, 1]' 'lr=[0.001]' base.run.steps=500
  negbank compare configs/compare_cifar10.yaml jobs=2            two runs at once; timings are then not comparable
  negbank keys compare                                           every key, its default and its meaning
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        "negbank", description="Contrastive pre-training with negatives drawn from an index.", epilog=EXAMPLES,
        formatter_class=raw,
    )  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train", help="pre-train an encoder", epilog=EXAMPLES, formatter_class=raw,
        usage="negbank train CONFIG [key=value ...] [--overwrite] | negbank train --resume RUN_DIR",
        description="Pre-train an encoder as a YAML file says. `key=value` changes a key of the file; `negbank keys` "
        "lists them. The run writes config.yaml, metrics.jsonl, tensorboard/, checkpoints/, summary.json and "
        "summary.png into run.dir. SIGTERM or Ctrl-C writes a checkpoint first.",
    )  # fmt: skip
    train.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG", help="a YAML file, such as configs/quickstart.yaml"
    )
    train.add_argument("--resume", type=Path, metavar="RUN_DIR", help="go on with an interrupted run instead")
    train.add_argument("--overwrite", action="store_true", help="replace a run that run.dir holds already")
    evaluate = commands.add_parser("eval", help="measure the newest checkpoint of a run")
    evaluate.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    validate = commands.add_parser("validate", help="check configuration files and report all problems")
    validate.add_argument("configs", type=Path, nargs="+", metavar="CONFIG")
    ablate = commands.add_parser(
        "ablate", help="compare proposals: bias, mixing and cost", epilog=ABLATE_EXAMPLES, formatter_class=raw,
        usage="negbank ablate CONFIG [key=value ...] [--overwrite]",
        description="Measure proposals over a stale bank, exactly, for every temperature, level of staleness and\n"
        "number of draws that a YAML file asks for: total variation, bias and variance of the gradient's\n"
        "direction, effective draws, sup π/q, acceptance, encodings and milliseconds. `key=value` changes a key of\n"
        "the file. Writes report.html, ablation.csv, ablation.jsonl, tv.png and bias.png into the folder `out`. The\n"
        "same command goes on after an interruption; a folder with results of another configuration is refused.",
    )  # fmt: skip
    ablate.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, such as configs/ablate_npy.yaml")
    ablate.add_argument("--overwrite", action="store_true", help="replace the results that `out` holds already")
    compare = commands.add_parser(
        "compare", help="compare methods over seeds, at equal steps and equal encodings", epilog=COMPARE_EXAMPLES,
        formatter_class=raw, usage="negbank compare CONFIG [key=value ...]",
        description="Train every method of a YAML file with every seed, at equal optimiser steps and at equal encoder\n"
        "forward passes, with a learning rate chosen alike for all. `key=value` changes a key of the file. Every run\n"
        "has its folder in `out`, OUT/METHOD/BUDGET/lrLR/seedSEED/; from these come report.html, results.csv,\n"
        "summary.csv and accuracy.png. The same command goes on after an interruption, and repeats no finished run.",
    )  # fmt: skip
    compare.add_argument(
        "config", type=Path, metavar="CONFIG", help="a YAML file, such as configs/compare_mnist5k.yaml"
    )
    keys = commands.add_parser("keys", help="list every key with its default and meaning")
    keys.add_argument(
        "of", nargs="?", choices=("train", "ablate", "compare"), default="train", help="of which command's files"
    )
    mine.add_commands(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 0, 1 for a failed run, 2 for bad input, 3 for a run that diverged, 128 + n
    after signal n."""
    options, rest = parser().parse_known_args(arguments)
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if rest != overrides or (overrides and options.command not in ("train", "ablate", "compare")):
        parser().error(f"unknown: {' '.join(word for word in rest if word not in overrides) or ' '.join(rest)}")
    try:
        if options.command == "keys":
            for key, default, text in describe({"ablate": Ablation, "compare": Comparison}.get(options.of, Config)):
                print(f"{key} = {default}\n    {text}")
            return 0
        if options.command == "validate":
            return _validate(options.configs)
        if options.command in ("mine", "refilter", "index"):
            return mine.run(options)
        if options.command == "ablate":
            return _ablate(options, overrides)
        if options.command == "compare":
            return _compare(options, overrides)
        return _train(options, overrides) if options.command == "train" else _evaluate(options.run_dir)
    except (ValueError, FileNotFoundError) as error:  # ConfigError is a ValueError
        print(f"negbank: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while data are read, or for the second time
        print("negbank: interrupted", file=sys.stderr)
        return 130


def _validate(paths: list[Path]) -> int:
    failed = 0
    for path in paths:
        try:
            load(path, root=root_of(path))
            print(f"{path}: ok")
        except ConfigError as error:
            print(error, file=sys.stderr)
            failed += 1
    return 2 if failed else 0


def _train(options: argparse.Namespace, overrides: list[str]) -> int:
    from negbank import DamagedSnapshotError  # torch, faiss and matplotlib load only when there is something to do
    from negbank.train import report, run
    from negbank.train.checkpoint import CheckpointError
    from negbank.train.data.sources import DownloadError
    from negbank.train.trainer import NonFiniteError

    try:
        if options.resume is not None:
            if options.config is not None or options.overwrite or overrides:
                print(
                    "negbank: --resume takes the run's own configuration; give no CONFIG and no other option",
                    file=sys.stderr,
                )
                return 2
            folder, summary = options.resume, run.resume(options.resume)
        else:
            if options.config is None:
                print("negbank: train needs a CONFIG, or --resume RUN_DIR; see negbank train --help", file=sys.stderr)
                return 2
            config, notes = load(options.config, overrides)
            for note in notes:
                print(f"note: {note}")
            folder, summary = Path(config.run.dir), run.start(config, overwrite=options.overwrite)
    except FileNotFoundError:  # a path that the user gave
        raise
    except run.Stopped as stopped:
        print(f"negbank: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except NonFiniteError as error:
        print(f"negbank: {error}", file=sys.stderr)
        return DIVERGED
    except (run.RunError, CheckpointError, DamagedSnapshotError, DownloadError, OSError) as error:
        print(f"negbank: {error}", file=sys.stderr)
        return 1
    print(report.table(summary))
    print(f"written to {folder}: summary.json, summary.png, metrics.jsonl, checkpoints/, tensorboard/")
    return 0


def _ablate(options: argparse.Namespace, overrides: list[str]) -> int:
    from negbank import DamagedSnapshotError
    from negbank.train import ablation

    config, notes = load(options.config, overrides, root=Ablation)
    for note in notes:
        print(f"note: {note}")
    try:
        print(ablation.from_config(config, overwrite=options.overwrite))
    except KeyboardInterrupt:
        print("negbank: stopped; the same command goes on from the last finished cell", file=sys.stderr)
        return 130
    except (ablation.AblationError, DamagedSnapshotError, OSError) as error:
        print(f"negbank: {error}", file=sys.stderr)
        return 1
    print(f"written to {config.out}: report.html, ablation.csv, ablation.jsonl, tv.png, bias.png")
    return 0


def _compare(options: argparse.Namespace, overrides: list[str]) -> int:
    from negbank.train import compare
    from negbank.train.data.sources import DownloadError

    config, notes = load(options.config, overrides, root=Comparison)
    for note in notes:
        print(f"note: {note}")
    try:
        print(compare.from_config(config))
    except KeyboardInterrupt:
        print("negbank: stopped; the same command goes on from the runs' checkpoints", file=sys.stderr)
        return 130
    except FileNotFoundError:
        raise
    except (compare.CompareError, DownloadError, OSError) as error:
        print(f"negbank: {error}", file=sys.stderr)
        return 1
    print(f"written to {config.out}: report.html, results.csv, summary.csv, accuracy.png, and a folder a run")
    return 0


def _evaluate(folder: Path) -> int:
    from negbank import DamagedSnapshotError
    from negbank.train import report, run
    from negbank.train.checkpoint import CheckpointError
    from negbank.train.data.sources import DownloadError

    try:
        print(report.table(run.evaluate(folder)))
    except FileNotFoundError:  # data that are not there
        raise
    except (run.RunError, CheckpointError, DamagedSnapshotError, DownloadError, OSError) as error:
        print(f"negbank: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
