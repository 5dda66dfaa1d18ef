"""Larger than memory, interrupted, on several processes: the result is that of one quiet run in memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from negbank import MiningResult, mine_hard_negatives
from negbank.mining.mine import Miner

ARGUMENTS = {"num_negatives": 4, "range_max": 30, "relative_margin": 0.02, "sampling_strategy": "softmax"}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture(scope="module")
def embeddings():
    generator = np.random.default_rng(0)
    corpus = generator.standard_normal((2000, 16)).astype(np.float32)
    return corpus[:500] + np.float32(0.3), corpus


def save(embeddings: tuple[np.ndarray, np.ndarray], folder: Path) -> None:
    for name, rows in zip("qc", embeddings):
        np.save(folder / f"{name}.npy", rows)


def same(a: MiningResult, b: MiningResult) -> None:
    for name in ("indptr", "ids", "scores", "log_probs", "positive_scores", "candidate_ids", "query_ids"):
        assert np.asarray(getattr(a, name)).tobytes() == np.asarray(getattr(b, name)).tobytes(), name
    assert a.rejects == b.rejects


@pytest.mark.parametrize("extra", [{}, {"dedupe": "near", "near": 0.6}, {"shortfall": "pad_random", "max_score": 0.2}])
def test_streamed_to_a_folder_and_interrupted_anywhere(embeddings, tmp_path, monkeypatch, extra):
    queries, corpus = embeddings
    arguments = {**ARGUMENTS, **extra}
    whole = mine_hard_negatives(queries, corpus, **arguments)
    made: list[int] = []
    part = Miner.part

    def counted(self, start, stop):
        if len(made) == 3 and start not in made:
            made.append(start)
            raise KeyboardInterrupt
        made.append(start)
        return part(self, start, stop)

    monkeypatch.setattr(Miner, "part", counted)
    with pytest.raises(KeyboardInterrupt):
        mine_hard_negatives(queries, corpus, query_batch=70, out=tmp_path / "r", **arguments)
    assert len(list((tmp_path / "r" / "parts").glob("*.npz"))) == 3
    result = mine_hard_negatives(queries, corpus, query_batch=99, out=tmp_path / "r", **arguments)
    assert made == [0, 70, 140, 210, 210, 280, 350, 420, 490]
    same(result, whole)
    assert isinstance(result.scores, np.memmap)
    assert not (tmp_path / "r" / "parts").exists()
    same(mine_hard_negatives(queries, corpus, out=tmp_path / "r", **arguments), whole)  # a finished run is read
    assert len(made) == 9
    same(MiningResult.load(tmp_path / "r"), whole)


def test_another_run_does_not_go_on_in_the_same_folder(embeddings, tmp_path):
    queries, corpus = embeddings
    mine_hard_negatives(queries, corpus, out=tmp_path / "r", **ARGUMENTS)
    with pytest.raises(ValueError, match=r"holds another run \(num_negatives=4 there, 5 here\)"):
        mine_hard_negatives(queries, corpus, out=tmp_path / "r", **{**ARGUMENTS, "num_negatives": 5})
    changed = corpus.copy()
    changed[7, 3] += 1e-3
    with pytest.raises(ValueError, match=r"holds another run \(inputs="):
        mine_hard_negatives(queries, changed, out=tmp_path / "r", **ARGUMENTS)
    with pytest.raises(ValueError, match=r"holds another run \(inputs="):
        mine_hard_negatives(queries, corpus, exclude=[(0, 1)], out=tmp_path / "r", **ARGUMENTS)


def test_ctrl_c_and_kill_leave_whole_parts_only(embeddings, tmp_path):
    """A real process, interrupted in the middle; then killed; then left to finish."""
    queries, corpus = embeddings
    save(embeddings, tmp_path)
    script = tmp_path / "mine.py"
    script.write_text(
        textwrap.dedent(f"""
            import signal, sys, time
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background passes on to ignore it
            from negbank import mine_hard_negatives
            from negbank.mining.mine import Miner
            part = Miner.part
            def slow(self, start, stop):
                time.sleep(float(sys.argv[1]))
                return part(self, start, stop)
            Miner.part = slow
            arguments = {ARGUMENTS}
            mine_hard_negatives("{tmp_path}/q.npy", "{tmp_path}/c.npy", query_batch=50, out="{tmp_path}/r", **arguments)
        """)
    )
    for stop in (signal.SIGINT, signal.SIGKILL):
        before = len(list((tmp_path / "r" / "parts").glob("*.npz")))
        process = subprocess.Popen(
            [sys.executable, script, "0.4"], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "r" / "parts").glob("*.npz"))) == before and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(stop)
        _, told = process.communicate(timeout=60)
        assert process.returncode != 0
        assert stop == signal.SIGKILL or "KeyboardInterrupt" in told
        assert before < len(list((tmp_path / "r" / "parts").glob("*.npz"))) < 10
    subprocess.run([sys.executable, script, "0"], env=ENVIRONMENT, check=True, cwd=tmp_path)
    same(MiningResult.load(tmp_path / "r"), mine_hard_negatives(queries, corpus, **ARGUMENTS))


@pytest.mark.parametrize("streamed", [True, False])
def test_two_processes_give_the_result_of_one(embeddings, tmp_path, streamed):
    queries, corpus = embeddings
    save(embeddings, tmp_path)
    script = tmp_path / "mine.py"
    script.write_text(
        textwrap.dedent(f"""
            import torch
            from negbank import mine_hard_negatives
            torch.distributed.init_process_group("gloo")
            rank = torch.distributed.get_rank()
            out = "{tmp_path}/streamed" if {streamed} else None
            result = mine_hard_negatives("{tmp_path}/q.npy", "{tmp_path}/c.npy", query_batch=60, out=out, **{ARGUMENTS})
            result.save(f"{tmp_path}/rank{{rank}}")
            torch.distributed.destroy_process_group()
        """)
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    subprocess.run(command, env=ENVIRONMENT, check=True, cwd=tmp_path, timeout=120)
    one = mine_hard_negatives(queries, corpus, **ARGUMENTS)
    for rank in range(2):
        same(MiningResult.load(tmp_path / f"rank{rank}"), one)


def test_a_process_that_fails_fails_all(embeddings, tmp_path):
    script = tmp_path / "mine.py"
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "other").write_text("")
    script.write_text(
        textwrap.dedent(f"""
            import numpy as np, torch
            from negbank import mine_hard_negatives
            torch.distributed.init_process_group("gloo")
            try:
                mine_hard_negatives(None, np.eye(20, 6, dtype=np.float32) + 0.1, out="{tmp_path}/r")
            except ValueError as error:
                open(f"{tmp_path}/told{{torch.distributed.get_rank()}}", "w").write(str(error))
            torch.distributed.destroy_process_group()
        """)
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    subprocess.run(command, env=ENVIRONMENT, check=True, cwd=tmp_path, timeout=120)
    assert all("holds other files" in (tmp_path / f"told{rank}").read_text() for rank in range(2))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_peak_memory_stays_under_the_budget(tmp_path):
    """256 MB of corpus in float16 shards, in a process that may grow by 150 MB over what imports take."""
    generator = np.random.default_rng(0)
    for number in range(4):
        part = generator.standard_normal((250_000, 128), dtype=np.float32)
        np.save(tmp_path / f"{number}.npy", part.astype(np.float16))
    script = tmp_path / "mine.py"
    script.write_text(
        textwrap.dedent(f"""
            import numpy as np
            from pathlib import Path
            from negbank import mine_hard_negatives
            from negbank.mining.budget import resident_bytes
            queries = np.random.default_rng(1).standard_normal((300, 128)).astype(np.float32)
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
            budget = resident_bytes() + 150 * 2**20
            found = mine_hard_negatives(
                queries, sorted(Path("{tmp_path}").glob("?.npy")), [[] for _ in queries], num_negatives=50,
                memory_budget=budget, out="{tmp_path}/r",
            )
            peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
            print(int(peak) * 1024, budget)
        """)
    )
    told = subprocess.run([sys.executable, script], env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout
    peak, budget = map(int, told.split())
    assert peak < budget
    result = MiningResult.load(tmp_path / "r")
    queries = np.random.default_rng(1).standard_normal((300, 128)).astype(np.float32)
    scores = np.concatenate(
        [unit(queries[:5]) @ unit(np.load(tmp_path / f"{number}.npy").astype(np.float32)).T for number in range(4)], 1
    )
    for row in range(5):
        assert set(result[row][0]) == set(np.argsort(-scores[row])[:50])


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)
