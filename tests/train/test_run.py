"""A run that is killed anywhere resumes to the very bits of one that was never interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from negbank.train import checkpoint
from negbank.train.config import ConfigError, parse
from negbank.train.descent import NonFiniteError
from negbank.train.run import RunError, evaluate, resume, start
from negbank.train.trainer import Trainer

STEPS = 36
CONFIG = {
    "data": {"type": "digits"},
    "encoder": {"width": 16, "features": 32, "projector": {"hidden": 32, "dim": 16}},
    "batches": {"batch_size": 16},
    "negatives": {"type": "emc2", "proposals": "both", "proposal": {"k": 8, "adapt": True}, "draws": 1},
    "index": {"factory": "IVF8,Flat", "target_recall": 0.8},
    "refresh": {"every": 9, "unit": "steps", "mode": "full", "max_drift": 0.3, "check_every": 4, "probe_rows": 64},
    "eval": {"every": 14},
    "run": {"steps": STEPS, "checkpoint_every": 8, "log_every": 3},
}

DRIVER = """
import os, signal, sys
import torch
from negbank import files
from negbank.train import checkpoint, commands, trainer
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
{sabotage}
sys.exit(commands.main(sys.argv[1:]))
"""
STEP = """
step = trainer.Trainer.step
def killed(self):
    if self.step_number == {at}: kill()
    return step(self)
trainer.Trainer.step = killed
"""
SABOTAGE = {
    "before the first checkpoint": STEP.format(at=5),
    "between checkpoints, after a refresh": STEP.format(at=21),
    "right after a checkpoint": STEP.format(at=16),
    "in the middle of writing a checkpoint": """
save, calls = torch.save, []
def half(state, path):
    calls.append(path)
    save(state, path)
    if len([c for c in calls if c.name == "state.pt"]) == 2:
        with open(path, "r+b") as file: file.truncate(os.path.getsize(path) // 2)
        kill()
torch.save = half
""",
    "between writing a checkpoint and its rename": """
from pathlib import Path
replace = Path.replace
def killed(self, target):
    if self.name == "step_00000024.tmp": kill()
    return replace(self, target)
Path.replace = killed
""",
    "right after the rename": """
sync = files.sync
def killed(path):
    sync(path)
    if path.name == "checkpoints" and len(checkpoint.steps(path)) == 3: kill()
files.sync = killed
""",
}


def command(*arguments, sabotage=""):
    return [sys.executable, "-c", DRIVER.format(sabotage=sabotage), *map(str, arguments)]


def launch(*arguments, sabotage=""):
    return subprocess.run(command(*arguments, sabotage=sabotage), capture_output=True, text=True)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture(scope="module")
def uninterrupted(config_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = launch("train", config_file, f"run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def differences(a, b, path=""):
    """Where two checkpoints differ in a single bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [path]
        return [d for k in a if k != "seconds" for d in differences(a[k], b[k], f"{path}.{k}")]
    if isinstance(a, list | tuple):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}[{i}]")]
    return [] if a == b or path in (".config.run.dir", ".config.data.workers") else [path]


def assert_same_run(folder: Path, other: Path):
    cpu = torch.device("cpu")
    (mine, (my_snapshot,), my_rows), (theirs, (their_snapshot,), their_rows) = (
        checkpoint.load(f / "checkpoints", device=cpu) for f in (folder, other)
    )
    assert mine["trainer"]["step"] == STEPS
    assert differences(mine, theirs) == []
    assert torch.equal(my_snapshot.vectors, their_snapshot.vectors)
    assert my_rows == their_rows
    assert (folder / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    summaries = [json.loads((f / "summary.json").read_text()) for f in (folder, other)]
    for summary in summaries:
        del summary["seconds"], summary["seconds_by_phase"]
    assert summaries[0] == summaries[1]


def test_a_run_leaves_all_that_it_promises(uninterrupted):
    names = {p.name for p in uninterrupted.iterdir()}
    assert names == {
        "config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "summary.json", "summary.png", "manifest.json",
    }  # fmt: skip
    summary = json.loads((uninterrupted / "summary.json").read_text())
    for key in ("knn_accuracy", "linear_probe_accuracy", "view_retrieval_at_1", "global_loss", "untrained_knn_accuracy",
                "pixel_knn_accuracy", "encodings", "seconds"):  # fmt: skip
        assert isinstance(summary[key], int | float)
    rows = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["event"] == "step"] == list(range(3, STEPS + 1, 3))
    assert [r["step"] for r in rows if r["event"] == "eval"] == [0, 14, 28, STEPS]
    refreshes = [r["step"] for r in rows if r["event"] == "refresh"]
    assert {0, 9, 18, 27} <= set(refreshes)
    assert all({"loss", "acceptance_index", "acceptance_in_batch", "moved", "hardness", "extra_encodings"} <= r.keys()
               for r in rows if r["event"] == "step")  # fmt: skip
    assert checkpoint.steps(uninterrupted / "checkpoints") == [32, STEPS]
    assert next((uninterrupted / "tensorboard").iterdir()).stat().st_size > 1000


