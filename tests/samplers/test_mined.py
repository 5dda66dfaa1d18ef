"""Mined negatives against brute force: which rows they are by a literal loop, and the cross entropy that they join."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from negbank import Exclusions, Snapshot
from negbank.counter import Counter
from negbank.mining import DamagedResultError, mine_hard_negatives
from negbank.samplers.negatives import EncodedBatch, InBatch, Mined
from negbank.train.config import ConfigError, parse
from negbank.train.losses import surrogate

N, D, B, T = 60, 8, 10, 0.3
ROWS = torch.arange(B) * 5
EXCLUDE = Exclusions(
    N, positives=[(0, 7), (0, 12), (15, 1)], groups=torch.arange(N) // 4, forbidden=torch.arange(N) == 20
)


@pytest.fixture
def sides(clustered):
    """Two banks whose rows i lie near each other, but not nearest."""
    left = clustered(N, dim=D, spread=0.7)
    return left, normalize(left + 0.25 * torch.randn(N, D, generator=torch.Generator().manual_seed(3)), dim=1)


def sampler(snapshot=None, **options):
    made = Mined(N, temperature=T, **options)
    if snapshot is not None:
        made.update(Snapshot.build(snapshot, factory="exact"))
    return made


def ids_of(ticket):
    return [[row for row in ids if row >= 0] for ids in ticket.own.tolist()]


def by_hand(queries, bank, rows, *, range_max, perc_pos=None, margin_pos=None, exclude=None):
    """What each row may take, best first, read literally."""
    found = []
    for i in rows.tolist():
        allowed = [j for j in range(N) if j != i]
        if exclude is not None:
            allowed = [j for j in allowed if bool(exclude.allowed(torch.tensor([i]), torch.tensor([[j]])))]
        ranked = sorted(allowed, key=lambda j: (-float(queries[i] @ bank[j]), j))[:range_max]
        positive = float(queries[i] @ bank[i])
        if perc_pos is not None:
            ranked = [j for j in ranked if float(queries[i] @ bank[j]) <= perc_pos * positive]
        if margin_pos is not None:
            ranked = [j for j in ranked if float(queries[i] @ bank[j]) <= positive - margin_pos]
        found.append(ranked)
    return found


@pytest.mark.parametrize("exclude", [None, EXCLUDE], ids=["", "exclusions"])
@pytest.mark.parametrize("bounds", [{}, {"perc_pos": 0.9}, {"margin_pos": 0.15}, {"perc_pos": 0.95, "margin_pos": 0.1}])
@pytest.mark.parametrize("towers", [1, 2])
def test_mined_rows_are_those_of_a_literal_loop(sides, towers, bounds, exclude):
    left, right = sides if towers == 2 else sides[:1] * 2
    made = sampler(right, draws=3, range_max=8, exclude=exclude, **bounds)
    ticket = made.draw(ROWS, step=0, queries=left[ROWS] if towers == 2 else None)
    whole = by_hand(left, right, ROWS, range_max=8, exclude=exclude, **bounds)
    assert ids_of(ticket) == [ids[:3] for ids in whole]
    assert sorted(ticket.further.tolist()) == sorted({j for ids in whole for j in ids[:3]} - set(ROWS.tolist()))
    if bounds:  # which did bound something, and left something
        free = by_hand(left, right, ROWS, range_max=8, exclude=exclude)
        assert sum(map(len, free)) > sum(map(len, whole)) > 0
    if exclude is not None:
        assert whole != by_hand(left, right, ROWS, range_max=8, **bounds)


def test_random_ones_are_uniform_among_the_best_and_others_at_every_step(sides):
    left, right = sides
    made = sampler(right, draws=2, range_max=7, pick="random", perc_pos=0.95)
    allowed = by_hand(left, right, ROWS, range_max=7, perc_pos=0.95)
    counts = torch.zeros(B, N)
    for step in range(400):
        for at, ids in enumerate(ids_of(made.draw(ROWS, step=step, queries=left[ROWS]))):
            assert len(ids) == len(set(ids)) == min(2, len(allowed[at]))
            counts[at, ids] += 1
    for count, ids in zip(counts, allowed):
        assert set(count.nonzero().flatten().tolist()) == set(ids)
        if len(ids) > 2:
            share = count[ids] / count.sum()
            assert float((share * len(ids) - 1).abs().max()) < 0.4  # the first two alone would be at len / 2 − 1
    assert max(map(len, allowed)) > 3


@pytest.mark.parametrize("towers", [1, 2])
def test_the_loss_is_the_cross_entropy_over_positive_batch_and_all_mined_rows(sides, towers):
    """Henderson et al. 2017 with hard negatives, as sentence-transformers has it: one matrix for the whole batch."""
    left, right = sides if towers == 2 else sides[:1] * 2
    made = sampler(right, draws=2)
    ticket = made.draw(ROWS, step=0, queries=left[ROWS] if towers == 2 else None)
    assert len(ticket.further) > 2  # more than one row brought
    count = 2 * B + len(ticket.further)
    x = torch.randn(count, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    anchors, others, mined = normalize(x, dim=1).split((B, B, len(ticket.further)))
    if towers == 2:
        batch = EncodedBatch.from_pairs(ROWS, anchors, others, ticket.further, mined)
        logits = torch.cat((anchors @ others.T, anchors @ mined.T), 1)
        expected = cross_entropy(logits / T, torch.arange(B))
    else:
        views = torch.cat((anchors, others))
        batch = EncodedBatch.from_views(ROWS, torch.cat((views, mined)), ticket.further)
        logits = torch.cat((views @ views.T, views @ mined.T), 1)
        logits = logits.masked_fill(torch.eye(2 * B, count, dtype=torch.bool), -torch.inf)
        expected = cross_entropy(logits / T, torch.arange(2 * B).roll(B))
    negatives, info = made(batch, ticket)
    (got,) = torch.autograd.grad(surrogate(batch, negatives, temperature=T), x, retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(expected, x)[0], atol=1e-9, rtol=0)
    assert info["extra_encodings"] == len(ticket.further)


def test_the_mask_leaves_out_what_scores_as_high_as_the_positive_by_fresh_scores(sides):
    """Of mined rows and of the batch; without it the bounds are of the snapshot's scores alone."""
    left, right = sides
    bounds = {"perc_pos": 0.9, "margin_pos": 0.05}
    fresh = [normalize(z + 0.2 * torch.randn(N, D, generator=torch.Generator().manual_seed(9)), dim=1) for z in sides]
    for mask in (False, True):
        made = sampler(right, draws=2, mask=mask, **bounds)
        ticket = made.draw(ROWS, step=0, queries=left[ROWS])
        assert ids_of(ticket) == [ids[:2] for ids in by_hand(left, right, ROWS, range_max=30, **bounds)]
        batch = EncodedBatch.from_pairs(
            ROWS, fresh[0][ROWS], fresh[1][ROWS], ticket.further, fresh[1][ticket.further]
        )  # fmt: skip
        weights, (expected, masked) = made(batch, ticket)[0].weights, (torch.zeros(B, batch.candidates.shape[0]), 0)
        for at, i in enumerate(ROWS.tolist()):
            positive, terms = float(fresh[0][i] @ fresh[1][i]), {}
            for column, j in enumerate(batch.candidate_rows.tolist()):
                s = float(fresh[0][i] @ fresh[1][j])
                near = s > 0.9 * positive or s > positive - 0.05
                masked += near and j != i
                if j != i and not (mask and near):
                    terms[column] = np.exp(s / T)
            for column, term in terms.items():
                expected[at, column] = term / (np.exp(positive / T) + sum(terms.values()))
        torch.testing.assert_close(weights, expected, atol=1e-5, rtol=0)
        assert masked >= 3


