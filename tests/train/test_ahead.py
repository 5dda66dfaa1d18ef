"""Reading ahead cannot be seen: rows, views and checkpoints are those of reading in the step."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import dropout
from torch.utils.data import TensorDataset

from negbank import EmbeddingBank, Refresher, Snapshot
from negbank.counter import Counter
from negbank.proposals import HeadTail
from negbank.samplers.batches import ProSampler, UniformBatches
from negbank.samplers.negatives import Emc2, Hardest, Importance, Mined, NegativeCache
from negbank.train.data.ahead import Ahead
from negbank.train.data.contract import Data
from negbank.train.data.dataset import FromDataset
from negbank.train.data.images import Augment, Files, ImageArray, ImageData, ImageFiles
from negbank.train.data.tensors import tensors
from negbank.train.towers import Tower
from negbank.train.trainer import Trainer

N, B, STEPS = 40, 8, 14
CPU = torch.device("cpu")


def pixels(seed: int = 0, side: int = 12) -> Tensor:
    return torch.randint(0, 256, (N, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def images() -> Data:
    return ImageData(ImageArray(pixels()), Augment(channels=3, size=12))


def files(folder: Path) -> Data:
    for row, image in enumerate(pixels(1)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{row:02}.png")
    found = Files(folder)
    return ImageData(ImageFiles(found, found.names, size=12), Augment(channels=3, size=12))


def every_kind(folder: Path) -> list[Data]:
    """Images in memory and in files, a mapped file, and a data set whose view draws from torch's global generator."""
    x = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
    np.save(folder / "x.npy", x.numpy())
    mapped = tensors(str(folder / "x.npy"), holdout=0.0, noise=0.1).train
    return [images(), files(folder), mapped, FromDataset(TensorDataset(x), view=functools.partial(dropout, p=0.5))]


def seeds(step: int, tower: int, slots: Tensor) -> Tensor:
    return Counter.of(3).at("views", step, tower).seeds(slots)


def prosampler() -> ProSampler:
    return ProSampler(N, B, candidates=20, neighbors=8, counter=Counter.of(1))


def made(data: list[Data], batches: Any = None, *, workers: int = 0, views: int = 2, piece: int | None = None) -> Ahead:
    batches = prosampler() if batches is None else batches
    return Ahead(data, batches, seeds=seeds, views=views, piece=piece, workers=workers, device=CPU)


class Steps:
    """A run without an encoder: rows are their own embeddings, and move a little at every step."""

    def __init__(self, ahead: Ahead, every: int) -> None:
        self.ahead, self.bank = ahead, EmbeddingBank(N, 6)
        rows = torch.randn(N, 6, generator=torch.Generator().manual_seed(2))
        self.bank.write(torch.arange(N), rows, step=0)
        self.refresher = Refresher(self.bank, every=every, mode="rolling", probe_rows=8)

    def __call__(self, first: int, last: int, fetch: Any = None) -> list[Any]:
        found = []
        for step in range(first, last):
            report = self.refresher.step(step)
            if report is not None and report.swapped:
                self.ahead.update(self.refresher.snapshot)
            rows, inputs, *_ = self.ahead.next(step)
            noise = torch.randn(B, 6, generator=Counter.of(step).generator())
            self.bank.write(rows, self.bank.read(rows) + 0.3 * noise, step=step + 1)
            found.append((rows, [torch.cat(list(pieces)) for pieces in inputs]))
        return found


def same(left: list[Any], right: list[Any]) -> bool:
    return all(
        torch.equal(a, b) and len(x) == len(y) and all(map(torch.equal, x, y)) for (a, x), (b, y) in zip(left, right)
    ) and len(left) == len(right)


