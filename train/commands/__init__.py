"""The `negbank` command: one file a verb, which has `add(commands)` and `run(options)`.

`add` makes the verb's parser and imports nothing heavy; `run` does the work and gives the exit code. What it raises is
said in one line here, for every verb alike. A verb that takes `key=value` sets the default `overrides`, and one that
can be stopped and go on says so in `stopped`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version

# OpenMP threads spin for milliseconds between parallel regions. Where another process wants the cores, a step of many
# small operations then takes seconds; a short spin costs nothing measurable where none does. Read when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

VERBS = (
    "negbank.train.commands.train",
    "negbank.train.commands.evaluate",
    "negbank.train.commands.search",
    "negbank.train.commands.ablate",
    "negbank.train.commands.compare",
    "negbank.train.commands.validate",
    "negbank.train.commands.list",
    "negbank.train.commands.schema",
    "negbank.train.commands.mine",
    "negbank.train.commands.refilter",
    "negbank.train.commands.index",
)
CODES = {
    "AblationError": 1, "CheckpointError": 1, "CompareError": 1, "DamagedError": 1, "DownloadError": 1,
    "FileNotFoundError": 2, "ImportError": 1, "OSError": 1, "RunError": 1, "ValueError": 2,
}  # fmt: skip
"""Exit codes of errors that have said all there is to say: 1 what failed, 2 what was given. Others are bugs."""
EXAMPLES = """\
examples:
  negbank train configs/quickstart.yaml                          pre-train; results in runs/quickstart
  negbank train configs/quickstart.yaml negatives.type=in_batch run.dir=runs/simclr
  negbank train --resume runs/quickstart                         go on after an interruption
  negbank eval runs/quickstart                                   measure the newest checkpoint
  negbank search runs/retrieval_quickstart "parse a date"        find its documents by meaning
  negbank ablate configs/ablate_npy.yaml source.path=mine.npy    compare proposals on your embeddings
  negbank compare configs/compare_mnist5k.yaml                   methods at equal steps and equal encodings
  negbank mine --corpus c.npy --queries q.npy --out mined        hard negatives for embeddings; see mine --help
  negbank validate configs/*.yaml                                check files without running them
  negbank list                                                   every name and key, its default and its meaning
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        "negbank", description="Contrastive pre-training with negatives drawn from an index.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.add_argument("--version", action="version", version=version("negbank"))
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in VERBS:
        verb, before = importlib.import_module(name), set(commands.choices)
        verb.add(commands)
        for added in set(commands.choices) - before:
            commands.choices[added].set_defaults(run=verb.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 0, 1 for what failed, 2 for bad input, 3 for a run that diverged, 128 + n
    after signal n."""
    options, rest = parser().parse_known_args(arguments)
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if rest != overrides or (overrides and not hasattr(options, "overrides")):
        parser().error(f"unknown: {' '.join(word for word in rest if word not in overrides) or ' '.join(rest)}")
    options.overrides = overrides
    try:
        done = int(options.run(options))
        sys.stdout.flush()
        return done
    except BrokenPipeError:  # who read the output has seen enough, as in `negbank list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:  # while data are read, or for the second time
        print(f"negbank: {getattr(options, 'stopped', 'interrupted')}", file=sys.stderr)
        return 130
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        missing = isinstance(error, ModuleNotFoundError) and error.name is not None
        said = f"{error}; pip install 'negbank[train]', or 'negbank[all]'" if missing else str(error)
        print(f"negbank: {said}", file=sys.stderr)
        return code


def exit_code(error: Exception) -> int | None:
    """That of the error itself if it has one, else of its nearest class in `CODES`, by name: nothing is imported."""
    known = (CODES[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in CODES)
    return getattr(error, "exit_code", next(known, None))