@pytest.mark.parametrize("names", ["rows", "strings"])
def test_a_mining_result_is_followed_row_by_row(sides, tmp_path, names):
    left, right = sides
    ids = None if names == "rows" else np.array([f"doc {(7 * i) % N}" for i in range(N)])
    result = mine_hard_negatives(
        left.numpy(), right.numpy(), [(i, i if ids is None else ids[i]) for i in range(N)], num_negatives=6,
        range_max=8, relative_margin=0.05, corpus_ids=ids,
    )  # fmt: skip
    result.save(tmp_path / "mined")
    whole = [[i if ids is None else ids.tolist().index(i) for i in row.tolist()] for row, _ in result]
    assert {len(row) for row in whole} > {6}  # some are short
    made = sampler(path=str(tmp_path / "mined"), draws=5)
    assert not made.reads_snapshot
    every = torch.arange(N)
    ticket = made.draw(every, step=0)
    assert ids_of(ticket) == [row[:5] for row in whole]
    short = 1 - sum(min(5, len(row)) for row in whole) / (5 * N)
    batch = EncodedBatch.from_pairs(every, left, right)
    assert made(batch, ticket)[1]["short"] == pytest.approx(short, abs=1e-6)
    some = sampler(path=str(tmp_path / "mined"), draws=2, range_max=3, pick="random", exclude=EXCLUDE)
    assert some.draw(every, step=0).own.tolist() != some.draw(every, step=1).own.tolist()
    for step in range(5):
        for i, ids in enumerate(ids_of(some.draw(every, step=step))):
            left_over = [j for j in whole[i][:3] if bool(EXCLUDE.allowed(torch.tensor([i]), torch.tensor([[j]])))]
            assert len(ids) == min(2, len(left_over))
            assert set(ids) <= set(left_over)


