from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from negbank import Snapshot
from negbank.counter import Counter
from negbank.proposals import Nearest
from negbank.samplers.batches import (
    Clusters,
    Communities,
    Drawn,
    Knn,
    Ordered,
    ProSampler,
    Spectral,
    UniformBatches,
)

ROWS = 53
SAMPLERS = {
    "uniform": UniformBatches,
    "knn": lambda *sizes, **options: Knn(*sizes, neighbors=5, **options),
    "prosampler": lambda *sizes, **options: ProSampler(*sizes, candidates=6, neighbors=5, **options),
    "prosampler, index": lambda *sizes, **options: ProSampler(*sizes, candidates=None, neighbors=5, **options),
    "prosampler, walk": lambda *sizes, **options: ProSampler(
        *sizes, candidates=6, neighbors=5, cover="walk", **options
    ),
    "spectral": lambda *sizes, **options: Spectral(*sizes, temperature=0.1, group=2, restarts=2, **options),
    "spectral, global": lambda *sizes, **options: Spectral(*sizes, temperature=0.1, scope="global", **options),
    "drawn": lambda *sizes, **options: Drawn(*sizes, proposal=partial(Nearest, k=5), **options),
    "drawn, model": lambda *sizes, **options: Drawn(*sizes, proposal=partial(Nearest, k=5), weights="model", **options),
    "communities": Communities,
    "communities, pairs": lambda n, size, **options: Communities(n, size, size=2 if size % 2 == 0 else size, **options),
    "communities, metis": lambda *sizes, **options: Communities(*sizes, partition="metis", width=4, skip=1, **options),
    "clusters": lambda n, size, **options: Clusters(n, size, size=size, **options),
    "knn, half chosen": lambda *sizes, **options: Knn(*sizes, neighbors=5, chosen=0.5, **options),
    "ordered": lambda *sizes, **options: Ordered(*sizes, temperature=0.1, pool=3, keep=2, **options),
}
COVERING = [name for name in SAMPLERS if "walk" not in name and name.split(",")[0] not in ("drawn", "ordered")]
every = pytest.mark.parametrize("name", SAMPLERS)
covering = pytest.mark.parametrize("name", COVERING)


def make(name="uniform", num_rows=ROWS, batch_size=8, *, seed=0, **options):
    return SAMPLERS[name](num_rows, batch_size, counter=Counter.of(seed), **options)


