from __future__ import annotations

from functools import partial

import pytest
import torch

from negbank import Exclusions, Snapshot
from negbank.counter import Counter
from negbank.proposals import Nearest, Uniform
from negbank.samplers.batches import UniformBatches
from negbank.samplers.metropolis import NO_STATE
from negbank.samplers.negatives import Emc2, EncodedBatch

N, D, TEMPERATURE = 80, 8, 0.4
NEAREST = partial(Nearest, k=12, temperature=TEMPERATURE, floor=0.3)


@pytest.fixture
def data(clustered):
    """One fixed view per row, and a bank that has drifted from it."""
    z = clustered(N, dim=D, spread=0.6)
    noise = torch.randn(N, D, generator=torch.Generator().manual_seed(3))
    return z, Snapshot.build(z + 0.15 * noise, factory="exact")


def sampler(snapshot, seed=0, **options):
    options = {"proposals": "both", "proposal": NEAREST, "draws": 2, **options}
    made = Emc2(N, temperature=TEMPERATURE, counter=Counter.of(seed), **options)
    if snapshot is not None:
        made.update(snapshot)
    return made


def visit(made, z, rows, step=None):
    """A visit at a step, by default the one after the last visit's."""
    made.at = step = getattr(made, "at", -1) + 1 if step is None else step
    ticket = made.draw(rows, step=step, queries=z[rows] if made.fresh_queries else None)
    batch = encoded(z, ticket)
    negatives, info = made(batch, ticket)
    negatives.commit()
    return batch, negatives, info


def encoded(z, ticket):
    """The batch of a ticket, both views alike."""
    rows, further = ticket.rows, ticket.further
    return EncodedBatch.from_views(rows, torch.cat((z[rows], z[rows], z[further])), further)


def occupancy(made, z, batch_size, epochs):
    """Mean weight of every row for every anchor row (N, N), in 10 blocks (10, N, N) for an error estimate."""
    blocks = torch.zeros(10, N, N, dtype=torch.float64)
    batches = UniformBatches(N, batch_size, counter=Counter.of(9))
    for epoch in range(epochs):
        for rows in map(torch.tensor, batches):
            batch, negatives, _ = visit(made, z, rows)
            own = rows.repeat(2)[:, None].expand_as(negatives.weights)
            columns = batch.candidate_rows.expand_as(own)
            blocks[epoch * 10 // epochs].index_put_((own, columns), negatives.weights.double(), accumulate=True)
    return blocks / blocks.sum(2, keepdim=True)


def target(scores, temperature=TEMPERATURE):
    return (scores.double() / temperature).fill_diagonal_(-torch.inf).softmax(1)


def bias(blocks, pi):
    """Length of the deviation from π as a share of uniform's: the inner product of two blocks has no noise in it."""
    deviation = (blocks - pi).flatten(1)
    product = deviation @ deviation.T
    squared = (product.sum() - product.trace()) / (len(blocks) * (len(blocks) - 1))
    uniform = ((1 - torch.eye(N)) / (N - 1) - pi).square().sum()
    return float((squared / uniform).clamp(min=0).sqrt())


@pytest.mark.parametrize(
    ("batch_size", "epochs", "options"),
    [
        (16, 1200, {"proposals": "index"}),
        (8, 400, {"proposals": "both"}),
        (8, 800, {"proposals": "in_batch"}),
        (16, 400, {"proposals": "index", "query": "fresh"}),
        (16, 400, {"proposals": "index", "draws": 60, "start": "fresh", "burn_in": 0.9}),
        (16, 400, {"proposals": "index", "pool": True, "draws": 32}),
        (16, 400, {"proposals": "both", "pool": True, "draws": 16}),
        (16, 1600, {"proposals": "index", "score": "delayed"}),
        (8, 1000, {"proposals": "both", "score": "delayed"}),
        (8, 800, {"proposals": "in_batch", "score": "delayed"}),
        (16, 800, {"proposals": "both", "score": "delayed", "pool": True, "draws": 16}),
    ],
    ids=lambda value: ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value),
)
def test_visits_follow_the_softmax_of_fresh_scores(data, batch_size, epochs, options):
    z, snapshot = data
    made = sampler(snapshot, **{"draws": 4, **options})
    assert bias(occupancy(made, z, batch_size, epochs), target(z @ z.T)) < 0.1


