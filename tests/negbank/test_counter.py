"""Randomness by counter: known numbers of SplitMix64, independence of order, and of places from one another."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from negbank.counter import _STEP, Counter, _mixed, below, fill, mix, seeded_uniforms, stream, uniform, uniforms

PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
"""The first numbers of SplitMix64 under seed 1234567."""


def test_the_published_numbers_of_splitmix64():
    assert Counter(1234567).seeds(5).numpy().view(np.uint64).tolist() == PUBLISHED
    state, loop = Counter(1234567).stream(), []
    for _ in PUBLISHED:
        state += _STEP
        loop.append(int(mix(state[0])))
    assert loop == PUBLISHED
    state = Counter(1234567).stream()
    assert [uniform(state) for _ in PUBLISHED] == [(z >> 11) / 2**53 for z in PUBLISHED]
    state = Counter(1234567).stream()
    assert [below(state, 10) for _ in PUBLISHED] == [10 * (z >> 11) // 2**53 for z in PUBLISHED]


def test_uniforms_of_a_slot_are_those_of_its_own_stream():
    """Against the loop of SplitMix64 that begins at the slot's mixed seed, and whatever slots are asked for with it."""
    place, slots = Counter.of(5), torch.tensor([3, 0, 2**40])
    seeds = place.seeds(slots).numpy().view(np.uint64)
    numbers = np.empty((3, 5), np.uint64)
    for row, seed in zip(numbers, seeds):
        state = Counter(int(mix(seed))).stream()
        for k in range(5):
            state += _STEP
            row[k] = mix(state[0])
    found = place.uniforms(slots, 5)
    assert found.tolist() == [[(int(z) >> 11) / 2**53 for z in row] for row in numbers]
    out = np.empty((10, 3), np.float32)
    fill(seeds, out)
    high = [[(int(z) >> 40) / 2**24 for z in column] for column in numbers.T]
    low = [[(int(z) % 2**32 >> 8) / 2**24 for z in column] for column in numbers.T]
    assert out.tolist() == high + low
    assert torch.equal(place.uniforms(slots.flip(0), 3), found.flip(0)[:, :3])


def test_a_place_is_where_it_is_however_one_gets_there():
    run = Counter.of(7)
    assert run.at("views", 3) == run.at("views").at(3) == Counter.of(7).at("views", 3)
    assert isinstance(run.at("views").key, int)
    later = run.at("views", 4).generator()
    torch.rand(1000, generator=run.at("views", 3).generator())  # what is drawn elsewhere is of no influence
    assert torch.equal(torch.rand(5, generator=later), torch.rand(5, generator=run.at("views", 4).generator()))


def test_places_differ():
    places = [Counter.of(s) for s in (-1, 0, 1, 2**63, 10**6)]
    roots = [Counter.of(s).at(*place) for s in (0, 1) for place in itertools.product((0, 1, "0", "1", "a"), repeat=2)]
    found = [place.key for place in (*places, *roots)]
    assert len(set(found)) == len(found)
    assert Counter.of(0).at(1, 2) != Counter.of(0).at(2, 1)
    assert all(0 <= key < 2**64 for key in found)


def test_a_slots_seed_is_of_the_slot_alone():
    place, slots = Counter.of(3).at("views", 5), torch.tensor([9, 2, 2, 70_000_000_000, 0])
    seeds = place.seeds(slots)
    assert seeds.dtype == torch.int64
    assert torch.equal(seeds, torch.cat([place.seeds(part) for part in slots.split(2)]))
    assert torch.equal(seeds[[0, 1, 4]], place.seeds(10)[[9, 2, 0]])
    order = torch.tensor([4, 0, 3, 2, 1])
    draws = seeded_uniforms(seeds, 8)
    assert torch.equal(draws[order], seeded_uniforms(seeds[order], 8))
    assert torch.equal(draws[:, :3], seeded_uniforms(seeds, 3))


def unmixed(seeds: torch.Tensor, n: int) -> torch.Tensor:
    """`seeded_uniforms` without the mixing of the seeds: as wrong as it looks right."""
    z = _mixed(seeds.numpy().view(np.uint64)[:, None] + np.arange(1, n + 1, dtype=np.uint64) * _STEP)
    return torch.from_numpy((z >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))


def most_correlated(draws: torch.Tensor) -> float:
    """The largest correlation of a seed's draws with the next seed's, at any lag, in standard deviations."""
    x = (draws.double() - 0.5) * 12**0.5
    found = []
    for lag in range(-3, 4):
        here, there = x[:-1, max(0, lag) : x.shape[1] + min(0, lag)], x[1:, max(0, -lag) : x.shape[1] - max(0, lag)]
        found.append(float((here * there).mean()) * here.numel() ** 0.5)
    return max(map(abs, found))


@pytest.mark.parametrize("step", [1, 2, 2**32, int(_STEP)])
def test_seeds_that_follow_one_another_draw_independently(step):
    seeds = torch.from_numpy((np.arange(2000, dtype=np.uint64) * np.uint64(step)).view(np.int64))
    draws = seeded_uniforms(seeds, 40)
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    assert most_correlated(draws) < 4.5
    for lines in (draws, draws.T):  # of one seed over draws, and of one draw over seeds
        assert stats.kstest([stats.kstest(line, "uniform").pvalue for line in lines[:500]], "uniform").pvalue > 1e-4
    if step == int(_STEP):
        assert most_correlated(unmixed(seeds, 40)) > 100  # a seed's draws are the last one's, shifted


def test_seeds_of_neighbouring_places_are_uniform_bit_by_bit():
    keys = torch.cat([Counter.of(0).at("views", step).seeds(64) for step in range(200)]).numpy().view(np.uint64)
    assert len(np.unique(keys)) == len(keys)
    bits = (keys[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert abs(bits.mean(0) - 0.5).max() < 4.5 * 0.5 / len(keys) ** 0.5


def test_uniforms_are_the_generators_whatever_the_device():
    generator = torch.Generator().manual_seed(1)
    drawn = uniforms((3, 4), generator=generator, device=torch.device("cpu"))
    assert drawn.dtype == torch.float64
    assert torch.equal(drawn, torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    if torch.cuda.is_available():
        there = uniforms((3, 4), generator=generator.manual_seed(1), device=torch.device("cuda"))
        assert torch.equal(there.cpu(), drawn)
    a, b = (stream(torch.Generator().manual_seed(s)) for s in (1, 2))
    assert a.dtype == np.uint64
    assert a != b
