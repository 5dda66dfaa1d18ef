from __future__ import annotations

import pytest
import torch
from scipy import stats

from negbank import Exclusions

N = 60


def brute_force(positives, groups, forbidden):
    allowed = torch.ones(N, N, dtype=torch.bool).fill_diagonal_(False)
    for i, ids in enumerate(positives or []):
        allowed[i, list(ids)] = False
    if groups is not None:
        allowed &= ~((groups[:, None] == groups) & (groups[:, None] >= 0))
    if forbidden is not None:
        allowed[:, forbidden] = False
    return allowed


POSITIVES = [[(i + 1) % N, (i + 7) % N, (i + 7) % N] if i % 3 else [] for i in range(N)]
GROUPS = torch.arange(N) % 9 - 2
FORBIDDEN = torch.arange(N) % 11 == 0


@pytest.mark.parametrize("positives", [None, POSITIVES])
@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("forbidden", [None, FORBIDDEN])
def test_allowed_count_and_uniform_draws_agree_with_brute_force(positives, groups, forbidden):
    exclude = Exclusions(N, positives=positives, groups=groups, forbidden=forbidden)
    rows, expected = torch.arange(N), brute_force(positives, groups, forbidden)
    assert torch.equal(exclude.allowed(rows, rows.expand(N, N)), expected)
    assert torch.equal(exclude.count(rows), expected.sum(1))
    draws = exclude.uniform(rows, 4000, generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(N, N, dtype=torch.int64).scatter_add_(1, draws, torch.ones_like(draws))
    assert counts[~expected].sum() == 0
    p_values = [stats.chisquare(counts[i][expected[i]].numpy()).pvalue for i in range(N)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4


def test_an_outside_query_is_barred_from_forbidden_rows_alone():
    exclude = Exclusions(N, positives=POSITIVES, groups=GROUPS, forbidden=FORBIDDEN)
    rows = torch.tensor([-1, 3])
    assert torch.equal(exclude.allowed(rows, torch.arange(N).expand(2, N))[0], ~FORBIDDEN)
    assert exclude.count(rows)[0] == (~FORBIDDEN).sum()
    assert set(exclude.uniform(rows, 5000, generator=torch.Generator().manual_seed(1))[0].tolist()) == set(
        (~FORBIDDEN).nonzero().flatten().tolist()
    )


def test_padding_is_never_allowed():
    assert not Exclusions(N).allowed(torch.tensor([0]), torch.tensor([[-1]])).any()


def test_pairs_mean_the_same_as_lists():
    pairs = torch.tensor([(i, j) for i, ids in enumerate(POSITIVES) for j in ids])
    rows = torch.arange(N)
    a, b = (Exclusions(N, positives=p).allowed(rows, rows.expand(N, N)) for p in (POSITIVES, pairs))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positives": [[1]]}, "1 lists for 60 rows"),
        ({"positives": torch.tensor([[0, 60]])}, "outside 0..59"),
        ({"positives": torch.tensor([0, 1])}, "expected \\(P, 2\\)"),
        ({"groups": torch.zeros(N)}, "expected integers"),
        ({"groups": torch.zeros(3, dtype=torch.int64)}, "expected integers"),
        ({"groups": torch.zeros(N, dtype=torch.int64)}, "no allowed negative left"),
        ({"forbidden": torch.zeros(N)}, "expected bool"),
        ({"forbidden": torch.ones(N, dtype=torch.bool)}, "no allowed negative left"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Exclusions(N, **arguments)