@pytest.mark.parametrize("where", SABOTAGE)
def test_killed_and_resumed_is_bit_identical(where, config_file, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    killed = launch("train", config_file, f"run.dir={folder}", sabotage=SABOTAGE[where])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = launch("train", "--resume", folder)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(folder, uninterrupted)
    assert not list((folder / "checkpoints").glob("*.tmp"))


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 2)])
def test_workers_change_nothing_before_or_after_a_kill(before, after, config_file, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    sabotage = SABOTAGE["between checkpoints, after a refresh"]
    killed = launch("train", config_file, f"run.dir={folder}", f"data.workers={before}", sabotage=sabotage)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace(f"workers: {before}", f"workers: {after}"))
    resumed = launch("train", "--resume", folder)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(folder, uninterrupted)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_checkpoints_at_the_next_step(number, code, config_file, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    slow = (
        "import time\nstep = trainer.Trainer.step\ntrainer.Trainer.step = lambda self: (time.sleep(0.2), step(self))[1]"
    )
    process = subprocess.Popen(
        command("train", config_file, f"run.dir={folder}", sabotage=slow), stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    assert b"checkpoint written" in error
    stopped_at = checkpoint.steps(folder / "checkpoints")[-1]
    assert 8 <= stopped_at < STEPS
    assert launch("train", "--resume", folder).returncode == 0
    assert_same_run(folder, uninterrupted)


def test_a_full_disk_loses_nothing(config_file, uninterrupted, tmp_path):
    """A limit on file size, set after the first checkpoint, makes the second fail as a full disk does."""
    folder = tmp_path / "run"
    full = """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
step = trainer.Trainer.step
def limited(self):
    if self.step_number == 12: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    return step(self)
trainer.Trainer.step = limited
"""
    done = launch("train", config_file, f"run.dir={folder}", sabotage=full)
    assert done.returncode == 1, done.stderr
    assert "step_00000016: not written" in done.stderr
    assert "then resume" in done.stderr
    assert checkpoint.steps(folder / "checkpoints") == [8]
    assert launch("train", "--resume", folder).returncode == 0
    assert_same_run(folder, uninterrupted)


def in_process(tmp_path, **run):
    config, _ = parse({**CONFIG, "run": {**CONFIG["run"], "dir": str(tmp_path / "run"), "steps": 8, **run}})
    return config


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    config = in_process(tmp_path)
    start(config)
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("temperature: 0.1", "temperature: 0.2"))
    with pytest.raises(RunError, match=r"loss\.temperature: 0\.1 in the checkpoint, 0.2 now"):
        resume(tmp_path / "run")


def test_a_run_whose_data_has_moved_goes_on(tmp_path):
    for name in "ab":
        (tmp_path / "here" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.random.default_rng(i).integers(0, 255, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "here" / name / f"{i}.png")
    data = {"type": "image_folder", "root": str(tmp_path / "here"), "size": 16}
    config, _ = parse({
        **CONFIG, "data": data, "index": {"factory": "exact"}, "eval": {"global_rows": 20, "knn_k": 5},
        "run": {"dir": str(tmp_path / "run"), "steps": 4},
    })  # fmt: skip
    first = start(config)
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(ConfigError, match=r"data\.root: '.*here': no such file or folder"):
        evaluate(tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    moved = {"data": {**data, "root": str(tmp_path / "there"), "memory_gb": 1e-6}, "run": {"device": "cpu"}}
    path.write_text(yaml.safe_dump({k: {**v, **moved.get(k, {})} for k, v in yaml.safe_load(path.read_text()).items()}))
    assert evaluate(tmp_path / "run")["knn_accuracy"] == first["knn_accuracy"]
    assert resume(tmp_path / "run")["knn_accuracy"] == first["knn_accuracy"]


def test_a_run_directory_is_never_taken_silently(tmp_path):
    config = in_process(tmp_path)
    first = start(config)
    with pytest.raises(RunError, match="holds a run already"):
        start(config)
    again = start(config, overwrite=True)
    assert again["knn_accuracy"] == first["knn_accuracy"]
    measured = evaluate(tmp_path / "run")
    assert measured["knn_accuracy"] == first["knn_accuracy"]
    assert measured["linear_probe_accuracy"] == first["linear_probe_accuracy"]


def test_a_directory_that_cannot_hold_the_run_is_said_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="not writable"):
        start(in_process(tmp_path / "file"))
    usage = os.statvfs(tmp_path).f_frsize
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": usage})())
    with pytest.raises(RunError, match="MiB free, the checkpoints need"):
        start(in_process(tmp_path))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("call", [resume, evaluate])
def test_a_folder_without_a_run_is_said(call, tmp_path):
    with pytest.raises(RunError, match="no run"):
        call(tmp_path)


def test_a_damaged_checkpoint_is_named_and_computed_again_from_the_one_before(tmp_path, capsys):
    first = start(in_process(tmp_path, checkpoint_every=4))
    folder = tmp_path / "run"
    rows, states = (folder / "metrics.jsonl").read_bytes(), sorted(folder.glob("checkpoints/*/state.pt"))
    whole = checkpoint.load(folder / "checkpoints", device=torch.device("cpu"))
    states[1].write_bytes(states[1].read_bytes()[:1000])
    with pytest.raises(checkpoint.CheckpointError, match=r"remove .*step_00000008 to resume"):
        evaluate(folder)  # which is of the newest, or of none
    again = resume(folder)
    told = capsys.readouterr()
    assert f"{states[1]}: its checksum differs from the manifest; going on" in told.out + told.err
    assert again["global_loss"] == first["global_loss"]
    assert (folder / "metrics.jsonl").read_bytes() == rows
    found = checkpoint.load(folder / "checkpoints", device=torch.device("cpu"))
    assert differences(found.state, whole.state) == []
    for state in states:
        state.write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match=r"every checkpoint is; remove .*checkpoints to begin"):
        resume(folder)
    shutil.rmtree(folder / "checkpoints")
    assert resume(folder)["global_loss"] == first["global_loss"]
    assert (folder / "metrics.jsonl").read_bytes() == rows


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "longer"])
def test_metrics_are_put_back_to_what_the_checkpoint_knew(damage, tmp_path):
    start(in_process(tmp_path, checkpoint_every=4))
    path = tmp_path / "run" / "metrics.jsonl"
    rows = path.read_bytes()
    path.write_bytes({
        "cut": rows[:100], "flipped": bytes([rows[0] ^ 1]) + rows[1:], "gone": b"", "longer": rows + b"\0" * 50,
    }[damage])  # fmt: skip
    if damage == "gone":
        path.unlink()
    resume(tmp_path / "run")
    assert path.read_bytes() == rows