def test_proposing_both_views_of_a_row_in_one_visit_is_biased(data):
    """Why `batch_views="one"` is the default: the second proposal of a row is no independent draw from D_i."""
    z, snapshot = data
    one, both = (
        bias(occupancy(sampler(snapshot, proposals="in_batch", batch_views=v), z, 4, 1000), target(z @ z.T))
        for v in ("one", "all")
    )
    assert one < 0.13
    assert both > 0.2


def test_bank_scores_have_the_bank_as_target(data):
    z, snapshot = data
    blocks = occupancy(sampler(snapshot, proposals="index", draws=4, score="bank"), z, 16, 400)
    bank = target(snapshot.vectors @ snapshot.vectors.T)
    assert bias(blocks, bank) < 0.1
    assert bias(blocks, target(z @ z.T)) > 0.2


def test_delayed_chains_are_weighed_by_the_expectation_over_their_last_coin(data):
    z, snapshot = data
    made = sampler(snapshot, proposals="index", draws=6, score="delayed")
    rows = torch.arange(16)
    visit(made, z, rows)
    before = made.chains[rows].T.flatten()
    batch, negatives, info = visit(made, z, rows)
    after, ids = made.chains[rows].T.flatten(), batch.candidate_rows
    split = (negatives.weights > 0).sum(1)
    assert set(split.tolist()) == {1, 2}
    torch.testing.assert_close(negatives.weights.sum(1), torch.ones(32))
    assert (negatives.weights * (ids == after[:, None]) > 0).any(1).all()
    assert (negatives.weights[split == 2] * (ids == before[split == 2, None]) > 0).any(1).all()
    assert 0 < info["acceptance_delayed"] < 1
    assert len(batch.drawn_rows) <= 2 * 32  # two ends a chain, whatever the number of draws


def test_a_fresh_start_carries_nothing(data):
    z, snapshot = data
    made = sampler(snapshot, start="fresh")
    visit(made, z, torch.arange(16))
    assert (made.chains == NO_STATE).all()


def test_a_pool_costs_its_draws_whatever_the_batch(data):
    z, snapshot = data
    for size in (4, 16):
        made = sampler(snapshot, pool=True, draws=12, start="fresh")
        batch, negatives, info = visit(made, z, torch.arange(size))
        assert len(batch.drawn_rows) <= 12
        assert 0 < info["acceptance_pool"] < 1
        torch.testing.assert_close(negatives.weights.sum(1), torch.ones(2 * size))


def test_a_wrong_density_would_be_seen(data, monkeypatch):
    z, snapshot = data
    made = sampler(snapshot, proposals="index", draws=4)
    monkeypatch.setattr(
        "negbank.proposals.nearest.NearestDistribution.log_prob", lambda self, ids: torch.zeros(ids.shape)
    )
    assert bias(occupancy(made, z, 16, 200), target(z @ z.T)) > 0.2


@pytest.mark.parametrize("score", ["fresh", "bank", "delayed"])
@pytest.mark.parametrize("start", ["persistent", "fresh"])
@pytest.mark.parametrize(
    ("proposals", "pool"), [("in_batch", False), ("index", False), ("both", False), ("index", True), ("both", True)]
)
def test_weights_are_shares_of_kept_states_on_allowed_columns(data, proposals, pool, start, score):
    z, snapshot = data
    exclude = Exclusions(N, groups=torch.arange(N) % 20)
    made = sampler(
        snapshot,
        proposals=proposals,
        pool=pool,
        draws=32 if pool else 2,
        start=start,
        score=score,
        proposal=partial(NEAREST, exclude=exclude),
        exclude=exclude,
    )
    for rows in torch.randperm(N, generator=torch.Generator().manual_seed(0)).split(16):
        batch, (scores, weights, positive_weight, *_), info = visit(made, z, rows)
        assert positive_weight is None
        torch.testing.assert_close(scores, batch.anchors @ batch.candidates.T)
        torch.testing.assert_close(weights.sum(1), torch.ones(32))
        same = rows.repeat(2)[:, None] % 20 == batch.candidate_rows % 20
        assert weights[same].sum() == 0
        assert info["extra_encodings"] == len(batch.drawn_rows)
        assert 0 <= info["moved"] <= 1
        assert ("acceptance_in_batch" in info) == (proposals != "index" and not pool)