def test_a_result_of_other_rows_is_refused(sides, tmp_path):
    left, right = (side.numpy() for side in sides)
    wider = np.concatenate((right, right[:5] * np.float32([[-1]])))

    def saved(name, *arguments, **options):
        mine_hard_negatives(*arguments, num_negatives=2, **options).save(tmp_path / name)
        return str(tmp_path / name)

    pairs = [(i, i) for i in range(N)]
    for path, message in [
        (saved("short", left[:-1], right, pairs[:-1]), rf"mined for {N - 1} rows among {N}, expected the {N} tra"),
        (saved("wide", left, wider, pairs), rf"wide: mined for {N} rows among {N + 5}, expected the {N} training rows"),
        (saved("each", left[:30], right, [(i % 30, i) for i in range(N)], positive_reference="each"), "each once"),
    ]:
        with pytest.raises(ValueError, match=message):
            sampler(path=path)
    path = saved("good", left, right, pairs)
    with pytest.raises(ValueError, match=r"draws=3: path=.*good lists at most 2 negatives of a row; lower draws"):
        sampler(path=path, draws=3)
    with pytest.raises(ValueError, match=r"perc_pos=0\.9: what path=.* relative_margin .*mask=True"):
        sampler(path=path, perc_pos=0.9)
    sampler(path=path, perc_pos=0.9, mask=True)
    (tmp_path / "good" / "negatives.npy").write_bytes(b"damaged")
    with pytest.raises(DamagedResultError, match=r"negatives\.npy"):
        sampler(path=path)


def test_a_path_that_is_not_there_is_named_before_a_run_begins(tmp_path):
    config = {"run": {"steps": 9}, "negatives": {"type": "mined", "path": str(tmp_path / "none")}}
    with pytest.raises(ConfigError, match=r"negatives\.path: .*none': no such file or folder"):
        parse(config, inputs=True)
    parse(config)


