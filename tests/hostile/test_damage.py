"""Random damage to every kind of file that is read back: it is refused by name, or what it held is made again.

Bits are flipped, bytes overwritten, zeroed, cut off, doubled and added; each kind of file in at least 200 cases.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from negbank import EmbeddingBank, MiningResult, Snapshot, files, mine_hard_negatives
from negbank.mining import parts
from negbank.train import checkpoint
from negbank.train.mining.encoder import Encoder
from negbank.train.studies.ablation.measurement import MEASURES, Key, Measurement
from negbank.train.studies.ablation.store import VALUES, AblationError, Store
from negbank.train.studies.compare.processes import DIVERGENCE, diverged, finished
from negbank.train.studies.compare.trials import Trial

CASES = 200
CPU = torch.device("cpu")


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Other bytes than these."""
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 64))
    found = [
        data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :],
        data[:at],
        data[:at] + bytes(min(length, len(data) - at)) + data[at + length :],
        data[:at] + rng.bytes(min(length, len(data) - at)) + data[at + length :],
        data[:at] + data[at : at + length] + data[at:],
        data + rng.bytes(length),
    ][int(rng.choice(6, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1]))]
    return found if found != data else damaged(data, rng)


def cases(folder: Path, count: int = CASES, pattern: str = "*"):
    """Damages a file of the folder, any in turn; once it was looked at, the folder is as it was."""
    whole = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    hit = [path for path in whole if path.match(pattern)]
    rng = np.random.default_rng(len(whole))
    for case in range(count):
        path = hit[case % len(hit)]
        path.write_bytes(damaged(whole[path], rng))
        yield path
        for left in set(folder.rglob("*")) - set(whole):
            if left.is_file():
                left.unlink()
        for each, content in whole.items():
            if not each.exists() or each.read_bytes() != content:
                each.parent.mkdir(exist_ok=True)
                each.write_bytes(content)


def refuses(error: type[Exception], path: Path, call) -> None:
    """An error that names the damaged file, or where it is damaged the manifest that says what should be in it."""
    with pytest.raises(error) as told:
        call()
    assert str(path) in str(told.value) or str(path.parent / files.MANIFEST) in str(told.value)


@pytest.mark.parametrize("factory", ["exact", "IVF4,Flat"])
def test_snapshots(tmp_path, clustered, factory):
    written = torch.arange(120) % 6 != 0
    Snapshot.build(clustered(120), positives=clustered(120, seed=1), written=written, factory=factory).save(
        tmp_path / "s"
    )
    for path in cases(tmp_path / "s"):
        refuses(files.DamagedError, path, lambda: Snapshot.load(tmp_path / "s"))
    Snapshot.load(tmp_path / "s")


def test_checkpoints(tmp_path, clustered):
    snapshot = Snapshot.build(clustered(40), factory="exact")
    for step in (1, 2):
        state = {"trainer": {"step": step, "towers": [{"bank": torch.rand(5)}], "refreshers": [{}]}, "kept": {"a": 0.5}}
        checkpoint.save(tmp_path / "c", state, [snapshot], b'{"step": 1}\n' * step)
    for path in cases(tmp_path / "c" / "step_00000002"):
        refuses(checkpoint.CheckpointError, path, lambda: checkpoint.load(tmp_path / "c", device=CPU))
        passed_over: list[str] = []
        found = checkpoint.load(tmp_path / "c", device=CPU, passed_over=passed_over.append)
        assert found.state["trainer"]["step"] == 1
        assert found.metrics == b'{"step": 1}\n'
        assert [str(tmp_path / "c" / "step_00000002") in said for said in passed_over] == [True]
    assert checkpoint.load(tmp_path / "c", device=CPU).state["trainer"]["step"] == 2


def test_finished_runs_of_a_comparison(tmp_path):
    run = {"dir": str(tmp_path / "r")}
    trial = Trial("a", "steps", 0.1, 0, type("Config", (), {"run": type("Run", (), run)}))
    files.write(_made(tmp_path / "r") / "metrics.jsonl", '{"event": "step", "step": 1, "loss": 0.5}\n' * 9)
    files.write(tmp_path / "r" / "summary.json", json.dumps({"knn_accuracy": 0.8}))
    files.seal(tmp_path / "r", {"steps": 9}, ("metrics.jsonl", "summary.json"))
    assert finished(trial)
    for _ in cases(tmp_path / "r"):
        assert not finished(trial)  # so that it goes on from its checkpoint, and is written again
    for name in ("metrics.jsonl", "summary.json", files.MANIFEST):
        (tmp_path / "r" / name).unlink()
    files.write(tmp_path / "r" / DIVERGENCE, files.sealed({"said": "step 3: the loss is not finite"}))
    assert diverged(trial) == "step 3: the loss is not finite"
    for _ in cases(tmp_path / "r"):
        assert diverged(trial) is None
        assert not finished(trial)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def embeddings():
    rng = np.random.default_rng(0)
    return rng.standard_normal((30, 8)).astype(np.float32), rng.standard_normal((60, 8)).astype(np.float32)


def test_mining_results_are_refused_when_loaded(tmp_path, embeddings):
    mine_hard_negatives(*embeddings, out=tmp_path / "m", sampling_strategy="softmax")
    files.add(tmp_path / "m", "texts.json", json.dumps([["a"], ["b"]]))
    for path in cases(tmp_path / "m"):
        refuses(files.DamagedError, path, lambda: MiningResult.load(tmp_path / "m"))
    MiningResult.load(tmp_path / "m")


