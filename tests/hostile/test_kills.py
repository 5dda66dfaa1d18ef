"""A kill, or a power cut, at every change of the disk: what was there is there, or what was to be; and the next start
goes on and leaves nothing behind.

A forked child does the work and dies at its n-th opening for writing, rename, removal, making of a folder, truncation,
reservation or fsync, for all n. What no fsync had secured by then is cut at random, as after a power cut.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from negbank import EmbeddingBank, Snapshot, files
from negbank.mining import parts
from negbank.mining.formats import export
from negbank.owner import LOCK, owned
from negbank.train import checkpoint
from negbank.train.config import parse
from negbank.train.run import resume, start
from negbank.train.studies.ablation.measurement import Key, Measurement
from negbank.train.studies.ablation.store import VALUES, Store

CPU = torch.device("cpu")
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def states(root: Path) -> dict[int, tuple[Path, int, int]]:
    found = {}
    for parent, _, names in os.walk(root):
        for name in names:
            path = Path(parent) / name
            about = path.stat()
            found[about.st_ino] = (path, about.st_mtime_ns, about.st_size)
    return found


class Killed(BaseException):
    """What a kill is to a test that goes on: from then on nothing reaches the disk."""


class Killer:
    """Ends this process, or the work in it, at the n-th change of the disk below a folder; see above.

    Args:
        end: called instead of the change, and again at every later one.
    """

    def __init__(self, n: int, root: Path, end: Callable[[], object]) -> None:
        self.left, self.root, self._end, self.seen = n, root, end, 0
        self._rng = np.random.default_rng(n)
        self._secured = {number: about[1:] for number, about in states(root).items()}

    def change(self) -> None:
        self.seen += 1
        self.left -= 1
        if self.left == 0:
            for number, (path, modified, size) in states(self.root).items():
                if self._secured.get(number) != (modified, size):  # what was added since the last fsync
                    _, known = self._secured.get(number, (0, 0))
                    KILLERS.remove(self)
                    os.truncate(path, int(self._rng.integers(min(known, size), size + 1)))
                    KILLERS.append(self)
        if self.left <= 0:
            self._end()

    def fsync(self, handle: int) -> None:
        self.change()
        about = os.fstat(handle)
        self._secured[about.st_ino] = (about.st_mtime_ns, about.st_size)


KILLERS: list[Killer] = []  # at most one: an audit hook stays for good


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    changes = event in CHANGES or (event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
    if KILLERS and changes and "tensorboard" not in str(arguments[0]):  # whose thread must not die
        path = Path(os.path.abspath(str(arguments[0])))  # of what rmtree removes it may be the name alone
        if path.is_relative_to(KILLERS[0].root) or path.parent == Path.cwd():
            KILLERS[0].change()


sys.addaudithook(watch)


@pytest.fixture(autouse=True)
def fsync(monkeypatch):
    """What has to be secured is told by the killer; the disk itself need not do it."""
    monkeypatch.setattr(os, "fsync", lambda handle: KILLERS[0].fsync(handle) if KILLERS else None)
    reserve = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", lambda *given: (KILLERS and KILLERS[0].change(), reserve(*given)))


def killed(work: Callable[[], object], n: int, root: Path) -> bool:
    """Whether the work, in a child of its own, was ended by a kill at change n; it must not fail."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            KILLERS.append(Killer(n, root, lambda: os._exit(9)))
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def at_every_change(tmp_path: Path, prepare, work, look) -> int:
    """Kill `work(root)` at every change, look, and let it finish; the number of kills."""
    for n in itertools.count(1):
        root = tmp_path / str(n)
        root.mkdir()
        prepare(root)
        died = killed(functools.partial(work, root), n, root)
        look(root, finished=not died)
        work(root)
        look(root, finished=True)
        assert [path for path in root.rglob("*") if files.DRAFT in path.name] == []
        assert not (root / LOCK).exists()
        if not died:
            return n - 1


def test_checkpoints(tmp_path, clustered):
    snapshot = Snapshot.build(clustered(30), factory="exact")

    def save(root: Path, step: int) -> None:
        with owned(root):
            checkpoint.tidy(root / "c")
            state = {"trainer": {"step": step, "towers": [{}], "refreshers": [{}]}, "rows": torch.full((50,), step)}
            checkpoint.save(root / "c", state, [snapshot], b"row\n" * step)

    def prepare(root: Path) -> None:
        save(root, 1)
        save(root, 2)

    def look(root: Path, finished: bool) -> None:
        found = checkpoint.load(root / "c", device=CPU)
        step = found.state["trainer"]["step"]
        assert step == 3 if finished else step in (2, 3)
        assert found.metrics == b"row\n" * step
        assert bool((found.state["rows"] == step).all())
        assert torch.equal(found.snapshots[0].vectors, snapshot.vectors)
        if finished:
            assert checkpoint.steps(root / "c") == [2, 3]

    assert at_every_change(tmp_path, prepare, functools.partial(save, step=3), look) > 40


