from __future__ import annotations

import pytest
import torch

from negbank import Exclusions, Snapshot
from negbank.samplers.negatives import EncodedBatch, Hardest
from negbank.train.losses import surrogate

N, D, B, TEMPERATURE = 50, 8, 10, 0.3
ROWS = torch.arange(B)


@pytest.fixture
def data(clustered):
    z = clustered(N, dim=D, spread=0.6)
    noise = torch.randn(N, D, generator=torch.Generator().manual_seed(3))
    return z, Snapshot.build(z + 0.15 * noise, factory="exact")


def sampler(snapshot, **options):
    options = {"k": 5, **options}
    made = Hardest(N, temperature=TEMPERATURE, **options)
    if snapshot is not None:
        made.update(snapshot)
    return made


def visit(made, z, rows=ROWS, queries=None, step=None):
    """A visit at a step, by default the one after the last visit's."""
    made.at = step = getattr(made, "at", -1) + 1 if step is None else step
    ticket = made.draw(rows, step=step, queries=queries)
    drawn = ticket.further
    batch = EncodedBatch.from_views(rows, torch.cat((z[rows], z[rows], z[drawn])), drawn)
    return batch, made(batch, ticket)[0]


def nearest(vectors, queries, k, allowed=None):
    """Ids (B, k) of the k best other rows, by sorting all of them."""
    scores = queries @ vectors.T
    scores[torch.arange(B), ROWS] = -torch.inf
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return scores.argsort(1, descending=True)[:, :k]


def by_row(batch, weights):
    """Weights of all rows of the data set (A, N)."""
    return torch.zeros(len(weights), N, dtype=weights.dtype).scatter_add_(
        1, batch.candidate_rows.expand_as(weights), weights
    )


def rows_of(weights):
    return [set(row.nonzero().flatten().tolist()) for row in weights]


@pytest.mark.parametrize("query", ["bank", "fresh"])
def test_negatives_are_the_top_k_of_the_bank(data, query):
    z, snapshot = data
    made = sampler(snapshot, query=query)
    queries = z[ROWS] if query == "fresh" else snapshot.vectors[ROWS]
    batch, negatives = visit(made, z, queries=z[ROWS] if made.fresh_queries else None)
    expected = nearest(snapshot.vectors, queries.clone(), 5)
    assert rows_of(by_row(batch, negatives.weights)) == [set(ids) for ids in expected.tolist()] * 2
    assert not set(batch.drawn_rows.tolist()) & set(ROWS.tolist())


def test_weights_are_those_of_the_losses_they_name(data):
    """InfoNCE against the k, with and without the positive, and the mean of pairwise NLLs (Xiong et al. 2021)."""
    z, snapshot = data
    ids = nearest(snapshot.vectors, snapshot.vectors[ROWS].clone(), 5).repeat(2, 1)
    noise = torch.randn(2 * N, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = (z.repeat(2, 1).double() + 0.3 * noise).requires_grad_()  # both views of all rows
    views = torch.nn.functional.normalize(x, dim=1)
    drawn = sampler(snapshot).draw(ROWS, step=0).further
    batch = EncodedBatch.from_views(ROWS, torch.cat((views[ROWS], views[ROWS + N], views[drawn])), drawn)
    positive = (batch.anchors * batch.positives).sum(1, keepdim=True)
    # a row that is in the batch is seen under both views, in equal shares
    mean = torch.where((ids < B)[:, :, None, None], 0.5, torch.tensor([1.0, 0.0])[:, None]).double()
    scores = torch.stack([(batch.anchors[:, None] * views[ids + v * N]).sum(2) for v in (0, 1)], 2) / TEMPERATURE
    logits = (scores + mean[..., 0].log()).flatten(1)
    positive = positive / TEMPERATURE
    pairs = -torch.nn.functional.logsigmoid(positive[:, :, None] - scores)
    for options, loss in [
        ({}, torch.cat((logits, positive), 1).logsumexp(1) - positive[:, 0]),
        ({"positive": False}, logits.logsumexp(1) - positive[:, 0]),
        ({"weights": "pairwise"}, (mean[..., 0] * pairs).sum((1, 2)) / 5),
        ({"weights": "uniform"}, (mean[..., 0] * scores).sum((1, 2)) / 5 - positive[:, 0]),
    ]:
        made = sampler(snapshot, **options)
        negatives, _ = made(batch, made.draw(ROWS, step=0))
        got = torch.autograd.grad(surrogate(batch, negatives, temperature=TEMPERATURE), x, retain_graph=True)[0]
        expected = torch.autograd.grad(loss.mean(), x, retain_graph=True)[0]
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)