def test_mining_results_are_mined_again_when_asked_for(tmp_path, embeddings):
    whole = mine_hard_negatives(*embeddings, out=tmp_path / "m", range_max=6)
    ids, scores = whole.ids.tobytes(), whole.scores.tobytes()
    for path in cases(tmp_path / "m", 40, "*.npy"):
        with pytest.warns(UserWarning, match="mining again") as told:
            found = mine_hard_negatives(*embeddings, out=tmp_path / "m", range_max=6)
        assert str(path) in str(told[0].message)
        assert (found.ids.tobytes(), found.scores.tobytes()) == (ids, scores)


def a_part(number: int) -> parts.Part:
    rng = np.random.default_rng(number)
    counts = rng.integers(0, 4, 10)
    arrays = {"negatives": rng.integers(0, 99, counts.sum()), "scores": rng.random(counts.sum()).astype(np.float32)}
    return {"counts": counts, **arrays, "rejects": np.array([number, 1])}


def test_parts_are_mined_again(tmp_path):
    run = {"seed": 0}
    with parts.opened(tmp_path / "m", run, 10) as folder:
        for number in range(3):
            folder.put(number, a_part(number))
    for path in cases(tmp_path / "m" / "parts"):
        number = int(path.name[:8])
        with parts.opened(tmp_path / "m", run, 10) as folder:
            assert folder.missing(range(3)) == [number]
            with pytest.raises(parts.DamagedResultError, match=f"part {number} is not what was written; call again"):
                folder.finish(3, {}, {})
            folder.put(number, a_part(number))
            assert folder.missing(range(3)) == []


class Model(torch.nn.Module):
    """Encodes a text as its length, and counts."""

    def __init__(self):
        super().__init__()
        self.calls, self.weight = 0, torch.nn.Parameter(torch.ones(1))

    def encode(self, texts):
        self.calls += 1
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)


def test_cached_embeddings_are_encoded_again(tmp_path, monkeypatch):
    model, texts = Model(), ["a", "bb", "ccc"]
    monkeypatch.setattr("negbank.train.mining.encoder._found", lambda name: model)
    encoder = Encoder("m:m")
    whole = np.array(encoder.embed(texts, "query", None, tmp_path / "c", progress=False))
    encoder.embed(texts, "query", None, tmp_path / "c", progress=False)
    assert model.calls == 1
    for calls, _ in enumerate(cases(tmp_path / "c"), start=1):
        assert np.array_equal(encoder.embed(texts, "query", None, tmp_path / "c", progress=False), whole)
        assert model.calls == 1 + calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mapped_banks_lose_what_is_damaged_and_nothing_else(tmp_path, dtype):
    rows, written = torch.nn.functional.normalize(torch.randn(20, 5, generator=torch.Generator().manual_seed(0))), 15
    bank = EmbeddingBank(20, 5, dtype=dtype, path=tmp_path / "b")
    bank.write(torch.arange(written), rows[:written], step=7)
    vectors, steps = bank.vectors.clone(), bank.written_at.clone()
    del bank
    lost, refused = 0, []
    for path in cases(tmp_path / "b", 400):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                found = EmbeddingBank(20, 5, dtype=dtype, path=tmp_path / "b")
            except ValueError as error:
                refused.append(f"{path} holds" in str(error))
                continue
        same = (found.vectors == vectors).all(1) & (found.written_at == steps)
        assert torch.equal(same | (found.written_at == -1), torch.ones(20, dtype=torch.bool))
        assert found.vectors[found.written_at == -1].abs().sum() == 0
        assert told or same.all()
        if not same.all():
            lost += 1
            assert str(tmp_path / "b") in str(told[0].message)
            found.write((~same).nonzero().flatten(), rows[~same], step=7)  # made again
        assert torch.equal(found.vectors, vectors)
        del found
    assert all(refused)
    assert lost > 100


def test_a_bank_of_another_shape_or_dtype_is_refused_and_kept(tmp_path):
    bank = EmbeddingBank(6, 4, dtype=torch.float16, path=tmp_path)
    bank.write(torch.arange(6), torch.ones(6, 4), step=1)
    del bank
    for rows, dim, dtype in (
        (6, 4, torch.bfloat16),
        (6, 2, torch.float32),
        (4, 6, torch.float16),
        (6, 5, torch.float16),
    ):
        with pytest.raises(ValueError, match=r"path: .*\.bin holds .*; remove it"):
            EmbeddingBank(rows, dim, dtype=dtype, path=tmp_path)
    assert bool(EmbeddingBank(6, 4, dtype=torch.float16, path=tmp_path).written.all())
    (tmp_path / "sums.bin").unlink()  # a bank of an earlier version has none
    with pytest.raises(ValueError, match=r"has no sums.bin beside it.*remove it"):
        EmbeddingBank(6, 4, dtype=torch.float16, path=tmp_path)


def measurement(level: str) -> Measurement:
    values = {name: torch.rand(3, 2, dtype=torch.float64) for name in VALUES}
    return Measurement(Key("p", 0.1, level, "bank"), 0.5, torch.arange(3), (1, 2), values)


def test_ablations(tmp_path):
    assert set(MEASURES) <= set(VALUES)
    store = Store(tmp_path / "a", {"seed": 0})
    for level in ("one", "two", "three"):
        store.add(measurement(level))
    whole = store.done
    silent, refused = 0, []
    for path in cases(tmp_path / "a"):
        try:
            found = Store(tmp_path / "a", {"seed": 0}).done
        except AblationError as error:
            refused.append(str(path) in str(error))
            continue
        silent += 1  # an end that is missing, or that was added, is what a kill leaves: it is measured again
        for key, one in found.items():
            assert all(torch.equal(one.values[name], whole[key].values[name]) for name in VALUES)
    assert all(refused)
    assert silent < len(refused)