def test_metrics_that_are_changed_under_a_run_end_it(tmp_path, monkeypatch):
    path, step = tmp_path / "run" / "metrics.jsonl", Trainer.step

    def cut(self):
        if self.step_number == 6:
            os.truncate(path, 10)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", cut)
        with pytest.raises(RunError, match=r"metrics\.jsonl: changed while the run was writing it; resume the run"):
            start(in_process(tmp_path, checkpoint_every=4))
    resume(tmp_path / "run")
    rows = path.read_bytes()
    start(in_process(tmp_path, checkpoint_every=4), overwrite=True)
    assert path.read_bytes() == rows


def test_checkpoints_of_nine_digits_and_more_are_found_and_the_oldest_dropped(tmp_path):
    for step in (99_999_999, 10**8, 10**9):
        checkpoint.save(tmp_path, {"trainer": {"step": step, "refreshers": []}}, [], b"")
    assert checkpoint.steps(tmp_path) == [10**8, 10**9]
    found = checkpoint.load(tmp_path, device=torch.device("cpu"))
    assert found is not None
    assert found[0]["trainer"]["step"] == 10**9


def test_eval_changes_nothing_in_the_run_directory(tmp_path):
    start(in_process(tmp_path))
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    evaluate(tmp_path / "run")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_files_of_others_are_not_taken_for_a_new_run(tmp_path):
    kept = tmp_path / "run" / "checkpoints" / "mine.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    with pytest.raises(RunError, match=r"holds a run already \(checkpoints\)"):
        start(in_process(tmp_path))
    assert kept.read_text() == "mine"