def test_some_of_the_k_are_taken_at_random_without_repeats(data):
    z, snapshot = data
    made = sampler(snapshot, k=6, draws=2, weights="uniform")
    expected = [set(ids) for ids in nearest(snapshot.vectors, snapshot.vectors[ROWS].clone(), 6).tolist()]
    counts = torch.zeros(2 * B, N)
    for _ in range(200):
        batch, negatives = visit(made, z)
        weights = by_row(batch, negatives.weights)
        assert all(len(found) == 2 and found <= top for found, top in zip(rows_of(weights), expected * 2))
        counts += weights
    share = counts[counts > 0] / 200
    assert len(share) == 2 * B * 6
    assert float((share - 1 / 6).abs().max()) < 0.1


def test_excluded_rows_give_way_to_the_next(data):
    z, snapshot = data
    exclude = Exclusions(N, positives=torch.tensor([[0, 7], [0, 12], [3, 1]]), forbidden=torch.arange(N) == 20)
    batch, negatives = visit(sampler(snapshot, exclude=exclude), z)
    allowed = exclude.allowed(ROWS, torch.arange(N).expand(B, -1))
    weights = by_row(batch, negatives.weights)
    expected = nearest(snapshot.vectors, snapshot.vectors[ROWS].clone(), 5, allowed)
    assert rows_of(weights) == [set(top) for top in expected.tolist()] * 2


def test_the_search_goes_past_an_anchors_own_group(data):
    z, snapshot = data
    groups = torch.zeros(N, dtype=torch.int64)
    groups[(snapshot.vectors[0] @ snapshot.vectors.T).argsort(descending=True)[30:]] = 1
    exclude = Exclusions(N, groups=groups)
    batch, negatives = visit(sampler(snapshot, exclude=exclude), z)
    allowed = exclude.allowed(ROWS, torch.arange(N).expand(B, -1))
    expected = nearest(snapshot.vectors, snapshot.vectors[ROWS].clone(), 5, allowed)
    assert rows_of(by_row(batch, negatives.weights)) == [set(top) for top in expected.tolist()] * 2


def test_before_the_first_snapshot_rows_are_uniform_and_an_unfinished_bank_gives_what_it_has(data):
    z, snapshot = data
    batch, negatives = visit(sampler(None, weights="uniform"), z)
    torch.testing.assert_close(negatives.weights.sum(1), torch.ones(2 * B))
    written = torch.arange(N) < 4
    few = Snapshot.build(snapshot.vectors, factory="exact", written=written)
    batch, negatives = visit(sampler(few), z)
    assert all(found <= {0, 1, 2, 3} for found in rows_of(by_row(batch, negatives.weights)))


def test_it_keeps_nothing_and_draws_by_the_step_alone(data):
    z, snapshot = data
    first, second = (sampler(snapshot, k=8, draws=2) for _ in range(2))
    visit(first, z)
    assert first.state_dict() == {}
    assert torch.equal(visit(first, z)[1].weights, visit(second, z, step=1)[1].weights)


def test_bad_input_is_named(data):
    _, snapshot = data
    for options, message in [
        ({"temperature": 0}, "temperature=0"),
        ({"k": N}, f"k={N}: expected 1..{N - 1}"),
        ({"k": 3, "draws": 4}, "draws=4: expected 1..3"),
        ({"weights": "none"}, "weights='none': expected one of softmax"),
        ({"query": "old"}, "query='old'"),
    ]:
        with pytest.raises(ValueError, match=message):
            Hardest(N, **{"temperature": 0.3, **options})
    made = sampler(snapshot, query="fresh")
    with pytest.raises(ValueError, match="queries=None"):
        made.draw(ROWS, step=0)
    made = sampler(snapshot)
    with pytest.raises(ValueError, match="ticket: drawn for other rows"):
        made(EncodedBatch.from_views(ROWS + 1, torch.eye(2 * B, D)), made.draw(ROWS, step=0))
