"""What may be a negative of a query at all, which candidates pass the filters, and which of these are taken.

By position: not its known positives, its own row, excluded pairs, nor rows of its group,

    D_i = {0..N−1} − positives(i) − own(i) − excluded(i) − {j : label(j) = label(i)}.

Candidates of a query stand in the order of (−score, id); rank 0 is the best row of D_i. With p the reference among the
scores of its positives, a candidate of score s and rank < range_max is rejected, by the first that applies, for

    rank < range_min,   being a near-duplicate of a positive,
    s + absolute_margin > p,   s > p − |p| · relative_margin,   s > max_score,   s < min_score.

Of the rest, "top" takes the first, "random" and "softmax" draw without replacement: the num_negatives largest of
s/τ + Gumbel noise (Kool et al. 2019, arXiv:1903.06059), at 1/τ = 0 for "random". Noise is a hash of (seed, query id,
positive id, candidate id), so that a draw depends on nothing else.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from negbank.arrays import NO_GROUP
from negbank.bounds import Count, Ge, Gt, Lt, Positive
from negbank.margins import near_positive

REASONS = (
    "range_min",
    "near_positive",
    "absolute_margin",
    "relative_margin",
    "max_score",
    "min_score",
    "near_negative",
)
"""What a candidate can be rejected for; `verdicts` gives 1 + the place here."""
NOBODY = -1
"""Column of a negative that was not found."""

Rank = Annotated[int, Ge(0)]
Reference = Literal["min", "max", "mean", "each"]
Strategy = Literal["top", "random", "softmax"]
Shortfall = Literal["short", "drop", "pad_random", "error"]
Finite = Annotated[float, Gt(-np.inf), Lt(np.inf)]


class Rules(NamedTuple):
    """The arguments of `mine_hard_negatives` that choose among candidates; `range_max` is a number here."""

    num_negatives: Count = 3
    range_min: Rank = 0
    range_max: int = 10
    absolute_margin: Finite | None = None
    relative_margin: Finite | None = None
    min_score: Finite | None = None
    max_score: Finite | None = None
    positive_reference: Reference = "min"
    sampling_strategy: Strategy = "top"
    temperature: Positive = 0.05
    shortfall: Shortfall = "short"
    seed: int = 0

    @property
    def margins(self) -> bool:
        """Whether positives are measured against."""
        return self.absolute_margin is not None or self.relative_margin is not None

    def check(self) -> None:
        """Raise ValueError for arguments that do not go together, naming values and remedy."""
        if self.range_max - self.range_min < self.num_negatives:
            raise ValueError(
                f"range_max={self.range_max}: ranks {self.range_min}..{self.range_max - 1} hold "
                f"{max(0, self.range_max - self.range_min)} candidates for num_negatives={self.num_negatives}; "
                f"raise range_max to at least {self.range_min + self.num_negatives}"
            )
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            raise ValueError(f"min_score={self.min_score} is above max_score={self.max_score}; nothing lies between")


class Window(NamedTuple):
    """Candidates of r rows, laid side by side and padded by scores of −∞.

    scores (r, K) float32 by rank; near (r, K) bool: near-duplicates of a positive, or None; pairs: (row, column,
    column) arrays of candidates that are near-duplicates of each other, or None.
    """

    scores: np.ndarray
    near: np.ndarray | None = None
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None


class Picked(NamedTuple):
    """columns (r, n) of the window, ascending, `NOBODY` where none was left; log_probs (r, n) or None; rejects (7,)."""

    columns: np.ndarray
    log_probs: np.ndarray | None
    rejects: np.ndarray


def reference_scores(indptr: np.ndarray, scores: np.ndarray, kind: str) -> np.ndarray:
    """The positive score that margins measure against, one a query (Q,) or, for "each", one a positive: float32.

    NaN for a query without positives.
    """
    if kind == "each":
        return scores
    counts = np.diff(indptr)
    found = np.full(len(counts), np.nan, dtype=np.float32)
    filled = counts > 0
    if filled.any():
        starts = indptr[:-1][filled]
        if kind == "mean":
            found[filled] = np.add.reduceat(scores.astype(np.float64), starts) / counts[filled]
        else:
            found[filled] = (np.minimum if kind == "min" else np.maximum).reduceat(scores, starts)
    return found


def verdicts(window: Window, reference: np.ndarray, rules: Rules, *, bounds: bool = True) -> np.ndarray:
    """0 where a candidate may be taken, 1 + its place in `REASONS` where not, −1 where there is none: (r, K) int8.

    Args:
        reference: (r,) float32.
        bounds: False to leave out ranks and `min_score`, which are not asked of random padding.
    """
    s = window.scores
    p = reference.astype(np.float32)[:, None]
    rank = np.arange(s.shape[1])
    nothing = np.zeros_like(s, dtype=bool)
    conditions = (
        nothing | (rank < rules.range_min) if bounds else nothing,
        nothing if window.near is None else window.near,
        near_positive(s, p, absolute=rules.absolute_margin),
        near_positive(s, p, relative=rules.relative_margin),
        nothing if rules.max_score is None else s > np.float32(rules.max_score),
        nothing if rules.min_score is None or not bounds else s < np.float32(rules.min_score),
    )
    found = np.zeros(s.shape, dtype=np.int8)
    for reason, condition in reversed(list(enumerate(conditions, start=1))):
        found[condition] = reason
    found[(s == -np.inf) | (bounds & (rank >= rules.range_max))] = -1
    return found


def pick(window: Window, reference: np.ndarray, noise: np.ndarray | None, rules: Rules) -> Picked:
    """Choose up to `num_negatives` of every row's candidates.

    Args:
        noise: (r, K) float64 uniforms in (0, 1) from `draw`, for "random" and "softmax"; else None.
    """
    verdict = verdicts(window, reference, rules)
    open_ = verdict == 0
    log_probs = None
    order = np.broadcast_to(np.arange(open_.shape[1]), open_.shape)
    if noise is not None:
        softmax = rules.sampling_strategy == "softmax"
        logits = window.scores.astype(np.float64) / rules.temperature if softmax else np.zeros(open_.shape)
        logits = np.where(open_, logits, -np.inf)
        with np.errstate(invalid="ignore"):
            top = logits.max(axis=1, keepdims=True, initial=-np.inf)
            log_probs = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        order = np.argsort(-(logits - np.log(-np.log(noise))), axis=1, kind="stable")
    if window.pairs is None:
        in_order = np.take_along_axis(open_, order, 1)
        taken = np.zeros_like(open_)
        np.put_along_axis(taken, order, in_order & (in_order.cumsum(1) <= rules.num_negatives), 1)
    else:
        taken = _apart(window, open_, order, rules.num_negatives, verdict)
    columns = np.full((len(open_), rules.num_negatives), NOBODY)
    row, column = np.nonzero(taken)
    counts = taken.sum(1)
    columns[row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)] = column
    chosen = None
    if log_probs is not None:
        chosen = np.where(columns == NOBODY, np.nan, np.take_along_axis(log_probs, columns.clip(min=0), 1))
    rejects = np.bincount(verdict[verdict > 0], minlength=len(REASONS) + 1)[1:]
    return Picked(columns, chosen, rejects)


def _apart(window: Window, open_: np.ndarray, order: np.ndarray, count: int, verdict: np.ndarray) -> np.ndarray:
    """Take in order, skipping near-duplicates of what is taken; those passed over are marked in `verdict`."""
    assert window.pairs is not None
    row, left, right = window.pairs
    near = np.zeros((len(open_), open_.shape[1], open_.shape[1]), dtype=bool)
    near[row, left, right] = near[row, right, left] = True
    taken, blocked = np.zeros_like(open_), np.zeros_like(open_)
    number, every = np.zeros(len(open_), dtype=np.int64), np.arange(len(open_))
    for column in order.T:
        wanted = open_[every, column] & (number < count)
        repeated = wanted & blocked[every, column]
        verdict[every[repeated], column[repeated]] = len(REASONS)
        new = wanted & ~repeated
        taken[every[new], column[new]] = True
        number += new
        blocked[new] |= near[every[new], column[new]]
    return taken


def draw(seed: int, queries: np.ndarray, positives: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Uniforms in (0, 1) by hashing: (r, K) float64.

    Args:
        queries, positives: (r,) uint64 keys of ids; positives 0 but for "each".
        candidates: (r, K) uint64 keys.
    """
    with np.errstate(over="ignore"):
        state = _mixed(np.uint64(seed % 2**64) + np.uint64(0x9E3779B97F4A7C15))
        state = _mixed(_mixed(state ^ queries) + positives)
        bits = _mixed(_mixed(state[:, None] ^ candidates) + np.uint64(0x9E3779B97F4A7C15))
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _mixed(x: np.ndarray | np.uint64) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014), a bijection of 64 bits."""
    x = np.asarray(x, dtype=np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


class Csr(NamedTuple):
    """Ragged rows: row i is values[indptr[i] : indptr[i + 1]]."""

    indptr: np.ndarray
    values: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Values of each row."""
        return np.diff(self.indptr)

    @property
    def rows(self) -> np.ndarray:
        """The row of each value."""
        return np.repeat(np.arange(len(self.indptr) - 1), self.counts)

    def part(self, start: int, stop: int) -> Csr:
        """Rows start..stop−1."""
        inside = self.indptr[start : stop + 1]
        return Csr(inside - inside[0], self.values[inside[0] : inside[-1]])

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of all values of rows (r,), one row after the other: which of the r it belongs to, and its place here."""
        some = offsets(self.counts[rows])
        owner = np.repeat(np.arange(len(rows)), np.diff(some))
        return owner, np.arange(some[-1]) + (self.indptr[rows] - some[:-1])[owner]


def offsets(counts: np.ndarray) -> np.ndarray:
    """0 and the running sum of counts."""
    return np.concatenate(([0], np.cumsum(counts)))


def csr(rows: np.ndarray, values: np.ndarray, count: int) -> Csr:
    """CSR of `count` rows from pairs, each pair once, in the order of its first appearance."""
    order = np.lexsort((np.arange(len(rows)), values, rows))
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (np.diff(rows[order]) != 0) | (np.diff(values[order]) != 0)
    kept = np.sort(order[first])
    kept = kept[np.argsort(rows[kept], kind="stable")]
    return Csr(offsets(np.bincount(rows[kept], minlength=count)), values[kept].astype(np.int64))


class Forbidden:
    """The complements of D_i for Q queries over N corpus rows.

    Args:
        listed: lists of forbidden positions, one CSR over the queries each; they are united.
        query_groups, corpus_groups: (Q,) and (N,) int64 labels, `NO_GROUP` for none; or both None.
        rows: N.
    """

    def __init__(
        self, listed: list[Csr], query_groups: np.ndarray | None, corpus_groups: np.ndarray | None, rows: int
    ) -> None:
        count = len(listed[0].indptr) - 1
        keys = np.unique(np.concatenate([each.rows * rows + each.values for each in listed]))  # a pair as one number
        self._listed = Csr(np.searchsorted(keys, np.arange(count + 1) * rows), keys % rows)
        self._keys, self._rows = np.append(keys, np.iinfo(np.int64).max), rows
        self._query_groups, self._corpus_groups = query_groups, corpus_groups
        self._sizes = np.zeros(count, dtype=np.int64)  # of each query's group, in the corpus
        if query_groups is not None and corpus_groups is not None:
            labels, sizes = np.unique(corpus_groups, return_counts=True)
            at = np.searchsorted(labels, query_groups).clip(max=len(labels) - 1)
            self._sizes = np.where((labels[at] == query_groups) & (query_groups != NO_GROUP), sizes[at], 0)

    def most(self, queries: np.ndarray) -> int:
        """An upper bound of the rows forbidden to any of the queries (b,)."""
        return int(self._listed.counts[queries].max(initial=0)) + int(self._sizes[queries].max(initial=0))

    def mask(self, queries: np.ndarray) -> Mask:
        """What is forbidden to queries (b,), to be looked up by runs of rows."""
        owner, place = self._listed.places(queries)
        ours = None if self._query_groups is None else self._query_groups[queries]
        return Mask(owner, self._listed.values[place], ours, self._corpus_groups)

    def allowed(self, queries: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Whether positions (b, n) lie in D_i of queries (b,): (b, n) bool; −1 never does."""
        keys = queries[:, None] * self._rows + positions
        free = (positions >= 0) & (self._keys[np.searchsorted(self._keys, keys)] != keys)
        if self._query_groups is not None and self._corpus_groups is not None:
            ours = self._query_groups[queries][:, None]
            free &= (ours == NO_GROUP) | (self._corpus_groups[positions] != ours)
        return free


class Mask:
    """Pairs (query 0..b−1, position) that are forbidden, and labels of the queries and of all rows, or None."""

    def __init__(
        self, queries: np.ndarray, positions: np.ndarray, ours: np.ndarray | None, theirs: np.ndarray | None
    ) -> None:
        order = np.argsort(positions)
        self._queries, self._positions, self._ours, self._theirs = queries[order], positions[order], ours, theirs

    def __call__(self, products: Tensor, row: int) -> None:
        """Set products (b, s) with corpus rows row.. to −∞ where forbidden."""
        stop = row + products.shape[1]
        some = slice(*np.searchsorted(self._positions, (row, stop)).tolist())
        if some.start < some.stop:
            at = torch.from_numpy(np.stack((self._queries[some], self._positions[some] - row))).to(products.device)
            products[at[0], at[1]] = -torch.inf
        if self._ours is not None and self._theirs is not None:
            ours = torch.from_numpy(self._ours).to(products.device)[:, None]
            theirs = torch.from_numpy(self._theirs[row:stop]).to(products.device)
            products.masked_fill_((ours == theirs) & (ours != NO_GROUP), -torch.inf)