def snapshot(num_rows=ROWS, *, seed=0, written=None, version=0, device="cpu"):
    """Rows around a few centres, so that neighbours are no chance."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(6, 5, generator=generator)[torch.randint(6, (num_rows,), generator=generator)]
    vectors = centres + 0.3 * torch.randn(num_rows, 5, generator=generator)
    return Snapshot.build(vectors.to(device), factory="exact", written=written, version=version)


def take(stream, count):
    return [next(stream) for _ in range(count)]


def flat(batches):
    return [row for batch in batches for row in batch]


def groups_of(sizes):
    return torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("num_rows", "batch_size"), [(53, 8), (49, 8), (48, 8), (8, 8), (20, 15), (20, 2)])
@covering
def test_every_row_once_an_epoch(name, num_rows, batch_size, drop_last):
    sampler = make(name, num_rows, batch_size, drop_last=drop_last)
    sampler.update(snapshot(num_rows))
    whole, rest = divmod(num_rows, batch_size)
    sizes = [batch_size] * whole + ([rest] if rest > 1 and not drop_last else [])
    epochs = [list(sampler) for _ in range(3)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == sizes
        assert len(sampler) == len(sizes)
        assert len(set(flat(batches))) == sum(sizes)
        assert set(flat(batches)) <= set(range(num_rows))
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("drop_last", [True, False])
def test_walks_that_overlap_have_distinct_rows_in_a_batch(drop_last):
    sampler = make("prosampler, walk", drop_last=drop_last)
    sampler.update(snapshot())
    batches = flat(list(sampler) for _ in range(20))
    assert len(batches) == 20 * len(sampler) == 20 * (ROWS // 8)
    assert all(len(set(batch)) == 8 for batch in batches)
    assert set(flat(batches)) == set(range(ROWS))


@every
def test_without_a_snapshot_batches_are_the_uniform_ones(name):
    sampler = make(name)
    assert list(sampler) == list(make())[: len(sampler)]


@covering
def test_a_last_row_alone_is_no_batch(name):
    assert [len(batch) for batch in make(name, 9, 4, drop_last=False) if len(batch)] == [4, 4]


@every
def test_seeds_reproduce(name):
    def epochs(seed):
        sampler = make(name, seed=seed)
        sampler.update(snapshot())
        return list(sampler) + list(sampler)

    assert epochs(3) == epochs(3) != epochs(4)


@every
def test_it_goes_into_a_dataloader_with_workers(name):
    sampler, twin = make(name), make(name)
    sampler.update(snapshot())
    twin.update(snapshot())
    loader = DataLoader(TensorDataset(torch.arange(ROWS)), batch_sampler=sampler, num_workers=2)
    assert [batch[0].tolist() for batch in loader] == list(twin)


@every
def test_an_iteration_that_is_left_loses_no_batch_and_two_at_a_time_give_the_same(name):
    sampler, twin = make(name), make(name)
    sampler.update(snapshot())
    twin.update(snapshot())
    first, second = list(twin), list(twin)
    for taken in (1, 3):
        assert take(iter(sampler), taken) == first[:taken]
    assert list(zip(sampler, sampler)) == list(zip(first, first))
    assert list(sampler) == second


@pytest.mark.parametrize("update", [None, "before the batches read ahead", "after them"])
@every
def test_what_was_read_ahead_and_not_used_comes_again(name, update):
    """A loop reads two batches ahead of those it uses; a snapshot may come in before or after it did."""
    latest = snapshot(seed=1, version=1)
    length = len(make(name))
    for used in range(length + 1):
        sampler = make(name)
        sampler.update(snapshot())
        stream = iter(sampler)
        batches = take(stream, used)
        if update and "before" in update:
            sampler.update(latest)
        batches += take(stream, min(2, length - used))
        if used == length:
            assert next(stream, None) is None  # a loader asks until the end of the epoch
        if update and "after" in update:
            sampler.update(latest)
        state = sampler.state_dict(consumed=used)
        other = make(name)
        other.update(latest if update else snapshot())
        other.load_state_dict(state)
        batches += list(stream)
        assert batches[:used] + list(other) + (list(other) if used < length else []) == batches + list(sampler)
        with pytest.raises(ValueError, match=rf"consumed=99: expected 0\.\.{length}, "):
            sampler.state_dict(consumed=99)


@pytest.mark.parametrize("name", ["uniform", "drawn"])
def test_a_dataloader_with_workers_resumes_after_the_batches_that_were_used(name):
    sampler, twin, resumed = make(name), make(name), make(name)
    for each in (sampler, twin, resumed):
        each.update(snapshot())
    expected = list(twin) + list(twin)

    def load(batches):
        return DataLoader(TensorDataset(torch.arange(ROWS)), batch_sampler=batches, num_workers=2)

    seen = []
    for used, (rows,) in enumerate(load(sampler), start=1):
        seen.append(rows.tolist())
        if used == 2:
            break
    assert sampler.state_dict()["position"] > 2  # read ahead
    resumed.load_state_dict(sampler.state_dict(consumed=2))
    for used, (rows,) in enumerate(load(resumed), start=1):  # counted from the beginning of this loop
        seen.append(rows.tolist())
        if used == 3:
            break
    resumed.load_state_dict(resumed.state_dict(consumed=3))
    seen += [rows.tolist() for _ in range(2) for (rows,) in load(resumed)]
    assert seen == expected


@pytest.mark.parametrize("every_n_steps", [1, 2])
def test_torchdatas_loader_resumes_by_itself(every_n_steps):
    loading = pytest.importorskip("torchdata.stateful_dataloader")

    def load(batches):
        data = TensorDataset(torch.arange(ROWS))
        return loading.StatefulDataLoader(
            data, batch_sampler=batches, num_workers=2, snapshot_every_n_steps=every_n_steps
        )

    sampler, twin, resumed = make("drawn"), make("drawn"), make("drawn")
    for each in (sampler, twin, resumed):
        each.update(snapshot())
    expected, loader = list(twin), load(sampler)
    stream = iter(loader)
    seen = [next(stream)[0].tolist() for _ in range(3)]
    after = load(resumed)
    after.load_state_dict(loader.state_dict())
    assert seen + [rows.tolist() for (rows,) in after] == expected


@every
def test_a_newer_snapshot_plans_what_is_left_of_the_epoch(name):
    sampler, twin = make(name), make(name)
    for each in (sampler, twin):
        each.update(snapshot())
    stream, others = iter(sampler), iter(twin)
    handed_out = take(stream, 2)
    assert handed_out == take(others, 2)
    sampler.update(snapshot(seed=1, version=1))
    rest = list(stream)
    assert len(handed_out) + len(rest) == len(sampler)
    assert all(len(set(batch)) == len(batch) for batch in rest)
    assert all(len(batch) == 8 for batch in rest) or name == "drawn"  # what is drawn twice comes once
    if name in COVERING:
        assert sorted(flat(rest)) == sorted(flat(others))
    if not sampler.uniform:
        assert rest != list(twin)


@covering
def test_a_snapshot_may_come_before_every_batch(name):
    sampler = make(name, drop_last=False)
    batches = []
    for batch in sampler:
        batches.append(batch)
        sampler.update(snapshot(seed=len(batches), version=len(batches)))
    assert [len(batch) for batch in batches] == [8] * 6 + [5]
    assert sorted(flat(batches)) == list(range(ROWS))


@pytest.mark.parametrize("update", ["before", "between", "just before"])
@every
def test_it_resumes_in_the_middle_of_an_epoch(name, update):
    sampler, latest = make(name), snapshot(seed=1, version=1)
    sampler.update(latest if update == "before" else snapshot())
    stream = iter(sampler)
    batches = take(stream, 2)
    if update == "between":
        sampler.update(latest)
    batches += take(stream, 2)
    if update == "just before":
        sampler.update(latest)
    state = sampler.state_dict()
    expected = list(stream) + list(sampler)
    other = make(name)
    other.update(snapshot(seed=1, version=1))
    other.load_state_dict(state)
    assert list(other) + list(other) == expected


@every
def test_a_state_is_plain_and_stays_as_it_was_taken(name):
    sampler = make(name)
    sampler.update(snapshot())
    stream = iter(sampler)
    take(stream, 1)
    state = sampler.state_dict()
    assert all(isinstance(value, (int, bool, torch.Tensor)) for value in state.values())
    order = state["order"].clone()
    sampler.update(snapshot(seed=1))
    list(stream)
    assert state["order"].equal(order)


@every
def test_set_epoch_starts_that_epoch(name):
    sampler = make(name)
    sampler.update(snapshot())
    first, second = list(sampler), list(sampler)
    sampler.set_epoch(0)
    take(iter(sampler), 2)
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(sampler) == second


@pytest.mark.parametrize("held", [2, 9, 17, 30, 52])
@covering
def test_rows_never_written_come_once_an_epoch_too(name, held):
    written = torch.zeros(ROWS, dtype=torch.bool)
    written[torch.randperm(ROWS, generator=torch.Generator().manual_seed(held))[:held]] = True
    sampler = make(name, drop_last=False)
    sampler.update(snapshot(written=written))
    stream = iter(sampler)
    batches = take(stream, 3)
    sampler.update(snapshot(seed=1))
    assert sorted(flat(batches) + flat(stream)) == list(range(ROWS))
    sampler.update(snapshot(written=written))
    assert sorted(flat(sampler)) == list(range(ROWS))


@covering
def test_the_bank_may_lie_on_any_device(name, device):
    sampler, written = make(name), torch.arange(ROWS) % 4 != 0
    for mask in (None, written):
        sampler.update(snapshot(written=mask, device=device))
        assert len(set(flat(sampler))) == 48


@every
def test_rows_never_written_do_not_starve_where_the_last_batch_is_left_out(name):
    written = torch.arange(ROWS) >= 3
    sampler = make(name)
    sampler.update(snapshot(written=written))
    counts = torch.bincount(torch.tensor(flat(flat(list(sampler) for _ in range(200)))), minlength=ROWS)
    share = 8 * len(sampler) / ROWS  # of the rows an epoch; of 48 drawn at random 200 times the deviation is 4.1
    assert counts[~written].min() > 200 * share - 20


@pytest.mark.parametrize(("sizes", "bound"), [([8] * 6, 2), ([12, 12, 12, 12], 2), ([6] * 8, 1), ([48], 8), ([30], 5)])
@covering
def test_no_more_than_max_per_group_rows_of_a_group_meet(name, sizes, bound):
    groups = torch.full((48,), -1)
    groups[: sum(sizes)] = groups_of(sizes)
    sampler = make(name, 48, groups=groups, max_per_group=bound)
    sampler.update(snapshot(48))
    stream = iter(sampler)
    batches = take(stream, 2)
    sampler.update(snapshot(48, seed=1))
    batches += list(stream) + list(sampler)
    assert not sampler.uniform
    assert sorted(flat(batches)) == sorted(2 * list(range(48)))
    for batch in batches:
        labels = groups[batch]
        assert torch.bincount(labels[labels >= 0], minlength=1).max() <= bound


def test_walks_that_overlap_are_spread_as_far_as_they_can_be():
    groups = torch.arange(ROWS) % 10
    sampler = make("prosampler, walk", groups=groups, max_per_group=2)
    sampler.update(snapshot())
    for batch in flat(list(sampler) for _ in range(20)):
        assert len(set(batch)) == 8
        assert torch.bincount(groups[batch]).max() <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": torch.zeros(50, dtype=torch.int64)}, "groups: .* together with max_per_group"),
        ({"max_per_group": 2}, "max_per_group: .* together with groups"),
        ({"groups": torch.zeros(49, dtype=torch.int64), "max_per_group": 2}, r"groups: torch.int64 \(49,\), .*\(50,\)"),
        ({"groups": torch.zeros(50), "max_per_group": 2}, "groups: torch.float32"),
        ({"groups": torch.arange(50), "max_per_group": 0}, "max_per_group=0: expected at least 1"),
        ({"groups": torch.arange(50) // 25, "max_per_group": 3}, "2 groups have 6 rows for a batch of batch_size=8"),
    ],
)
@pytest.mark.parametrize("name", [name for name in SAMPLERS if "drawn" not in name])  # it has its proposal's exclusions
def test_groups_that_do_not_fit_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, 50, **options)


@covering
def test_a_group_of_more_rows_than_the_batches_may_hold_is_refused(name):
    with pytest.raises(ValueError, match=r"max_per_group=4: group 0 has 25 rows, .* 6 batches .* raise it to 5"):
        make(name, 50, groups=torch.arange(50) // 25, max_per_group=4)
    with pytest.raises(ValueError, match="group 7 has 25 rows"):
        make(name, 50, groups=torch.where(torch.arange(50) < 25, 7, -1), max_per_group=4)


@pytest.mark.parametrize(("batch_size", "message"), [(0, "at least 2"), (1, "at least 2"), (51, "2..50")])
@every
def test_a_batch_that_cannot_be_filled_is_refused(name, batch_size, message):
    with pytest.raises(ValueError, match=f"batch_size={batch_size}: expected {message}"):
        make(name, 50, batch_size)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "uniform"])
def test_a_snapshot_of_other_rows_is_refused(name):
    with pytest.raises(ValueError, match="snapshot: 50 rows, the sampler has num_rows=53"):
        make(name).update(snapshot(50))


def test_all_but_uniform_batches_plan_from_a_snapshot():
    assert [name for name in SAMPLERS if not make(name).reads_snapshot] == ["uniform"]


def test_only_uniform_batches_say_so():
    assert make().uniform
    assert not any(make(name).uniform for name in SAMPLERS if name != "uniform")
    assert not make(groups=torch.arange(ROWS), max_per_group=1).uniform


def test_uniform_batches_are_one_permutation_an_epoch_whatever_the_bank():
    sampler = make()
    stream = iter(sampler)
    batches = take(stream, 2)
    sampler.update(snapshot())
    batches += list(stream)
    place = Counter.of(0).at("plan", 0, 0, -1)  # epoch 0, no batch handed out, no snapshot
    assert flat(batches) == torch.randperm(ROWS, generator=place.generator())[:48].tolist()