def a_part(number: int) -> parts.Part:
    rng = np.random.default_rng(number)
    counts = rng.integers(0, 4, 10)
    arrays = {"negatives": rng.integers(0, 99, counts.sum()), "scores": rng.random(counts.sum()).astype(np.float32)}
    return {"counts": counts, **arrays, "rejects": np.array([number, 1])}


def test_mining(tmp_path):
    def work(root: Path) -> None:
        with parts.opened(root / "m", {"seed": 0}, 10) as folder:
            if folder.complete:
                return
            for number in folder.missing(range(3)):
                folder.put(number, a_part(number))
            folder.finish(3, {"positives": np.arange(4)}, {"queries": 30})

    def look(root: Path, finished: bool) -> None:
        if not finished:
            return
        arrays, manifest = parts.read_result(root / "m")
        assert manifest["rejects"] == [3, 3]
        assert np.array_equal(arrays["positives"], np.arange(4))
        for name in ("negatives", "scores"):
            assert np.array_equal(arrays[name], np.concatenate([a_part(number)[name] for number in range(3)]))
        counts = np.concatenate([a_part(number)["counts"] for number in range(3)])
        assert np.array_equal(arrays["indptr"], np.append(0, counts.cumsum()))
        assert {path.stem for path in (root / "m").iterdir()} == {*arrays, "manifest"}

    assert at_every_change(tmp_path, lambda root: None, work, look) > 50


def test_a_part_that_was_made_is_not_made_again(tmp_path):
    """Of parts that `put` returned from none is lost."""
    for n in itertools.count(1, 3):
        root = tmp_path / str(n)
        root.mkdir()

        told = os.pipe()

        def work(root: Path = root, tell: int = told[1]) -> None:
            with parts.opened(root / "m", {}, 10) as folder:
                for number in range(3):
                    folder.put(number, a_part(number))
                    os.write(tell, b".")

        died = killed(work, n, root)
        os.close(told[1])
        with os.fdopen(told[0], "rb") as pipe:
            done = len(pipe.read())
        with parts.opened(root / "m", {}, 10) as folder:
            assert set(folder.missing(range(3))) <= set(range(done, 3))
        if not died:
            return