def test_what_is_short_is_padded_and_reported(sides):
    """Of the groups of 20 rows 40 others remain; a bank of three rows has two at most; before it there is none."""
    left, right = sides
    batch = EncodedBatch.from_pairs(ROWS, left[ROWS], right[ROWS])
    exclude = Exclusions(N, groups=torch.where(torch.arange(N) < N - 2, 0, -1))
    made = sampler(right, draws=4, exclude=exclude)
    ticket = made.draw(ROWS, step=0, queries=left[ROWS])
    assert [sorted(ids) for ids in ids_of(ticket)] == [[N - 2, N - 1]] * B
    drawn = EncodedBatch.from_pairs(ROWS, left[ROWS], right[ROWS], ticket.further, right[ticket.further])
    assert made(drawn, ticket)[1]["short"] == pytest.approx(0.5)
    nothing = sampler(draws=4)
    ticket = nothing.draw(ROWS, step=0, queries=left[ROWS])
    negatives, info = nothing(batch, ticket)
    assert info["short"] == 1
    assert len(ticket.further) == info["extra_encodings"] == 0
    assert torch.equal(negatives.weights, InBatch(temperature=T, exclude=Exclusions(N))(batch)[0].weights)


def test_rows_that_the_snapshot_has_not_seen_mine_nothing(sides):
    left, right = sides
    written = torch.arange(N) < 20
    made = sampler(draws=3)
    made.update(Snapshot.build(torch.where(written[:, None], right, 0.0), factory="exact", written=written))
    for queries in (left[ROWS], torch.where(ROWS[:, None] == 5, 0.0, left[ROWS])):
        ids = ids_of(made.draw(ROWS, step=0, queries=queries))
        known = (ROWS < 20) & (queries != 0).any(1)
        assert [len(row) for row in ids] == (3 * known).tolist()
        assert all(j < 20 for row in ids for j in row)


def test_one_side_alone_has_mined_rows(sides):
    left, right = sides
    documents = sampler(left, draws=3, both_ways=False, side=1)
    assert not documents.reads_snapshot
    ticket = documents.draw(ROWS, step=0, queries=right[ROWS])
    assert len(ticket.further) == 0
    batch = EncodedBatch.from_pairs(ROWS, right[ROWS], left[ROWS])
    negatives, info = documents(batch, ticket)
    assert torch.equal(negatives.weights, InBatch(temperature=T, exclude=Exclusions(N))(batch)[0].weights)
    assert "short" not in info
    queries = sampler(right, draws=3, both_ways=False, side=0)
    assert len(queries.draw(ROWS, step=0, queries=left[ROWS]).further) > 3


def test_draws_are_of_the_counter_and_the_step_and_parts_are_those_of_the_whole(sides):
    left, right = sides
    one, same, other = (
        sampler(right, draws=2, pick="random", mask=True, perc_pos=0.95, counter=Counter.of(seed)) for seed in (0, 0, 1)
    )
    tickets = [made.draw(ROWS, step=4, queries=left[ROWS]) for made in (one, same, other)]
    assert torch.equal(tickets[0].own, tickets[1].own)
    assert not torch.equal(tickets[0].own, tickets[2].own)
    ticket = tickets[0]
    batch = EncodedBatch.from_pairs(ROWS, left[ROWS], right[ROWS], ticket.further, right[ticket.further])
    whole, parts = one(batch, ticket)[0].weights, [slice(0, 4), slice(4, B)]
    pieces = [one(batch.part(some), ticket.part(some))[0].weights for some in parts]
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-6, rtol=0)
    assert one.state_dict() == {}


def test_bad_input_is_named():
    for options, message in [
        ({"temperature": 0}, "temperature=0"),
        ({"draws": N, "range_max": N}, f"draws={N}: expected 1..{N - 1}"),
        ({"draws": 9, "range_max": 8}, r"draws=9: expected 1\.\.8, some of range_max=8 rows; raise that"),
        ({"pick": "best"}, "pick='best': expected one of top, random"),
        ({"perc_pos": 0}, "perc_pos=0"),
        ({"margin_pos": 3}, "margin_pos=3: expected at least -2 and at most 2"),
        ({"mask": True}, "mask=True: masks nothing without a bound; set perc_pos, such as 0.95"),
    ]:
        with pytest.raises(ValueError, match=message):
            Mined(N, **{"temperature": T, **options})
