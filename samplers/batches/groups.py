"""No more than m rows of one group in a batch, and groups of near-duplicates.

A row x of a group a that has more than m rows in batch i goes to a batch j with n_j(a) < m, in exchange for a row y of
a group b with

    n_i(b) < max(m, n_j(b))        or of no group.

Where batches are of one size such a y is there for every such j: i holds more of a, so j holds more of some b. Each
exchange lowers the excess Σ (n_i(a) − m)⁺ by one or more and none breaks a group that is in order, so that one pass
over the groups ends without excess whenever there is a way: exactly if no group has more than m rows a batch.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from negbank.counter import below, stream
from negbank.snapshot import Snapshot

NO_GROUP = -1
RESERVE = 4096
"""Rows of the reserve that are looked at for an exchange."""


def check_groups(
    groups: Tensor | None, max_per_group: int | None, *, num_rows: int, batch_size: int, batches: int | None
) -> Tensor | None:
    """The labels (N,) as long on the CPU, `NO_GROUP` for the rows that no plan can put too many of in a batch.

    Args:
        batches: those of an epoch, where they hold every row; None where they do not.

    Raises:
        ValueError: for one of the two arguments without the other, labels of another length or dtype, a
            group of more than max_per_group rows a batch of an epoch, or too few groups to fill a batch.
    """
    if groups is None and max_per_group is None:
        return None
    if groups is None or max_per_group is None:
        given, missing = ("max_per_group", "groups") if groups is None else ("groups", "max_per_group")
        raise ValueError(f"{given}: bounds the rows of one group in a batch only together with {missing}; give both")
    if groups.shape != (num_rows,) or groups.dtype.is_floating_point or groups.dtype == torch.bool:
        raise ValueError(f"groups: {groups.dtype} {tuple(groups.shape)}, expected integers ({num_rows},)")
    groups = groups.cpu().to(torch.int64)
    names, label, sizes = groups.unique(return_inverse=True, return_counts=True)
    room = int(torch.where(names < 0, sizes, sizes.clamp(max=max_per_group)).sum())
    if room < batch_size:
        raise ValueError(
            f"max_per_group={max_per_group}: {len(names)} groups have {room} rows for a batch of batch_size="
            f"{batch_size}; raise it, or lower batch_size"
        )
    sizes = torch.where(names < 0, 0, sizes)
    if batches is not None and int(sizes.max()) > max_per_group * batches:
        name, size = int(names[sizes.argmax()]), int(sizes.max())
        raise ValueError(
            f"max_per_group={max_per_group}: group {name} has {size} rows, more than {max_per_group} in each of the "
            f"{batches} batches of an epoch; raise it to {-(-size // batches)}, or lower batch_size"
        )
    kept = sizes > max_per_group
    compact = torch.where(kept, kept.cumsum(0) - 1, NO_GROUP)
    return compact[label]


def spread(
    rows: Tensor,
    batch_size: int,
    groups: Tensor,
    max_per_group: int,
    generator: torch.Generator,
    *,
    reserve: Tensor | None = None,
) -> Tensor:
    """Exchange rows between batches until none has more than `max_per_group` rows of a group.

    Args:
        rows: (R,) batches one after the other, each of B rows but the last, which may be smaller.
        batch_size: B.
        groups: (N,) labels 0, 1, …; negative for no group.
        max_per_group: m. The first m rows of a group in a batch stay.
        generator: chooses the batches and the rows to exchange with.
        reserve: rows in no batch, which are exchanged with where no batch will do.

    Returns:
        (R,) the same rows, but for those exchanged with the reserve. Best effort where a group has more than m rows a
        batch, where the last batch is smaller than the others, or where rows come more than once (no row then enters a
        batch that it is in already). What is left of an epoch has a way whenever the epoch had one: it was planned
        within the bound before.
    """
    order = rows if reserve is None else torch.cat((rows, reserve))
    of_slot = groups[order]
    by_group = of_slot.argsort(stable=True)
    starts = torch.searchsorted(of_slot[by_group], torch.arange(int(groups.max()) + 2))
    slots = order.numpy().copy()
    tables = groups.numpy(), by_group.numpy(), starts.numpy()
    _exchange(slots, len(rows), batch_size, *tables, max_per_group, stream(generator))
    return torch.from_numpy(slots[: len(rows)])


@numba.njit(cache=True, nogil=True)
def _exchange(
    order: np.ndarray,
    total: int,
    size: int,
    labels: np.ndarray,
    by_group: np.ndarray,
    starts: np.ndarray,
    most: int,
    state: np.ndarray,
) -> None:
    kinds, batches = len(starts) - 1, (total + size - 1) // size
    place = np.arange(len(order))  # of the row that began in a slot
    began = np.arange(len(order))  # and back
    mine, theirs = np.zeros(kinds, np.int64), np.zeros(kinds, np.int64)
    free = np.empty(batches, np.int64)
    for a in range(kinds):
        slots = by_group[starts[a] : starts[a + 1]]
        if len(slots) <= most:
            continue
        count, seen = np.zeros(batches, np.int64), np.zeros(batches, np.int64)
        for s in slots:
            if place[s] < total:
                count[place[s] // size] += 1
        if count.max() <= most:
            continue
        room = 0
        for j in range(batches):
            if count[j] < most:
                free[room] = j
                room += 1
        for s in slots:
            p = place[s]
            if p >= total:
                continue
            seen[p // size] += 1
            if seen[p // size] <= most:
                continue
            at, q = _find(order, total, size, labels, most, p, free[:room], mine, theirs, state)
            if q < 0:
                continue
            order[p], order[q] = order[q], order[p]
            began[p], began[q] = began[q], began[p]
            place[began[p]], place[began[q]] = p, q
            if at < room:
                count[free[at]] += 1
                if count[free[at]] == most:
                    room -= 1
                    free[at] = free[room]


@numba.njit(cache=True, nogil=True)
def _find(
    order: np.ndarray,
    total: int,
    size: int,
    labels: np.ndarray,
    most: int,
    p: int,
    free: np.ndarray,
    mine: np.ndarray,
    theirs: np.ndarray,
    state: np.ndarray,
) -> tuple[int, int]:
    """Which of the free batches, and which slot in it, may change places with slot p.

    The number of free batches for a slot of the reserve, and slot −1 if there is none.
    """
    own = order[p - p % size : min(p - p % size + size, total)]
    _count(own, labels, mine)
    at, n, begin = len(free), -1, total
    first = below(state, len(free)) if len(free) else 0
    for t in range(len(free)):
        at = (first + t) % len(free)
        begin = free[at] * size
        other = order[begin : min(begin + size, total)]
        if not (other == order[p]).any():
            _count(other, labels, theirs)
            n = _partner(own, other, labels[order[p]], labels, most, mine, theirs, len(other), state)
            _clear(other, labels, theirs)
            if n >= 0:
                break
    if n < 0 and len(order) > total:
        at, begin = len(free), total
        n = _partner(own, order[total:], labels[order[p]], labels, most, mine, theirs, RESERVE, state)
    _clear(own, labels, mine)
    return at, begin + n if n >= 0 else -1


@numba.njit(cache=True, nogil=True)
def _partner(
    own: np.ndarray,
    other: np.ndarray,
    a: int,
    labels: np.ndarray,
    most: int,
    mine: np.ndarray,
    theirs: np.ndarray,
    tries: int,
    state: np.ndarray,
) -> int:
    """A position in `other` whose row, not of group a, may come to batch `own`; −1 if there is none."""
    first = below(state, len(other))
    for t in range(min(tries, len(other))):
        n = (first + t) % len(other)
        b = labels[other[n]]
        if b != a and (b < 0 or mine[b] < max(most, theirs[b])) and not (own == other[n]).any():
            return n
    return -1


@numba.njit(cache=True, nogil=True)
def _count(rows: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> None:
    for row in rows:
        if labels[row] >= 0:
            counts[labels[row]] += 1


@numba.njit(cache=True, nogil=True)
def _clear(rows: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> None:
    for row in rows:
        if labels[row] >= 0:
            counts[labels[row]] = 0


def near_duplicates(snapshot: Snapshot, above: float, *, k: int = 16) -> Tensor:
    """Groups of rows that are linked by cosines above a bound: connected components of the kNN graph's such edges.

    Args:
        snapshot: rows and their index; an approximate one may miss an edge.
        above: cosine that an edge has to exceed, in [−1, 1).
        k: edges a row, at most one less than the rows the snapshot holds. A cluster of more than k + 1 rows is found
            whole as long as its rows' k nearest link it.

    Returns:
        (N,) labels 0, 1, … in the order of each group's first row, `NO_GROUP` for a row without a near-duplicate and
        for one never written: `groups` of a batch sampler or of `negbank.exclusions.Exclusions`.

    Raises:
        ValueError: for a bound or a k outside their ranges.
    """
    if not -1 <= above < 1:
        raise ValueError(f"above={above}: expected a cosine in [-1, 1)")
    held = len(snapshot.index)
    if not 1 <= k < held:
        raise ValueError(f"k={k}: expected 1..{held - 1}, the other rows that the snapshot holds")
    found = snapshot.index.graph(k)
    ids, scores = found.ids.cpu(), found.scores.cpu()
    rows = torch.arange(len(snapshot)) if snapshot.rows is None else snapshot.rows.cpu()
    linked = (scores > above).nonzero()
    roots = torch.from_numpy(
        _components(len(snapshot), rows[linked[:, 0]].numpy(), ids[linked[:, 0], linked[:, 1]].numpy())
    )
    _, label, sizes = roots.unique(return_inverse=True, return_counts=True)
    several = sizes > 1
    return torch.where(several, several.cumsum(0) - 1, NO_GROUP)[label]


@numba.njit(cache=True, nogil=True)
def _components(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The smallest member of each row's component: union-find with path halving."""
    parent = np.arange(count)
    for e in range(len(left)):
        i, j = left[e], right[e]
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        while parent[j] != j:
            parent[j] = parent[parent[j]]
            j = parent[j]
        parent[max(i, j)] = min(i, j)
    for i in range(count):  # a parent is never larger than its child
        parent[i] = parent[parent[i]]
    return parent