def test_results_and_their_texts(tmp_path):
    arrays = {"ids": np.arange(9), "scores": np.ones(9)}

    def work(root: Path) -> None:
        with owned(root):
            if not (root / "r").exists():
                parts.write_result(root / "r", arrays, {"queries": 3})
            if "texts.json" not in files.told(root / "r")["sha256"]:
                files.add(root / "r", "texts.json", '["a", "b"]')

    def look(root: Path, finished: bool) -> None:
        if finished or (root / "r").exists():
            found, manifest = parts.read_result(root / "r")
            assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
            if finished or "texts.json" in manifest["sha256"]:
                assert (root / "r" / "texts.json").read_text() == '["a", "b"]'

    assert at_every_change(tmp_path, lambda root: None, work, look) > 15


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_exports_and_reports(tmp_path, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    rows = [{"anchor": f"a{i}", "positive": "p", "negative": "n"} for i in range(50)]
    export(iter(rows), tmp_path / f"new{ending}")
    new = (tmp_path / f"new{ending}").read_bytes()

    def look(root: Path, finished: bool) -> None:
        assert (root / f"x{ending}").read_bytes() in ([new] if finished else [b"old", new])

    def prepare(root: Path) -> None:
        files.write(root / f"x{ending}", b"old")

    kills = at_every_change(tmp_path, prepare, lambda root: export(iter(rows), root / f"x{ending}"), look)
    assert kills >= 4


def test_kept_files(tmp_path):
    def work(root: Path) -> None:
        if files.kept(root / "key.npy") is None:
            files.sweep(root, f"*{files.DRAFT}")
            files.keep(root / "key.npy", b"content")

    def look(root: Path, finished: bool) -> None:
        found = files.kept(root / "key.npy")
        assert found is not None or not finished
        assert found is None or found.read_bytes() == b"content"

    assert at_every_change(tmp_path, lambda root: None, work, look) >= 4


def test_ablations(tmp_path):
    values = {name: torch.arange(6, dtype=torch.float64).view(3, 2) / 7 for name in VALUES}
    levels = ("one", "two", "three")

    def work(root: Path, levels: tuple[str, ...] = levels) -> None:
        with owned(root):
            store = Store(root / "a", {"seed": 0})
            for level in levels:
                if Key("p", 0.1, level, "bank") not in store.done:
                    store.add(Measurement(Key("p", 0.1, level, "bank"), 0.5, torch.arange(3), (1, 2), values))

    def look(root: Path, finished: bool) -> None:
        found = Store(root / "a", {"seed": 0}).done
        assert len(found) == 3 if finished else len(found) >= 1  # the first was there before
        for one in found.values():
            assert all(torch.equal(one.values[name], values[name]) for name in VALUES)

    assert at_every_change(tmp_path, lambda root: work(root, levels[:1]), work, look) >= 5


def test_making_a_mapped_bank(tmp_path):
    def look(root: Path, finished: bool) -> None:
        bank = EmbeddingBank(9, 4, path=root / "b")
        assert not bank.written.any()
        assert bank.statistics(5).coverage == 0
        assert bank.vectors.abs().sum() == 0

    def work(root: Path) -> None:
        EmbeddingBank(9, 4, path=root / "b")

    assert at_every_change(tmp_path, lambda root: None, work, look) > 10


@pytest.mark.filterwarnings("ignore:.*are not what was written")
def test_writing_to_a_mapped_bank(tmp_path):
    """Killed before, in the middle of, and after each of the three arrays that a write changes."""
    rows = torch.nn.functional.normalize(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)))
    old, new = torch.arange(30), torch.arange(10, 40)

    def die(at: int, share: float) -> None:
        calls, put = itertools.count(), torch.Tensor.__setitem__

        def half(self: torch.Tensor, key: torch.Tensor, value: Any) -> None:
            if next(calls) == at:
                some = int(len(key) * share)
                put(self, key[:some], value[:some] if isinstance(value, torch.Tensor) else value)
                os._exit(9)
            put(self, key, value)

        torch.Tensor.__setitem__ = half

    for at, share in itertools.product(range(3), (0, 0.3, 0.5, 1)):
        path = tmp_path / f"{at}-{share}"
        bank = EmbeddingBank(40, 4, path=path)
        bank.write(old, rows[old], step=1)
        del bank

        def work(path: Path = path, at: int = at, share: float = share) -> None:
            bank = EmbeddingBank(40, 4, path=path)
            die(at, share)
            bank.write(new, rows[new] + 0.1, step=2)

        assert killed(work, 10**9, path)
        found = EmbeddingBank(40, 4, path=path)
        wanted = torch.nn.functional.normalize(rows[new] + 0.1)
        for row in range(40):
            step = int(found.written_at[row])
            if step == 1:
                assert torch.allclose(found.vectors[row], rows[row], atol=1e-6)
            elif step == 2:
                assert torch.allclose(found.vectors[row], wanted[row - 10], atol=1e-6)
            else:
                assert (step, float(found.vectors[row].abs().sum())) == (-1, 0.0)
        assert bool((found.written_at[:10] == 1).all())  # what the write did not touch
        del found


def test_runs(tmp_path):
    """A whole run, killed at changes of the disk that lie evenly over it, ends as one that was not."""
    config = {
        "data": {"type": "digits", "rows": 60}, "batches": {"batch_size": 8}, "negatives": {"type": "in_batch"},
        "encoder": {"width": 4, "features": 8, "projector": {"hidden": 8, "dim": 4}},
        "eval": {"every": 99, "max_rows": 20, "global_rows": 20},
    }  # fmt: skip

    def work(root: Path) -> None:
        if (root / "run" / "config.yaml").exists():
            resume(root / "run")
        else:
            run = {"steps": 4, "log_every": 1, "checkpoint_every": 2, "dir": str(root / "run")}
            start(parse({**config, "run": run})[0])

    def die() -> None:
        raise Killed

    def killed_at(n: int, root: Path) -> Killer:
        root.mkdir()
        KILLERS.append(Killer(n, root, die))
        try:
            work(root)
        except Killed:
            pass
        finally:
            killer = KILLERS.pop()
        return killer

    changes = killed_at(10**9, tmp_path / "whole").seen
    whole = (tmp_path / "whole" / "run" / "metrics.jsonl").read_bytes()
    assert changes > 60
    for n in range(2, changes, changes // 7):
        root = tmp_path / str(n)
        assert killed_at(n, root).left <= 0
        work(root)
        files.manifest(root / "run")
        assert (root / "run" / "metrics.jsonl").read_bytes() == whole
        assert checkpoint.steps(root / "run" / "checkpoints") == [2, 4]
        assert [path for path in (root / "run").rglob("*") if files.DRAFT in path.name or path.name == LOCK] == []
