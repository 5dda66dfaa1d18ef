"""Trials as processes: those that fail, diverge, or still go on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from negbank.train.studies.compare import processes
from negbank.train.studies.compare.processes import CompareError, finished

METHODS = {
    "simclr": {"negatives": {"type": "in_batch"}},
    "moco": {"negatives": {"type": "moco", "queue": 16}},
    "logq": {"negatives": {"type": "importance", "draws": 4, "proposal": {"type": "nearest", "k": 4}}},
}


def test_two_processes_at_once_and_one_that_fails(tmp_path, study, comparison, read):
    config = comparison(tmp_path, methods={k: METHODS[k] for k in ("simclr", "moco")}, equal=["steps"], jobs=2)
    study(config)
    assert len(read(tmp_path / "results.csv")) == 2
    assert "written to" in (tmp_path / "moco" / "steps" / "lr0.001" / "seed0" / "log.txt").read_text()
    taken = tmp_path / "bad" / "a" / "steps" / "lr0.001" / "seed0" / "tensorboard"
    taken.parent.mkdir(parents=True)
    taken.write_text("no folder")
    with pytest.raises(CompareError, match=r"a, equal steps, lr 0.001, seed 0: its run ended with 1: .*tensorboard"):
        study(comparison(tmp_path / "bad", methods={"a": None}, equal=["steps"]))


def test_files_of_the_working_directory_are_not_run(tmp_path, monkeypatch, comparison, plan):
    for name in ("train.py", "samplers.py", "yaml.py"):
        (tmp_path / name).write_text("raise SystemExit('mine')")
    monkeypatch.chdir(tmp_path)
    (trial,) = plan(comparison("out", methods={"a": None})).steps({"a": 0.001})
    processes.prepare([trial])
    assert list(processes.execute([trial], 1)) == [trial]
    assert finished(trial)


def test_a_run_that_diverges_is_told_from_one_that_fails(tmp_path, monkeypatch, comparison, plan):
    (trial,) = plan(comparison(tmp_path, methods={"a": None})).steps({"a": 0.1})
    processes.prepare([trial])
    assert not finished(trial)
    script = "import sys; print('negbank: step 2: not finite', file=sys.stderr); sys.exit(3)"
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: popen([sys.executable, "-c", script], **options)
    )
    assert list(processes.execute([trial], 1)) == [trial]
    assert finished(trial)
    assert processes.diverged(trial) == "step 2: not finite"


def test_a_run_that_is_still_going_on_is_not_started_again(tmp_path, monkeypatch, comparison, plan):
    (trial,) = plan(comparison(tmp_path, methods={"a": None})).steps({"a": 0.1})
    processes.prepare([trial])
    popen = subprocess.Popen
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: popen(sleeper, **options))
    first = processes._launch(trial.folder, 1)
    try:
        for again in (processes.prepare, lambda trials: list(processes.execute(trials, 1))):
            with pytest.raises(CompareError, match="still going on"):
                again([trial])
    finally:
        first.kill()
        first.wait()
