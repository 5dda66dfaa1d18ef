from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from negbank import EmbeddingBank


def test_write_normalises_and_read_gives_it_back(device):
    bank = EmbeddingBank(5, 3, device=device)
    bank.write(
        torch.tensor([4, 1], device=device), torch.tensor([[0.0, 3.0, 4.0], [2.0, 0.0, 0.0]], device=device), step=7
    )
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]], device=device)
    torch.testing.assert_close(bank.read(torch.tensor([1, 4], device=device)), expected)
    assert bank.written_at.tolist() == [-1, 7, -1, -1, 7]
    assert bank.read(torch.tensor([0], device=device)).abs().sum() == 0


def test_the_last_of_repeated_ids_stays():
    bank = EmbeddingBank(3, 2)
    vectors = torch.nn.functional.normalize(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), dim=1)
    bank.write(torch.tensor([1, 2] * 25), vectors, step=0)
    torch.testing.assert_close(bank.read(torch.tensor([1, 2])), vectors[-2:])


def test_half_precision_rows_are_stored_as_asked():
    bank = EmbeddingBank(2, 4, dtype=torch.float16)
    bank.write(torch.tensor([0]), torch.ones(1, 4), step=0)
    assert bank.vectors.dtype == torch.float16
    assert bank.read(torch.tensor([0])).tolist() == [[0.5] * 4]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_named_and_nothing_is_written(bad):
    bank = EmbeddingBank(10, 2)
    vectors = torch.ones(3, 2)
    vectors[1, 0] = bad
    with pytest.raises(ValueError, match=r"1 row\(s\) hold NaN or infinity, the first at \[6\]"):
        bank.write(torch.tensor([5, 6, 7]), vectors, step=0)
    assert not bank.written.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: b.write(torch.tensor([0]), torch.zeros(1, 2), step=0), "no direction"),
        (lambda b: b.write(torch.tensor([10]), torch.ones(1, 2), step=0), "outside"),
        (lambda b: b.write(torch.tensor([-1]), torch.ones(1, 2), step=0), "outside"),
        (lambda b: b.write(torch.tensor([0]), torch.ones(1, 3), step=0), "expected \\(1, 2\\)"),
        (lambda b: b.read(torch.tensor([99])), "outside"),
        (lambda b: b.load_state_dict(EmbeddingBank(9, 2).state_dict()), "state of shape"),
        (lambda b: EmbeddingBank(0, 2), "num_rows=0"),
        (lambda b: EmbeddingBank(1, 2, dtype=torch.int64), "dtype"),
        (lambda b: EmbeddingBank(1, 2, path="x", device="meta"), "memory-mapped"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(EmbeddingBank(10, 2))


def test_statistics_count_coverage_and_age():
    bank = EmbeddingBank(4, 2)
    assert bank.statistics(9) == (0.0, 0.0, 0)
    bank.write(torch.tensor([0]), torch.ones(1, 2), step=2)
    bank.write(torch.tensor([3]), torch.ones(1, 2), step=6)
    assert bank.statistics(10) == (0.5, 6.0, 8)


def test_state_round_trip_is_a_copy():
    bank = EmbeddingBank(4, 2)
    bank.write(torch.arange(4), torch.eye(2).repeat(2, 1), step=3)
    state = bank.state_dict()
    bank.write(torch.arange(4), -torch.eye(2).repeat(2, 1), step=4)
    other = EmbeddingBank(4, 2)
    other.load_state_dict(state)
    assert torch.equal(other.vectors, torch.eye(2).repeat(2, 1))
    assert other.written_at.tolist() == [3] * 4


def test_a_mapped_bank_outlives_its_process(tmp_path):
    code = (
        "import torch; from negbank import EmbeddingBank\n"
        f"bank = EmbeddingBank(6, 2, path={str(tmp_path)!r})\n"
        "bank.write(torch.tensor([2]), torch.tensor([[0., 5.]]), step=11)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    bank = EmbeddingBank(6, 2, path=tmp_path)
    assert bank.read(torch.tensor([2])).tolist() == [[0.0, 1.0]]
    assert bank.written_at.tolist() == [-1, -1, 11, -1, -1, -1]
    with pytest.raises(ValueError, match="remove it"):
        EmbeddingBank(7, 2, path=tmp_path)