def test_drawn_rows_are_distinct_further_and_hold_every_carried_state(data):
    z, snapshot = data
    made = sampler(snapshot)
    for step, rows in enumerate(torch.randperm(N, generator=torch.Generator().manual_seed(1)).repeat(3).split(16)):
        carried = made.chains[rows]
        ticket = made.draw(rows, step=step)
        drawn = ticket.further
        assert len(drawn.unique()) == len(drawn)
        assert not torch.isin(drawn, rows).any()
        every = torch.cat((rows, drawn))
        assert torch.isin(carried[carried != NO_STATE], every).all()
        made(encoded(z, ticket), ticket)[0].commit()
        assert torch.isin(made.chains[rows], every).all()


def test_every_anchor_keeps_a_state_in_the_smallest_batch(data):
    z, snapshot = data
    made = sampler(snapshot, proposals="in_batch", burn_in=0.5)
    for rows in torch.randperm(N, generator=torch.Generator().manual_seed(2)).split(2):
        weights = visit(made, z, rows)[1].weights
        torch.testing.assert_close(weights.sum(1), torch.ones(4))


def test_a_first_visit_takes_its_first_proposal_and_keeps_as_many_states_as_any_other(data):
    z, snapshot = data
    made = sampler(snapshot, proposals="index", draws=4, burn_in=0.5)
    assert (made.chains == NO_STATE).all()
    _, (_, weights, *_), _ = visit(made, z, torch.arange(10))
    assert (made.chains[:10] != NO_STATE).all()
    assert (made.chains[10:] == NO_STATE).all()
    assert torch.isin(weights, torch.tensor([0.0, 0.5, 1.0])).all()  # two of four states are kept
    assert (made.chains[:10] != torch.arange(10)[:, None]).all()


def test_before_the_first_snapshot_index_draws_are_uniform(data):
    z, _ = data
    made = sampler(None, proposals="index", draws=30)
    ticket = made.draw(torch.arange(16), step=0)
    assert len(ticket.further) > 60  # 480 uniform draws meet nearly all 64 other rows
    made(encoded(z, ticket), ticket)


def test_bank_scores_encode_only_kept_rows(data):
    z, snapshot = data
    fresh, bank = (sampler(snapshot, draws=8, score=s, proposals="index", burn_in=0.9) for s in ("fresh", "bank"))
    ticket, every = (made.draw(torch.arange(16), step=0) for made in (bank, fresh))
    assert len(ticket.further) < len(every.further)
    weights = bank(encoded(z, ticket), ticket)[0].weights
    assert (weights[:, 32:] > 0).any(0).all()


def test_it_resumes_to_the_same_visits(data):
    z, snapshot = data
    first = sampler(snapshot, seed=5)
    visit(first, z, torch.arange(20))
    state = first.state_dict()
    _, expected, _ = visit(first, z, torch.arange(10, 30))
    assert set(state) == {"chains"}
    second = sampler(snapshot, seed=5)
    second.load_state_dict(state)
    _, got, _ = visit(second, z, torch.arange(10, 30), step=1)
    assert torch.equal(got.weights, expected.weights)
    assert torch.equal(first.chains, second.chains)


def test_fresh_queries_are_asked_for(data):
    _, snapshot = data
    with pytest.raises(ValueError, match="queries=None"):
        sampler(snapshot, query="fresh").draw(torch.arange(4), step=0)


def test_a_batch_that_was_not_drawn_for_is_refused(data):
    z, snapshot = data
    made = sampler(snapshot)
    ticket = made.draw(torch.arange(4), step=0)
    others = encoded(z, ticket._replace(rows=torch.arange(4) + 1))
    for batch in (others, encoded(z, ticket._replace(further=ticket.further[1:]))):
        with pytest.raises(ValueError, match="ticket: drawn for other rows"):
            made(batch, ticket)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"proposals": "all"}, "proposals='all'"),
        ({"score": "old"}, "score='old'"),
        ({"burn_in": 1.0}, "burn_in=1.0"),
        ({"batch_views": "two"}, "batch_views='two'"),
        ({"start": "warm"}, "start='warm'"),
        ({"query": "old"}, "query='old'"),
        ({"pool": True, "batch_views": "all"}, "batch_views='all'"),
        ({"proposals": "in_batch", "pool": True}, "draws nothing from the index"),
        ({"proposals": "index", "proposal": None}, "needs `proposal`"),
        ({"proposals": "both", "draws": 0}, "draws=0"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Emc2(N, **{"temperature": 0.1, "proposal": Uniform, **options})
