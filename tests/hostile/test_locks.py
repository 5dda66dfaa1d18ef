"""Several writers at one name: one has it, each other one is refused at once, and nothing is ever half of both."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from negbank import EmbeddingBank, files, mine_hard_negatives, owner
from negbank.owner import LOCK, OwnedError, owned
from negbank.train.commands import main
from negbank.train.config import parse
from negbank.train.run import RunError, evaluate, resume, start

PROCESSES, ROUNDS = 5, 40


def child(work: Callable[[], object]) -> int:
    """A forked process that does the work; its number."""
    number = os.fork()
    if number == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return number


@contextmanager
def held(folder: Path):
    """Another process owns the folder inside; its number."""
    read, write = os.pipe()

    def hold() -> None:
        with owned(folder):
            os.write(write, b"!")
            time.sleep(600)

    number = child(hold)
    os.read(read, 1)
    try:
        yield number
    finally:
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
        os.close(read), os.close(write)


def all_end_well(work: Callable[[int], object]) -> None:
    numbers = [child(lambda k=k: work(k)) for k in range(PROCESSES)]
    assert [os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in numbers] == [0] * PROCESSES


def test_a_second_process_is_refused_by_name_and_a_kill_frees_the_folder(tmp_path):
    with held(tmp_path / "a" / "b") as number:
        with pytest.raises(OwnedError, match=rf"b: process {number} on .* is writing here; wait for it or stop it"):
            owned(tmp_path / "a" / "b").__enter__()
        assert (tmp_path / "a" / "b" / LOCK).exists()
    with owned(tmp_path / "a" / "b"):  # the kill left the file, and the lock ended with the process
        assert str(os.getpid()) in (tmp_path / "a" / "b" / LOCK).read_text()
        with pytest.raises(OwnedError, match=rf"this process \({os.getpid()}\) is writing here"):
            owned(tmp_path / "a" / ".." / "a" / "b").__enter__()
    assert list((tmp_path / "a" / "b").iterdir()) == []
    with owned(tmp_path / "c" / "d"):
        pass
    assert not (tmp_path / "c").exists()  # made, and empty


def test_a_child_has_no_part_in_the_lock(tmp_path):
    def look() -> None:
        with pytest.raises(OwnedError, match=f"process {os.getppid()} on"), owned(tmp_path / "a"):
            pass

    with owned(tmp_path / "a"):
        assert os.waitpid(child(look), 0)[1] == 0
        assert os.waitpid(child(look), 0)[1] == 0  # the first has freed nothing
        assert (tmp_path / "a" / LOCK).exists()


def test_no_two_are_inside_at_once(tmp_path):
    """200 turns of five processes, and as many of five threads."""

    def turns(k: int) -> None:
        rng, done = np.random.default_rng(k), 0
        while done < ROUNDS:
            try:
                with owned(tmp_path / "a"):
                    os.close(os.open(tmp_path / "inside", os.O_CREAT | os.O_EXCL))  # fails if somebody is there
                    time.sleep(rng.random() / 2000)
                    os.unlink(tmp_path / "inside")
                done += 1
            except OwnedError:
                time.sleep(rng.random() / 1000)

    all_end_well(turns)
    ended = []
    threads = [threading.Thread(target=lambda k=k: (turns(k), ended.append(k))) for k in range(PROCESSES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == list(range(PROCESSES))


def test_a_file_that_several_write_is_one_of_theirs(tmp_path):
    def turns(k: int) -> None:
        done = 0
        while done < ROUNDS:
            try:
                files.write(tmp_path / "a", bytes([65 + k]) * 5000)
                done += 1
            except OwnedError:
                pass
            content = (tmp_path / "a").read_bytes() if (tmp_path / "a").exists() else b""
            assert content == content[:1] * len(content)
            assert len(content) in (0, 5000)

    all_end_well(turns)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_several_make_is_made_by_one(tmp_path):
    def turns(k: int) -> None:
        for turn in range(ROUNDS):
            try:
                with files.folder(tmp_path / str(turn), {"by": k}) as draft:
                    for name in "abc":
                        (draft / name).write_text(f"{k}")
            except (OwnedError, FileExistsError):
                pass

    all_end_well(turns)
    for turn in range(ROUNDS):
        by = files.manifest(tmp_path / str(turn))["by"]
        assert {(tmp_path / str(turn) / name).read_text() for name in "abc"} == {str(by)}
    assert len(list(tmp_path.iterdir())) == ROUNDS


def test_what_several_keep_is_kept(tmp_path):
    def turns(k: int) -> None:
        for turn in range(ROUNDS):
            owner.sweep(tmp_path, f"*{files.DRAFT}")
            files.keep(tmp_path / f"{turn}.npy", f"content of {turn}")
            assert files.kept(tmp_path / f"{turn}.npy").read_text() == f"content of {turn}"

    all_end_well(turns)
    assert len(list(tmp_path.iterdir())) == ROUNDS


def test_a_sweep_leaves_what_somebody_is_writing(tmp_path):
    (tmp_path / "dead.tmp").write_text("half")
    (tmp_path / "dead_folder.tmp").mkdir()
    (tmp_path / "dead_folder.tmp" / "a").write_text("half")
    with held(tmp_path / "alive_folder.tmp"):
        owner.sweep(tmp_path, "*.tmp")
        assert [path.name for path in tmp_path.iterdir()] == ["alive_folder.tmp"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, code):
    def none(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(owner.fcntl, "flock", none)
    with pytest.warns(UserWarning, match=r"has no locks .*start one only"), owned(tmp_path / "a"):
        (tmp_path / "a" / "b").write_text("")


def test_other_errors_of_a_lock_pass(tmp_path, monkeypatch):
    def fails(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(owner.fcntl, "flock", fails)
    with pytest.raises(OSError, match="Input/output error"), owned(tmp_path / "a"):
        pass


CONFIG = {
    "data": {"type": "digits", "rows": 60}, "batches": {"batch_size": 8}, "negatives": {"type": "in_batch"},
    "encoder": {"width": 4, "features": 8, "projector": {"hidden": 8, "dim": 4}},
    "eval": {"every": 99, "max_rows": 20, "global_rows": 20},
}  # fmt: skip


def test_a_run_has_one_owner(tmp_path):
    folder = tmp_path / "run"
    config = parse({**CONFIG, "run": {"dir": str(folder), "steps": 2}})[0]
    with held(folder) as number:
        with pytest.raises(OwnedError, match=rf"run\.dir={folder}: process {number} on .* is writing here"):
            start(config)
        with pytest.raises(OwnedError, match=f"process {number} on"):
            start(config, overwrite=True)
        assert [path.name for path in folder.iterdir()] == [LOCK]
    start(config)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with held(folder) as number:
        with pytest.raises(OwnedError, match=f"process {number} on"):
            resume(folder)
        assert evaluate(folder)["steps"] == 2  # only looks
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != LOCK} == before
    with pytest.raises(RunError, match="holds a run already"):
        start(config)
    assert not (folder / LOCK).exists()


def test_mining_has_one_owner_and_says_so_before_it_reads(tmp_path, capsys):
    rows = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    with held(tmp_path / "m") as number:
        with pytest.raises(OwnedError, match=rf"out={tmp_path / 'm'}: process {number} on .* is writing here"):
            mine_hard_negatives(None, tmp_path / "is not there.npy", out=tmp_path / "m")
        assert main(["mine", "--corpus", str(tmp_path / "none.npy"), "--out", str(tmp_path / "m")]) == 1
        assert f"process {number} on" in capsys.readouterr().err
    mine_hard_negatives(None, rows, [[] for _ in rows], out=tmp_path / "m")
    assert not (tmp_path / "m" / LOCK).exists()


def test_studies_have_one_owner(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32))
    (tmp_path / "ablate.yaml").write_text(f"source: {{type: npy, path: {tmp_path}/x.npy}}\nout: {tmp_path}/out\n")
    (tmp_path / "compare.yaml").write_text(
        f"base: {{data: {{type: digits}}}}\nmethods: {{a: {{}}}}\nout: {tmp_path}/out\n"
    )
    with held(tmp_path / "out") as number:
        for verb in ("ablate", "compare"):
            overrides = ["base.run.steps=2"] if verb == "compare" else []
            assert main([verb, str(tmp_path / f"{verb}.yaml"), *overrides]) == 1
            assert f"process {number} on" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]


def test_a_mapped_bank_is_open_in_one_process(tmp_path):
    def refused() -> None:
        with pytest.raises(OwnedError, match=f"process {os.getppid()} on"):
            EmbeddingBank(5, 2, path=tmp_path)

    bank, again = EmbeddingBank(5, 2, path=tmp_path), EmbeddingBank(5, 2, path=tmp_path)  # in one as often as liked
    for _ in range(2):
        assert os.waitpid(child(refused), 0)[1] == 0
        again = bank
    del bank, again
    assert os.waitpid(child(lambda: EmbeddingBank(5, 2, path=tmp_path)), 0)[1] == 0
    assert not (tmp_path / LOCK).exists()


def test_a_bank_that_the_disk_has_no_room_for_is_refused(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match=r"No space left on device: a bank needs 88 bytes there.*sums\.bin"):
            EmbeddingBank(10, 4, path=tmp_path / "b")
        assert not (tmp_path / "b").exists()

    def refuse(*arguments):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    for missing in (errno.EOPNOTSUPP, None):  # where nothing can be reserved, zeros are written
        with monkeypatch.context() as patch:
            if missing is None:
                patch.delattr(os, "posix_fallocate")
            else:
                patch.setattr(os, "posix_fallocate", refuse)
            EmbeddingBank(10, 400, path=tmp_path / str(missing))
        about = (tmp_path / str(missing) / "vectors.bin").stat()
        assert about.st_size == 16000 <= 512 * about.st_blocks
    EmbeddingBank(10, 400, path=tmp_path / "reserved")
    assert 512 * (tmp_path / "reserved" / "vectors.bin").stat().st_blocks >= 16000
