from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from negbank import Snapshot
from negbank.exclusions import Exclusions
from negbank.samplers.batches import near_duplicates
from negbank.samplers.batches.groups import NO_GROUP, check_groups, spread


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tally(rows, groups, size):
    """Rows of every group in every batch: (batches, 64)."""
    counts = [torch.bincount(groups[part][groups[part] >= 0], minlength=1) for part in rows.split(size)]
    return torch.stack([torch.nn.functional.pad(count, (0, 64 - len(count))) for count in counts])


@st.composite
def cases(draw):
    size, batches, kinds = draw(st.integers(1, 8)), draw(st.integers(1, 9)), draw(st.integers(1, 7))
    groups = torch.tensor(draw(st.lists(st.integers(-1, kinds - 1), min_size=size * batches, max_size=size * batches)))
    rows = torch.tensor(draw(st.permutations(range(size * batches))))
    return size, batches, groups, rows if draw(st.booleans()) else groups.argsort()


@given(cases(), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_a_plan_is_repaired_wherever_there_is_a_way(case, slack):
    size, batches, groups, rows = case
    largest = int(torch.bincount(groups[groups >= 0], minlength=1).max())
    bound = max(1, -(-largest // batches)) + slack
    labels = check_groups(groups, bound, num_rows=len(groups), batch_size=size, batches=batches)
    before = tally(rows, groups, size)
    out = spread(rows, size, labels, bound, seeded())
    assert out.sort().values.tolist() == list(range(len(rows)))
    assert int(tally(out, groups, size).max()) <= bound
    assert int((out != rows).sum()) <= 2 * int((before - bound).clamp(min=0).sum())
    assert spread(rows, size, labels, bound, seeded()).equal(out)


@given(cases(), st.integers(1, 7))
@settings(max_examples=200, deadline=None)
def test_what_cannot_be_repaired_gets_no_worse(case, drop):
    size, _, groups, rows = case
    rows = rows[drop % size :]  # the last batch is smaller
    before = (tally(rows, groups, size) - 1).clamp(min=0).sum()
    out = spread(rows, size, groups, 1, seeded())
    assert out.sort().values.equal(rows.sort().values)
    assert (tally(out, groups, size) - 1).clamp(min=0).sum() <= before


def test_no_row_enters_a_batch_that_it_is_in():
    rows = torch.stack([torch.randperm(30, generator=seeded(i))[:8] for i in range(20)]).flatten()
    groups = torch.arange(30) % 5
    out = spread(rows, 8, groups, 2, seeded()).view(20, 8)
    assert all(len(set(batch)) == 8 for batch in out.tolist())
    assert out.flatten().sort().values.equal(rows.sort().values)
    assert int(tally(out.flatten(), groups, 8).max()) <= 2 < int(tally(rows, groups, 8).max())


def test_rows_of_the_reserve_come_in_where_no_batch_will_do():
    groups = torch.arange(60) // 20
    rows, reserve = torch.arange(16), torch.arange(16, 60)  # two batches of group 0 alone
    out = spread(rows, 8, groups, 3, seeded(), reserve=reserve)
    assert int(tally(out, groups, 8).max()) == 3
    assert len(set(out.tolist())) == 16
    assert out.view(2, 8)[:, :3].equal(rows.view(2, 8)[:, :3])
    assert spread(rows, 8, groups, 3, seeded()).equal(rows)


def test_rows_of_small_groups_need_no_watch():
    groups = torch.tensor([5, 5, 5, 9, 9, -3, -3, -3])
    assert check_groups(groups, 2, num_rows=8, batch_size=4, batches=2).tolist() == [0, 0, 0] + 5 * [NO_GROUP]
    assert check_groups(groups, 3, num_rows=8, batch_size=8, batches=1).tolist() == 8 * [NO_GROUP]
    assert check_groups(None, None, num_rows=8, batch_size=4, batches=2) is None


def planted():
    """40 rows; 3, 4, 5 nearly equal, 10 to 20 a chain of small steps, 30 and 31 equal."""
    vectors = torch.randn(40, 8, generator=seeded())
    vectors[4:6] = vectors[3] + 0.01 * torch.randn(2, 8, generator=seeded(1))
    angle = torch.linspace(0, 2, 11)
    vectors[10:21] = angle.cos()[:, None] * torch.eye(8)[0] + angle.sin()[:, None] * torch.eye(8)[1]
    vectors[31] = vectors[30]
    return vectors


def components(linked):
    """The smallest member of each row's component, by doubling paths of a bool adjacency (N, N)."""
    reach = linked | linked.T | torch.eye(len(linked), dtype=torch.bool)
    for _ in range(8):
        reach = (reach.float() @ reach.float()) > 0
    return reach.int().argmax(1)


@pytest.mark.parametrize(("above", "k"), [(0.9, 39), (0.97, 39), (0.97, 3), (0.6, 39), (-1.0, 39)])
def test_near_duplicates_are_connected_components(above, k):
    bank = Snapshot.build(planted(), factory="exact")
    labels = near_duplicates(bank, above, k=k)
    found = bank.index.graph(k)
    linked = torch.zeros(40, 40, dtype=torch.bool)
    linked.scatter_(1, found.ids, found.scores > above)
    root = components(linked)
    several = torch.bincount(root, minlength=40)[root] > 1
    assert (labels == NO_GROUP).equal(~several)
    assert (labels[:, None] == labels)[several].equal((root[:, None] == root)[several])
    first = [labels.tolist().index(label) for label in range(int(labels.max()) + 1)]
    assert first == sorted(first)


def test_near_duplicates_are_what_exclusions_take():
    labels = near_duplicates(Snapshot.build(planted(), factory="exact"), 0.97)
    assert labels[3] == labels[4] == labels[5] >= 0
    assert labels[30] == labels[31] >= 0
    assert len(set(labels[10:21].tolist())) == 1
    allowed = Exclusions(40, groups=labels).allowed(torch.tensor([3]), torch.arange(40)[None])
    assert (~allowed).nonzero()[:, 1].tolist() == [3, 4, 5]


def test_rows_never_written_are_nobodys_duplicates(device):
    vectors, written = planted(), torch.ones(40, dtype=torch.bool)
    written[[4, 15, 31]] = False
    labels = near_duplicates(Snapshot.build(vectors.to(device), factory="exact", written=written), 0.97)
    assert (labels[~written] == NO_GROUP).all()
    assert labels[3] == labels[5] >= 0
    assert labels[30] == NO_GROUP


def test_more_equal_rows_than_k_are_one_group():
    vectors = torch.randn(50, 8, generator=seeded())
    vectors[10:40] = vectors[0]
    labels = near_duplicates(Snapshot.build(vectors, factory="exact"), 0.999, k=4)
    assert (labels >= 0).nonzero().flatten().tolist() == [0, *range(10, 40)]
    assert labels.max() == 0


@pytest.mark.parametrize(
    ("above", "k", "message"),
    [(1.0, 5, r"above=1.0: expected a cosine in \[-1, 1\)"), (0.9, 0, "k=0"), (0.9, 40, "k=40: expected 1..39")],
)
def test_bounds_out_of_range_are_refused(above, k, message):
    with pytest.raises(ValueError, match=message):
        near_duplicates(Snapshot.build(planted(), factory="exact"), above, k=k)
