from __future__ import annotations

import pytest
import torch
from lightly.loss import NTXentLoss

from negbank import Exclusions
from negbank.samplers.negatives import EncodedBatch, Moco
from negbank.train.losses import info_nce, surrogate

N, B, D, TEMPERATURE = 40, 6, 5, 0.2
ROWS = torch.arange(B)


def raw(seed=0):
    """Projections of both views (2·B, D), before they are normalised."""
    return torch.randn(2 * B, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def embed(x, rows=ROWS, seed=100):
    """A batch with keys of its own; x and its keys are normalised."""
    keys = torch.nn.functional.normalize(raw(seed), dim=1)
    return EncodedBatch.from_views(rows, torch.nn.functional.normalize(x, dim=1), keys=keys)


def gradient(loss, x):
    return torch.autograd.grad(loss, x)[0]


def filled(queue, batches=3, **options):
    """A sampler that has seen some batches of rows B, B + 1, ..."""
    sampler = Moco(N, temperature=TEMPERATURE, queue=queue, **options)
    for i in range(batches):
        sampler(embed(raw(50 + i), rows=ROWS + B * (i + 1), seed=200 + i))[0].commit()
    return sampler


def test_a_positive_is_the_key_of_the_other_view():
    batch = embed(raw())
    assert torch.equal(batch.positives, torch.cat((batch.keys[B:], batch.keys[:B])))
    assert torch.equal(batch.candidates, batch.keys)
    assert not batch.keys.requires_grad


def test_the_queue_is_info_nce_against_a_memory_bank_as_lightlys():
    """Queries of one view against the keys of the other and the bank, each way."""
    sampler = filled(queue=36)
    assert (sampler.ids >= 0).all()
    theirs = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(36, D))
    theirs.memory_bank.bank = sampler.keys.clone()
    x = raw().requires_grad_()
    batch = embed(x)
    negatives, _ = sampler(batch)
    got = gradient(surrogate(batch, negatives, temperature=TEMPERATURE), x)
    x = raw().requires_grad_()
    batch, bank = embed(x), theirs.memory_bank.bank.clone()
    losses = []
    for queries, keys in zip(batch.anchors.chunk(2), batch.keys.chunk(2)[::-1]):
        theirs.memory_bank.bank = bank.clone()  # it takes the keys in at once
        losses.append(theirs(queries, keys))
    torch.testing.assert_close(got, gradient(sum(losses) / 2, x), atol=1e-9, rtol=0)


def test_without_a_queue_it_is_moco_v3():
    """Cross-entropy of each view's queries over the other view's keys, the positive on the diagonal."""
    x = raw().requires_grad_()
    batch = embed(x)
    negatives, _ = Moco(N, temperature=TEMPERATURE, queue=0)(batch)
    got = gradient(surrogate(batch, negatives, temperature=TEMPERATURE), x)
    x = raw().requires_grad_()
    batch = embed(x)
    (q1, q2), (k1, k2) = batch.anchors.chunk(2), batch.keys.chunk(2)
    losses = [torch.nn.functional.cross_entropy(q @ k.T / TEMPERATURE, ROWS) for q, k in ((q1, k2), (q2, k1))]
    torch.testing.assert_close(got, gradient(sum(losses) / 2, x), atol=1e-9, rtol=0)


def test_the_newest_keys_stay_with_their_rows_and_the_batch_is_no_negative_of_itself():
    sampler = Moco(N, temperature=TEMPERATURE, queue=20)
    seen_ids, seen_keys = torch.empty(0, dtype=torch.int64), torch.empty(0, D, dtype=torch.float64)
    for i in range(6):
        batch = embed(raw(i), rows=(ROWS + 4 * i) % N, seed=300 + i)
        negatives, info = sampler(batch)
        negatives.commit()
        assert info["keys"] == len(seen_ids) - (seen_ids == batch.rows[0]).sum()
        assert (negatives.weights > 0).sum(1).max() <= len(seen_ids)
        seen_ids = torch.cat((seen_ids, batch.rows.repeat(2)))[-20:]
        seen_keys = torch.cat((seen_keys, batch.keys))[-20:]
        order = torch.arange(20).roll(-sampler.position)[-len(seen_ids) :]
        assert torch.equal(sampler.ids[order], seen_ids)
        torch.testing.assert_close(sampler.keys[order], seen_keys)


def test_a_queue_shorter_than_a_batch_keeps_the_last_keys():
    sampler = filled(queue=5)
    assert torch.equal(sampler.ids.roll(-sampler.position), torch.arange(3 * B + 1, 3 * B + 6))


def test_own_and_excluded_rows_in_the_queue_weigh_nothing():
    """A row that comes back finds its own earlier keys in the queue, which are positives."""
    groups = torch.arange(N) % 4
    for exclude, same in [
        (None, lambda own, other: own == other),
        (Exclusions(N, groups=groups), lambda own, other: groups[own] == groups[other]),
    ]:
        sampler = filled(queue=36, exclude=exclude)
        rows = ROWS + B + 3  # half of the first batch, half of the second
        ids = sampler.ids.clone()
        weights = sampler(embed(raw(), rows=rows))[0].weights
        assert torch.equal(weights == 0, same(rows.repeat(2)[:, None], ids))


def test_the_first_batch_finds_an_empty_queue_and_no_gradient():
    sampler = Moco(N, temperature=TEMPERATURE, queue=20)
    x = raw().requires_grad_()
    batch = embed(x)
    negatives, info = sampler(batch)
    assert info["keys"] == 0
    assert (gradient(surrogate(batch, negatives, temperature=TEMPERATURE), x) == 0).all()


def test_the_reported_value_has_no_keys_in_it():
    x = raw()
    plain = EncodedBatch.from_views(ROWS, torch.nn.functional.normalize(x, dim=1))
    assert info_nce(embed(x), temperature=0.3) == info_nce(plain, temperature=0.3)


@pytest.mark.parametrize("queue", [0, 20, 36])
def test_it_resumes(queue):
    first = filled(queue)
    second = Moco(N, temperature=TEMPERATURE, queue=queue)
    second.load_state_dict(first.state_dict())
    for i in range(3):
        batch = embed(raw(i), rows=ROWS + 3 * i, seed=400 + i)
        assert torch.equal(first(batch)[0].weights, second(batch)[0].weights)
    fresh = Moco(N, temperature=TEMPERATURE, queue=queue)
    fresh.load_state_dict(Moco(N, temperature=TEMPERATURE, queue=queue).state_dict())
    assert fresh.keys is None


def test_bad_input_is_named():
    for options, message in [
        ({"temperature": 0}, "temperature=0"),
        ({"queue": -1}, "queue=-1"),
        ({"momentum": 1.0}, "momentum=1.0: expected at least 0 and below 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            Moco(N, **{"temperature": 0.2, **options})
    plain = EncodedBatch.from_views(ROWS, torch.nn.functional.normalize(raw(), dim=1))
    with pytest.raises(ValueError, match="batch: has no keys"):
        Moco(N, temperature=0.2)(plain)
    with pytest.raises(ValueError, match="queue: 20 keys in the state, 30 here"):
        Moco(N, temperature=0.2, queue=30).load_state_dict(filled(20).state_dict())
