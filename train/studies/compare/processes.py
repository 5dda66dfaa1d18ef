"""Trials as processes: each is `negbank train --resume FOLDER`, in the folder of a run that may not have begun.

A run without a checkpoint begins, one with a checkpoint goes on, and a finished one is not started. While a process
lives it holds a lock on its log: a comparison that was killed cannot start the same run a second time beside it.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from negbank import files
from negbank.train.config import to_dict
from negbank.train.config.differences import differences
from negbank.train.descent import NonFiniteError
from negbank.train.loop import CHECKPOINTS, CONFIG, METRICS, SUMMARY
from negbank.train.run import read_config, write_config
from negbank.train.studies.compare.trials import Trial

START = "import sys; sys.path[:] = filter(None, sys.path); from negbank.train.commands import main; sys.exit(main())"
"""`negbank` in the working directory, where relative paths start, without the modules that lie there."""
LOG, DIVERGENCE = "log.txt", "diverged.json"
POLL = 0.1
"""Seconds between looks at the running processes."""


class CompareError(RuntimeError):
    """A comparison that cannot go on, with the remedy."""


def prepare(trials: Sequence[Trial]) -> None:
    """Make every trial's folder that of a run to begin or to go on with; one that has not begun gets its trial's anew.

    Raises:
        CompareError: for a folder that holds a run of another configuration, before any is made.
    """
    for trial in trials:
        if (trial.folder / CONFIG).exists() and _begun(trial):
            shown = differences(to_dict(trial.config), to_dict(read_config(trial.folder)), "there")
            if shown:
                raise CompareError(
                    f"{trial.folder} holds a run of another configuration ({shown}); choose another out, or remove it"
                )
    for trial in trials:
        if not finished(trial):
            trial.folder.mkdir(parents=True, exist_ok=True)
            with _locked(trial.folder):  # a run that has only just begun has read its configuration
                write_config(trial.folder, trial.config)


def _begun(trial: Trial) -> bool:
    """Whether anything of the trial's run depends on its configuration yet."""
    metrics = trial.folder / METRICS
    return finished(trial) or (trial.folder / CHECKPOINTS).exists() or (metrics.exists() and metrics.stat().st_size > 0)


def finished(trial: Trial) -> bool:
    """Whether nothing is left to run: it has a summary, or diverged. What is not whole is left to be run again."""
    try:
        return SUMMARY in files.manifest(trial.folder)["sha256"]
    except files.DamagedError:
        return diverged(trial) is not None


def diverged(trial: Trial) -> str | None:
    """What a run said when it diverged, or None."""
    try:
        return str(files.read(trial.folder / DIVERGENCE)["said"])
    except files.DamagedError:
        return None


def execute(trials: Sequence[Trial], jobs: int) -> Generator[Trial, None, None]:
    """Run trials, `jobs` at once, and give each when it has finished. Closing the iterator stops those that run.

    Raises:
        CompareError: when a run fails, or is still going on from an earlier comparison. Divergence is no failure.
    """
    waiting = list(trials)
    running: dict[subprocess.Popen[bytes], Trial] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                trial = waiting.pop(0)
                running[_launch(trial.folder, jobs)] = trial
            for process in [each for each in running if each.poll() is not None]:
                trial = running.pop(process)
                _conclude(trial, process.returncode)
                yield trial
            time.sleep(POLL)
    finally:
        for process in running:
            process.terminate()  # it writes a checkpoint
        for process in running:
            process.wait()


def _launch(folder: Path, jobs: int) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    with _locked(folder) as log:  # which the child inherits with the open file
        command = [sys.executable, "-c", START, "train", "--resume", str(folder)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


@contextmanager
def _locked(folder: Path) -> Iterator[IO[bytes]]:
    """The log of a folder's run, open and locked.

    Raises:
        CompareError: when a process that runs it has the lock.
    """
    with (folder / LOG).open("ab") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CompareError(f"{folder}: its run is still going on; wait for it, or stop it") from None
        yield log


def _conclude(trial: Trial, code: int) -> None:
    if code == 0:
        return
    lines = (trial.folder / LOG).read_text(errors="replace").strip().splitlines()
    last = lines[-1] if lines else "it said nothing"
    if code == NonFiniteError.exit_code:
        files.write(trial.folder / DIVERGENCE, files.sealed({"said": last.removeprefix("negbank: ")}))
        return
    raise CompareError(f"{trial}: its run ended with {code}: {last} ({trial.folder / LOG} has it all)")
