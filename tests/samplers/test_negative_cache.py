from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare, kstest

from negbank import ExactIndex, Exclusions, Snapshot
from negbank.counter import Counter
from negbank.index import Neighbors
from negbank.samplers.negatives import EncodedBatch, NegativeCache
from negbank.samplers.negatives.gumbel import draw_exact, draw_indexed
from negbank.train.losses import surrogate

N, D, B, TEMPERATURE = 200, 8, 6, 0.25
ROWS = torch.arange(B) * 30
DRAWS = 10_000


@pytest.fixture
def data(clustered):
    z = clustered(N, dim=D, spread=0.6)
    return z, Snapshot.build(z, factory="exact")


class Forgetful(ExactIndex):
    """Leaves the nearest other row out of every answer, as an approximate search may."""

    def search(self, queries, k, *, exclude=None):
        found = super().search(queries, k + 1)
        keep = torch.arange(k + 1) != 1
        return Neighbors(found.ids[:, keep], found.scores[:, keep])


def law(vectors, rows, exclude, written=None):
    """π over the bank (B, N) and log Z (B,), by enumeration."""
    logits = (vectors[rows].double() @ vectors.T.double()) / TEMPERATURE
    allowed = exclude.allowed(rows, torch.arange(len(vectors)).expand(len(rows), -1))
    allowed = allowed if written is None else allowed & written
    logits = logits.masked_fill(~allowed, -torch.inf)
    return logits.softmax(1), logits.logsumexp(1)


def p_values(ids, pi):
    """χ² of each row's draws (B, n) against its law (B, N); cells of fewer than 5 expected draws are put together."""
    found = []
    for drawn, expected in zip(ids, pi * ids.shape[1]):
        assert (expected[drawn] > 0).all()
        counts = torch.bincount(drawn, minlength=len(expected)).double()
        small = expected < 5
        counts = torch.cat((counts[~small], counts[small].sum()[None]))
        expected = torch.cat((expected[~small], expected[small].sum()[None]))
        found.append(chisquare(counts[expected > 0], expected[expected > 0]).pvalue)
    return found


def indexed(snapshot, n=DRAWS, seed=0, **options):
    return indexed_rows(snapshot, ROWS, n, seed, **options)


def indexed_rows(snapshot, rows, n, seed=0, **options):
    options = {"k": 8, "slack": 0.0, "exclude": snapshot.exclude_self, **options}
    return draw_indexed(
        snapshot, rows, snapshot.vectors[rows], n, temperature=TEMPERATURE,
        generator=torch.Generator().manual_seed(seed), **options,
    )  # fmt: skip


EXCLUDE = Exclusions(N, groups=torch.arange(N) % 40, positives=torch.tensor([[0, 3], [30, 7]]))


@pytest.mark.parametrize("exclude", [None, EXCLUDE], ids=["self", "groups and positives"])
@pytest.mark.parametrize("k", [2, 8, 60])
def test_draws_through_the_index_have_the_law_of_the_softmax(data, k, exclude):
    _, snapshot = data
    exclude = snapshot.exclude_self if exclude is None else exclude
    draws = indexed(snapshot, k=k, exclude=exclude)
    pi, _ = law(snapshot.vectors, ROWS, exclude)
    assert min(p_values(draws.ids, pi)) > 1e-3
    tail = (draws.ids[:, :, None] != snapshot.index.search(snapshot.vectors[ROWS], k + 1).ids[:, None]).all(2)
    assert 0.001 < float(tail.double().mean()) < 0.99  # both parts of the race have winners