def test_metrics_are_strict_json(uninterrupted):
    for line in (uninterrupted / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


BEST = {
    **CONFIG,
    "negatives": {"type": "in_batch"},
    "eval": {"every": 5},
    "run": {**CONFIG["run"], "keep_best": "knn_accuracy", "checkpoint_every": 12},
}


def evaluations(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == "eval" and row["step"] > 0]


@pytest.mark.parametrize(("measure", "sign"), [("knn_accuracy", 1), ("-uniformity", -1)])
def test_the_best_checkpoint_is_kept_and_reported(tmp_path, measure, sign):
    start(parse({**BEST, "run": {**BEST["run"], "keep_best": measure, "dir": str(tmp_path / "run")}})[0])
    name = measure.removeprefix("-")
    rows = evaluations(tmp_path / "run")[:-1]  # the last one is of all measures, over more rows
    best = max(rows, key=lambda row: (sign * row[name], -row["step"]))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    if summary["best_step"] == STEPS:  # the last step is judged, too
        assert sign * summary[f"best_{name}"] > sign * best[name]
    else:
        assert (summary["best_step"], summary[f"best_{name}"]) == (best["step"], best[name])
    assert evaluate(tmp_path / "run", best=True)["steps"] == summary["best_step"]


def test_a_run_ends_when_nothing_better_comes_and_resumes_to_the_same_end(tmp_path):
    options = {**BEST["run"], "keep_best": "-mean_cosine", "patience": 2, "steps": 200}
    folder = tmp_path / "run"
    start(parse({**BEST, "optim": {"lr": 1e-6}, "run": {**options, "dir": str(folder)}})[0])
    rows, whole = evaluations(folder), (folder / "metrics.jsonl").read_bytes()
    values = [row["mean_cosine"] for row in rows[:-1]]
    last = rows[-1]["step"]
    assert last < 200
    assert min(values) not in values[-2:]
    for step in checkpoint.steps(folder / "checkpoints")[1:]:
        shutil.rmtree(folder / "checkpoints" / f"step_{step:08d}")
    resume(folder)
    assert (folder / "metrics.jsonl").read_bytes() == whole
    resume(folder)  # one that has ended stays ended
    assert json.loads((folder / "summary.json").read_text())["steps"] == last


def test_a_measure_that_is_not_there_is_told_before_the_first_step(tmp_path):
    with pytest.raises(RunError, match=r"eval measures .*knn_accuracy"):
        start(parse({**BEST, "run": {**BEST["run"], "keep_best": "recall@1", "dir": str(tmp_path / "run")}})[0])
    with pytest.raises(ConfigError, match=r"set run.keep_best"):
        parse({**BEST, "run": {**CONFIG["run"], "patience": 3}})
    start(parse({**CONFIG, "run": {**CONFIG["run"], "steps": 8, "dir": str(tmp_path / "run")}})[0], overwrite=True)
    with pytest.raises(RunError, match="no best checkpoint"):
        evaluate(tmp_path / "run", best=True)


def test_a_rate_at_which_training_diverges_ends_as_divergence(tmp_path):
    options = {**CONFIG["run"], "dir": str(tmp_path / "run"), "precision": "float32"}
    config = {**CONFIG, "negatives": {"type": "in_batch"}, "optim": {"lr": 1e9}, "run": options}
    with pytest.raises(NonFiniteError, match=r"lower optim.lr") as caught:
        start(parse(config)[0])
    assert caught.value.exit_code == 3