def equal_states(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return all(torch.equal(v, right[k]) if isinstance(v, Tensor) else v == right[k] for k, v in left.items())


def test_workers_change_nothing(tmp_path: Path) -> None:
    """With snapshots at every step, and now and then within an epoch of five batches and across."""
    data = every_kind(tmp_path)
    state = torch.get_rng_state()
    for every, workers in ((1, 2), (3, 1)):
        here, ahead = made(data), made(data, workers=workers)
        assert same(Steps(ahead, every)(0, STEPS), Steps(here, every)(0, STEPS))
        assert equal_states(here.state_dict(), ahead.state_dict())
        ahead.close()
    assert torch.equal(state, torch.get_rng_state())


def test_inputs_are_all_first_views_then_all_second_ones(tmp_path: Path) -> None:
    data = [images(), files(tmp_path)]
    rows, inputs, *_ = made(data, UniformBatches(N, B)).next(7)
    for tower, ((found,), each) in enumerate(zip(inputs, data)):
        assert torch.equal(found, each.read(torch.cat((rows, rows)), seeds(7, tower, torch.arange(2 * B))))
    assert made(data, UniformBatches(N, B), views=1).next(0).inputs[0][0].shape == (B, 3, 12, 12)


@pytest.mark.parametrize(("piece", "workers"), [(1, 0), (5, 0), (5, 1), (100, 0)])
def test_pieces_are_the_whole(piece: int, workers: int) -> None:
    whole, ahead = made([images()]).next(0), made([images()], workers=workers, piece=piece)
    rows, (parts,), *_ = ahead.next(0)
    assert torch.equal(rows, whole.rows)
    assert [len(part) for part in parts] == [piece] * (16 // piece) + [16 % piece] * (16 % piece > 0)
    assert torch.equal(torch.cat(parts), whole.inputs[0][0])
    ahead.close()


@pytest.mark.parametrize(("stop", "workers"), [(1, 0), (4, 2), (5, 0), (5, 2), (9, 2)])
def test_a_run_resumed_with_other_workers_goes_on_alike(stop: int, workers: int) -> None:
    """Stopped in the middle and at the end of an epoch."""
    data = [images()]
    whole = Steps(made(data), 4)(0, STEPS)
    before = Steps(made(data, workers=2 - workers), 4)
    begun = before(0, stop)
    after = Steps(made(data, workers=workers), 4)
    after.bank.load_state_dict(before.bank.state_dict())
    snapshot = before.refresher.snapshot
    after.refresher.load_state_dict(before.refresher.state_dict(), snapshot)
    if snapshot is not None:
        after.ahead.update(snapshot)
    after.ahead.load_state_dict(before.ahead.state_dict())
    assert same(begun + after(stop, STEPS), whole)
    before.ahead.close()
    after.ahead.close()


@pytest.mark.parametrize("reads_snapshot", [False, True])
def test_only_batches_without_a_snapshot_are_read_ahead_across_epochs(reads_snapshot: bool) -> None:
    """A plan made just before the snapshot of a new epoch would be made in vain."""
    batches = UniformBatches(N, B, counter=Counter.of(0))
    batches.reads_snapshot = reads_snapshot
    ahead = made([images()], batches, workers=1)
    for step in range(4):
        ahead.next(step)
    assert (ahead.state_dict()["epoch"], ahead.state_dict()["position"]) == (0, 4)
    assert (batches.state_dict()["epoch"], batches.state_dict()["position"]) == (1, 0 if reads_snapshot else 1)
    ahead.close()


def test_drawn_rows_are_read_at_once() -> None:
    data = images()
    ahead = made([data, data], piece=3)
    rows, mine = torch.tensor([4, 4, 9, 1, 0]), torch.arange(5)
    parts = ahead.read(1, rows, mine)
    assert [len(part) for part in parts] == [3, 2]
    assert torch.equal(torch.cat(parts), data.read(rows, mine))
    assert ahead.read(0, rows[:0], mine[:0])[0].shape == (0, 3, 12, 12)


def test_a_file_that_cannot_be_read_is_named_by_the_step_that_needs_it(tmp_path: Path) -> None:
    data = files(tmp_path)
    ahead = made([data], UniformBatches(N, N), workers=1, views=1)
    (tmp_path / "03.png").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"^1 unreadable file.*'03\.png'.*Repair or remove these files$"):
        ahead.next(0)
    ahead.close()


DIES = """
import torch
from negbank.samplers.batches import UniformBatches
from negbank.train.data.ahead import Ahead
from negbank.train.data.tensors import TensorData

if __name__ == "__main__":
    cpu, seeds = torch.device("cpu"), lambda step, tower, slots: slots
    data = [TensorData(torch.zeros(40, 3))]
    ahead = Ahead(data, UniformBatches(40, 8), seeds=seeds, views=2, piece=None, workers=1, device=cpu)
    ahead.next(0)
    ahead._loader._iterator._workers[0].kill()
    for step in range(1, 99):
        ahead.next(step)
"""


def test_a_worker_that_dies_is_one_clear_error(tmp_path: Path) -> None:
    """In a process of its own: torch's signal handler may speak first, wherever the program is."""
    (tmp_path / "dies.py").write_text(DIES)
    done = subprocess.run([sys.executable, tmp_path / "dies.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    # as a traceback or, where the handler spoke while the interpreter ended, as the repr of the same error
    said = r"RuntimeError(: |\([\"'])(data\.workers=1: a worker died|DataLoader worker \(pid)"
    assert re.search(said, done.stderr, re.MULTILINE), done.stderr


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. "),
        ConnectionResetError(104, "Connection reset by peer"),  # while a tensor of its was being fetched
        EOFError(),
    ],
)
def test_what_is_said_of_a_dead_worker(error: Exception) -> None:
    ahead = made([images()])
    ahead._workers = 3

    class Dead:
        def __iter__(self) -> Any:
            raise error

    with pytest.raises(
        RuntimeError, match=re.escape(f"data.workers=3: a worker died ({str(error) or 'EOFError'}); it may")
    ):
        ahead._answer(Dead())  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_data_that_cannot_be_sent_is_named() -> None:
    data = images()
    data.augment = lambda images, seeds: images  # type: ignore[attr-defined]
    ahead = made([data], workers=1)
    with pytest.raises(ValueError, match=r"^data\.workers=1: the data cannot be sent to another process .*workers=0$"):
        ahead.next(0)


NEGATIVES: dict[str, Callable[[], Any]] = {
    "emc2": lambda: Emc2(N, temperature=0.2, proposal=near, draws=2),
    "emc2, delayed": lambda: Emc2(N, temperature=0.2, proposal=near, score="delayed"),
    "importance": lambda: Importance(N, temperature=0.2, proposal=near, draws=6),
    "hardest": lambda: Hardest(N, temperature=0.2, k=2),
    "mined": lambda: Mined(N, temperature=0.2, draws=2, range_max=8, pick="random", perc_pos=0.95),
    "cache, by index": lambda: NegativeCache(N, temperature=0.2, search="index", k=6),
    "cache": lambda: NegativeCache(N, temperature=0.2),
    "fresh queries": lambda: Importance(N, temperature=0.2, proposal=near, draws=6, query="fresh"),
}


def near(snapshot: Snapshot) -> HeadTail:
    return HeadTail(snapshot, k=6, temperature=0.2, floor=0.2)


class Width(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.normalize(self.layer(x), dim=1)


@pytest.mark.parametrize("name", NEGATIVES)
def test_drawn_rows_are_read_with_their_batch_and_change_nothing(name: str, tmp_path: Path) -> None:
    """Across epochs of five batches, where a batch may meet rows of one that is waiting, and over refreshes."""
    x = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "x.npy", x.numpy())
    data = tensors(str(tmp_path / "x.npy"), holdout=0.0, noise=0.1).train
    ended = []
    for workers in (0, 1):
        torch.manual_seed(0)
        encoder, bank = Width(), EmbeddingBank(N, 4)
        tower = Tower(encoder, data, bank, NEGATIVES[name](), Refresher(bank, every=7, unit="steps", factory="exact"))
        trainer = Trainer(
            [tower], batches=UniformBatches(N, B), optimiser=torch.optim.SGD(encoder.parameters(), lr=0.2),
            schedule=lambda step: 1.0, temperature=0.2, counter=Counter.of(3), device=CPU, workers=workers,
            autocast=functools.partial(torch.autocast, "cpu", enabled=False),
        )  # fmt: skip
        ahead, together = trainer._ahead, 0
        fetch = ahead.next

        def counted(step: int, fetch: Any = fetch) -> Any:
            nonlocal together
            fetched = fetch(step)
            together += fetched.tickets is not None
            return fetched

        ahead.next = counted  # type: ignore[method-assign]
        for _ in range(24):
            trainer.refresh()
            trainer.step()
        ended.append((encoder.layer.weight.detach().clone(), bank.vectors.clone()))
        ahead.close()
        early = workers and tower.negatives.draws_ahead
        assert (12 <= together < 24) if early else together == 0
    for left, right in zip(*ended):
        assert torch.equal(left, right)