@pytest.mark.parametrize("exclude", [None, EXCLUDE], ids=["self", "groups and positives"])
def test_exact_draws_have_the_law_of_the_softmax(data, exclude):
    z, snapshot = data
    exclude = snapshot.exclude_self if exclude is None else exclude
    written = torch.arange(N) % 3 != 1
    draws = draw_exact(
        z, written, ROWS, z[ROWS], DRAWS, temperature=TEMPERATURE, exclude=exclude,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    pi, log_partition = law(z, ROWS, exclude, written)
    assert min(p_values(draws.ids, pi)) > 1e-3
    torch.testing.assert_close(draws.log_partition[:, 0], log_partition, atol=1e-5, rtol=0)


def test_a_search_that_misses_a_row_needs_slack(data):
    """Without it the missed row, nearer than the bound of the tail, is drawn too seldom; the test would find it out."""
    z, _ = data
    missing = Snapshot(z, Forgetful(z), rows=None, positives=None, step=0, version=0)
    pi, _ = law(z, ROWS, missing.exclude_self)
    scores = (z[ROWS] @ z.T).sort(1, descending=True).values
    slack = float((scores[:, 1] - scores[:, 9]).max())
    assert max(p_values(indexed(missing, k=8, slack=0.0).ids, pi)) < 1e-3
    assert min(p_values(indexed(missing, k=8, slack=slack).ids, pi)) > 1e-3


@pytest.mark.parametrize("exclude", [None, EXCLUDE], ids=["self", "groups and positives"])
def test_a_race_takes_an_exponential_time_whatever_its_winner(data, exclude):
    """The first ring of clocks of rate Z in all is at t ~ Exp(Z), and E exp(−t e^a) = Z / (Z + e^a) for every row."""
    _, snapshot = data
    exclude = snapshot.exclude_self if exclude is None else exclude
    draws = indexed(snapshot, exclude=exclude)
    pi, log_partition = law(snapshot.vectors, ROWS, exclude)
    unit = (draws.log_times + log_partition[:, None]).exp()
    assert min(kstest(times, "expon").pvalue for times in unit) > 1e-3
    log_rate = log_partition + torch.linspace(-1, 1, B)
    share = draws.first(log_rate)
    expected = torch.sigmoid(log_partition - log_rate)
    assert ((share.mean(1) - expected).abs() < 4 * share.std(1) / DRAWS**0.5).all()
    likely = pi[0].argmax()
    assert abs(float(share[0, draws.ids[0] == likely].mean() - expected[0])) < 0.02


def test_one_draw_through_the_index_is_exact_on_average(data):
    """10⁵ visits of one draw each, by the weight of every row. An estimate of Z in 1 − p⁺ would be off by 0.014."""
    _, snapshot = data
    row, visits = ROWS[:1], 100_000
    draws = indexed_rows(snapshot, row.repeat(visits), 1)
    score = torch.tensor(0.9)
    pi, log_partition = law(snapshot.vectors, row, snapshot.exclude_self)
    weight = draws.first((score / TEMPERATURE).double().repeat(visits))
    got = torch.zeros(N, dtype=torch.float64).scatter_add_(0, draws.ids[:, 0], weight[:, 0]) / visits
    expected = pi[0] * torch.sigmoid(log_partition - score / TEMPERATURE)
    assert abs(float(got.sum() - expected.sum())) < 4 * float(weight.std()) / visits**0.5
    assert float((got - expected).abs().max()) < 4 * (float(expected.max()) / visits) ** 0.5


def test_the_tail_is_a_small_part_of_the_bank(clustered):
    """At most |D| / k rows are looked at for a draw, on average: with k = √N that is √N."""
    z = clustered(4000, dim=16, spread=0.6)
    snapshot = Snapshot.build(z, factory="exact")
    for temperature in (0.1, 1.0, 10.0):
        draws = draw_indexed(
            snapshot, torch.arange(64), z[:64], 4, k=64, temperature=temperature, slack=0.0,
            exclude=snapshot.exclude_self, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        assert draws.tail < 1.2 * 4000 / 64
    assert draws.tail > 0.6 * 4000 / 64  # flat scores: the bound is met


def test_an_anchor_whose_nearest_rows_are_all_excluded_keeps_its_law(data):
    """As with classes for groups: the k nearest may all be of the anchor's own."""
    z, _ = data
    order = (z[0] @ z.T).argsort(descending=True)
    exclude = Exclusions(N, groups=torch.zeros(N, dtype=torch.int64).index_fill_(0, order[20:], 1))
    for written in (None, torch.arange(N) % 3 != 1):
        snapshot = Snapshot.build(z, factory="exact", written=written)
        pi, log_partition = law(snapshot.vectors, ROWS, exclude, written)
        draws = indexed(snapshot, k=8, exclude=exclude)
        assert min(p_values(draws.ids, pi)) > 1e-3
        unit = (draws.log_times + log_partition[:, None]).exp()
        assert min(kstest(times, "expon").pvalue for times in unit) > 1e-3


def test_rows_never_written_are_not_drawn(data):
    z, _ = data
    written = torch.arange(N) % 3 != 1
    snapshot = Snapshot.build(z, factory="exact", written=written)
    pi, _ = law(snapshot.vectors, ROWS, snapshot.exclude_self, written)
    assert min(p_values(indexed(snapshot).ids, pi)) > 1e-3


def visit(made, z, rows, queries=None, step=None):
    """A visit at a step, by default the one after the last visit's."""
    made.at = step = getattr(made, "at", -1) + 1 if step is None else step
    ticket = made.draw(rows, step=step, queries=queries)
    drawn = ticket.further
    batch = EncodedBatch.from_views(rows, torch.cat((z[rows], z[rows], z[drawn])), drawn)
    negatives, info = made(batch, ticket)
    negatives.commit()
    return batch, negatives, info


def sampler(seed=0, **options):
    options = {"temperature": TEMPERATURE, **options}
    return NegativeCache(N, counter=Counter.of(seed), **options)


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("search", ["exact", "index"])
def test_with_a_fresh_cache_the_mean_gradient_is_that_of_the_cross_entropy_over_the_data_set(data, search, positive):
    z, snapshot = data
    made = sampler(draws=4000, search=search, positive=positive)
    if search == "index":
        made.update(snapshot)
    else:  # fill the cache: every row is encoded once
        for rows in torch.randperm(N, generator=torch.Generator().manual_seed(1)).split(50):
            visit(made, z, rows)
        assert made.cache.written.all()
    # other views than the cached ones: what is drawn is chosen by the cache, and weighs 1/n whatever its fresh score
    x = torch.nn.functional.normalize(z.double() + 0.1, dim=1).requires_grad_()
    ticket = made.draw(ROWS, step=0)
    drawn = ticket.further
    batch = EncodedBatch.from_views(ROWS, torch.cat((x[ROWS], x[ROWS], x[drawn])), drawn)
    negatives, _ = made(batch, ticket)
    got = torch.autograd.grad(surrogate(batch, negatives, temperature=TEMPERATURE), x)[0]
    pi, log_partition = law(snapshot.vectors, ROWS, snapshot.exclude_self)
    anchors = x[ROWS]
    pull = (pi * (anchors @ x.T)).sum(1) - anchors.square().sum(1)
    p = torch.sigmoid(log_partition - anchors.square().sum(1).detach() / TEMPERATURE) if positive else torch.ones(B)
    expected = torch.autograd.grad((p * pull).mean() / TEMPERATURE, x)[0]
    assert float((got - expected).norm() / expected.norm()) < 0.05


def test_the_cache_takes_what_is_encoded_and_the_oldest_rows_are_refreshed():
    """Of a row's two views the mean is kept. ρN rows a step: those never written, then those written longest ago."""
    made = sampler(draws=1, refresh=0.1)
    written_at = torch.full((N,), -1)
    for step in range(1, 31):
        z = torch.nn.functional.normalize(torch.randn(2 * N, D, generator=torch.Generator().manual_seed(step)), dim=1)
        rows = (torch.arange(B) + step * B) % N
        ticket = made.draw(rows, step=step)
        drawn = ticket.further
        oldest = written_at.clone()
        oldest[rows] = step
        order = oldest.sort().values
        assert len(drawn) <= 20 + B
        refreshed = oldest[drawn].sort().values[:20]  # beside the draws, which may be any rows
        assert (refreshed <= order[19]).all()
        batch = EncodedBatch.from_views(rows, torch.cat((z[rows], z[rows + N], z[drawn])), drawn)
        made(batch, ticket)[0].commit()
        written_at[rows], written_at[drawn] = step, step
        assert torch.equal(made.cache.written_at, written_at)
        torch.testing.assert_close(made.cache.vectors[drawn], z[drawn])
        mean = torch.nn.functional.normalize(z[rows] + z[rows + N], dim=1)
        torch.testing.assert_close(made.cache.vectors[rows], mean)
    assert made.cache.written.all()
    assert int(step - written_at.min()) < 11


def test_refreshed_rows_that_were_not_drawn_weigh_nothing(data):
    z, _ = data
    made = sampler(draws=2, refresh=0.2)
    visit(made, z, ROWS)
    batch, (_, weights, *_), info = visit(made, z, ROWS)
    assert info["extra_encodings"] == len(batch.drawn_rows) >= 40
    assert all(len(batch.candidate_rows[row > 0].unique()) <= 2 for row in weights)


def test_before_anything_is_cached_draws_are_uniform(data):
    z, _ = data
    made = sampler(draws=3000)
    _, (_, weights, *_), _ = visit(made, z, ROWS)
    torch.testing.assert_close(weights.sum(1), torch.ones(2 * B))
    drawn = (weights > 0).sum(1)
    assert (drawn >= N - 1).all()


@pytest.mark.parametrize("options", [{"refresh": 0.05}, {"search": "index"}, {"query": "fresh"}], ids=str)
def test_it_resumes_to_the_same_draws(data, options):
    z, snapshot = data
    first, second = sampler(draws=3, **options), sampler(draws=3, **options)
    for made in (first, second):
        made.update(snapshot)
    queries = z[ROWS] if first.fresh_queries else None
    second.load_state_dict(first.state_dict())  # before there is a cache
    for _ in range(3):
        visit(first, z, ROWS, queries)
    second.load_state_dict(first.state_dict())
    for step, rows in enumerate((ROWS, ROWS + 1), start=3):
        a, b = visit(first, z, rows, queries, step), visit(second, z, rows, queries, step)
        assert torch.equal(a[0].drawn_rows, b[0].drawn_rows)
        assert torch.equal(a[1].weights, b[1].weights)


def test_bad_input_is_named(data):
    z, _ = data
    for options, message in [
        ({"temperature": 0}, "temperature=0"),
        ({"draws": 0}, "draws=0"),
        ({"search": "all"}, "search='all': expected one of exact, index"),
        ({"refresh": 1.5}, "refresh=1.5"),
        ({"refresh": 0.1, "search": "index"}, "refresh=0.1: with search='index' the cache is the snapshot"),
        ({"k": N, "search": "index"}, f"k={N}: expected 1..{N - 1}"),
        ({"slack": 3.0, "k": 64}, "slack=3.0: expected 0..1.04, in cosine"),
        ({"query": "old"}, "query='old'"),
    ]:
        with pytest.raises(ValueError, match=message):
            sampler(**options)
    with pytest.raises(ValueError, match="queries=None"):
        sampler(query="fresh").draw(ROWS, step=0)
    made = sampler()
    with pytest.raises(ValueError, match="ticket: drawn for other rows"):
        made(EncodedBatch.from_views(ROWS + 1, z[: 2 * B]), made.draw(ROWS, step=0))
    visit(made, z, ROWS)
    with pytest.raises(ValueError, match="cache: 200 rows in the state, 300 here"):
        NegativeCache(300, temperature=TEMPERATURE).load_state_dict(made.state_dict())
