"""An epoch of batches planned from a snapshot: what the samplers of this package share.

The rows of an epoch are drawn once, at its start. A plan is a function of the counter, the epoch, the batches handed
out before it, and the snapshot. It covers the batches still to come of it: it is made when the
first of them is asked for, and made anew when a newer snapshot has come in. What is handed out stays handed out, and
every row of the epoch still comes once. Before the first snapshot, and for rows the bank does not hold yet, batches
are uniform:

    rows to come = planned batches of B, from rows the snapshot holds  +  uniform batches of B  +  a last, smaller one

Handed out is not used: a loader reads ahead, a loop stops early. So each iteration has its own place, and begins where
`set_epoch`, `load_state_dict` or the end of the epoch before put the sampler: one that is left loses no batch, and two
at a time give the same. Only whoever takes the batches knows how many were used, and says so in
`state_dict(consumed=...)`. A place short of what was handed out is kept together with the plan up to there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from negbank.counter import Counter
from negbank.samplers.batches.groups import check_groups, spread
from negbank.samplers.meeting import Meeting
from negbank.snapshot import Snapshot


class Planned(Sampler[list[int]]):
    """One epoch at a time; a subclass says in `plan` which rows meet.

    Args:
        num_rows: N.
        batch_size: B.
        groups: (N,) integer labels, a negative one for no group; with `max_per_group`.
        max_per_group: rows of one group that may meet in a batch; more are exchanged with other batches of the plan.
            Always kept among batches of B rows where a row comes once an epoch; as far as exchanges go in a last,
            smaller batch and where rows come again.
        drop_last: leave out the last, smaller batch of an epoch (whose rows, drawn at random, wait for another epoch).
        chosen: share of a planned batch's rows that keep their place in it: round(chosen · B) of them, drawn at random.
            The others of all planned batches change places at random, so that each batch has as many that nobody chose.
        counter: place of the random draws, of which each plan has its own.

    Raises:
        ValueError: for a batch larger than the data set, or labels and a bound that do not fit.
    """

    reads_snapshot = True
    """Whether plans are made from a snapshot, so that one is to be built."""
    searches = True
    """Whether plans ask the snapshot's index, and not only for its rows."""
    uniform = False
    """Whether, given one row of a batch, the others are uniform over the rest; never so under `max_per_group`."""
    known = False
    """Whether `meeting` can be asked: always where batches are uniform."""
    disjoint = True
    """Whether an epoch deals out its rows, each once; otherwise every plan chooses from all rows."""

    _handed_out: int  # of the epoch's batches, to anybody
    _order: Tensor
    _ended: bool
    _turn: object

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        groups: Tensor | None = None,
        max_per_group: int | None = None,
        *,
        drop_last: bool = True,
        chosen: float = 1.0,
        counter: Counter = Counter.of(0),
    ) -> None:
        if batch_size > num_rows:
            raise ValueError(f"batch_size={batch_size}: expected 2..{num_rows}, the rows of the data set")
        self.num_rows, self.batch_size, self.drop_last = num_rows, batch_size, drop_last
        self._groups = check_groups(
            groups,
            max_per_group,
            num_rows=num_rows,
            batch_size=batch_size,
            batches=len(self) if self.disjoint else None,
        )
        self._max_per_group, self._kept = max_per_group, round(chosen * batch_size)
        self.uniform = type(self).uniform and self._groups is None
        self.known = type(self).known or self.uniform
        self._counter = counter
        self._snapshot: Snapshot | None = None
        self._prepared = False
        self.set_epoch(0)

    def prepare(self, snapshot: Snapshot, generator: torch.Generator) -> None:
        """What plans from a snapshot share, a graph say: called once a snapshot, before the first of them.

        The generator is that of the counter and the snapshot's version, so that a resumed run prepares alike.
        """

    def plan(self, rows: Tensor, count: int, snapshot: Snapshot, generator: torch.Generator) -> Tensor:
        """At most `count` batches (n, B) of the rows (R,): what is missing is filled up by uniform batches.

        Args:
            rows: long, ascending, on the CPU, all held by the snapshot; R = count·B ≥ 2B where `disjoint`.
            count: batches asked for.
            snapshot: the version to plan from.
            generator: of this plan, on the CPU.

        Rows of a batch are distinct, and with `disjoint` across batches, too. The order of batches is of no matter.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        """Batches an epoch."""
        whole, rest = divmod(self.num_rows, self.batch_size)
        return whole + (0 if self.drop_last or rest < 2 or not self.disjoint else 1)

    def __iter__(self) -> Iterator[list[int]]:
        """The epoch's batches, from where the sampler was put; after the end of one iteration, the next epoch's.

        One that was begun before `set_epoch` or `load_state_dict` ends there.
        """
        if self._ended:
            self.set_epoch(self._epoch + 1)
        turn, at = self._turn, self._first
        self._at = at
        while turn is self._turn and at < len(self):
            if self._stale and at >= self._handed_out:
                self._arrange()
            batch = self._order[at * self.batch_size : (at + 1) * self.batch_size]
            rows = self.hand_out(at, batch, again=at < self._handed_out)
            at += 1
            self._at, self._handed_out = at, max(at, self._handed_out)
            yield rows
        if turn is self._turn:
            self._ended = True

    def hand_out(self, at: int, batch: Tensor, *, again: bool) -> list[int]:
        """The rows of the plan's batch (B,) at a place of the epoch; `again`: it was handed out before."""
        return batch.tolist()

    def update(self, snapshot: Snapshot) -> None:
        """Plan what is left of the epoch from this version of the bank, when its next batch is asked for.

        Raises:
            ValueError: for a snapshot of another number of rows.
        """
        if len(snapshot) != self.num_rows:
            raise ValueError(
                f"snapshot: {len(snapshot)} rows, the sampler has num_rows={self.num_rows}; make both for one data set"
            )
        self._snapshot, self._stale, self._prepared = snapshot, True, False

    def meeting(self, rows: Tensor) -> Meeting | None:
        """How the rows (B,) of a batch met; None where they are uniform draws.

        Raises:
            ValueError: where it is not known.
        """
        if not self.known:
            raise ValueError(
                f"{type(self).__name__}: how often two rows meet is not known; take uniform or drawn batches"
            )
        return None

    def set_epoch(self, epoch: int) -> None:
        """Start epoch `epoch` from its first batch."""
        order, planned = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.bool)
        self._put(epoch, 0, 0, stale=True, order=order, planned=planned)

    def _put(self, epoch: int, position: int, handed_out: int, *, stale: bool, order: Tensor, planned: Tensor) -> None:
        self._epoch, self._first, self._at, self._handed_out = epoch, position, position, handed_out
        self._stale, self._order, self._planned, self._ended = stale, order, planned, False
        self._turn = object()

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """The epoch, its plan, and how many batches of it were used. The snapshot is not part of it.

        Args:
            consumed: batches that the loop at hand has taken, of the iteration that was begun last. By default all that
                were handed out are taken as used, which is right where nothing reads ahead: in a loop over the sampler,
                over a DataLoader without workers, and for torchdata's StatefulDataLoader, which asks at each batch.

        Raises:
            ValueError: for more batches than were handed out.
        """
        at = self._at if consumed is None else self._first + consumed
        if consumed is not None and not self._first <= at <= self._handed_out:
            raise ValueError(
                f"consumed={consumed}: expected 0..{self._handed_out - self._first}, of the batches that the iteration "
                f"begun last has handed out; count from its beginning"
            )
        over = self._ended if consumed is None else at == len(self)
        return {
            "num_rows": self.num_rows,
            "batch_size": self.batch_size,
            "epoch": self._epoch + over,
            "position": 0 if over else at,
            "handed_out": 0 if over else self._handed_out,
            "order": self._order[:0].clone() if over else self._order.clone(),
            "planned": self._planned[:0].clone() if over else self._planned.clone(),
            "stale": over or self._stale,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last batch used. Call it after `update` with the snapshot that was in use.

        Raises:
            ValueError: for the state of a sampler of other rows or batches.
        """
        if (was := (state["num_rows"], state["batch_size"])) != (now := (self.num_rows, self.batch_size)):
            raise ValueError(f"state: of num_rows, batch_size = {was}, the sampler has {now}; make it with the same")
        place = state["epoch"], state["position"], state["handed_out"]
        order, planned = state["order"].clone(), state["planned"].clone()
        self._put(*place, stale=state["stale"], order=order, planned=planned)
        self._prepared = False

    def _arrange(self) -> None:
        """Keep the batches handed out, and plan the rest of the epoch."""
        size, count = self.batch_size, len(self) - self._handed_out
        version = -1 if self._snapshot is None else self._snapshot.version
        generator = self._counter.at("plan", self._epoch, self._handed_out, version).generator()
        done, to_come = self._order.split((at := self._handed_out * size, len(self._order) - at))
        if self._handed_out == 0 or not self.disjoint:
            to_come = torch.arange(self.num_rows)
        rows = to_come[torch.randperm(len(to_come), generator=generator)]
        whole = min(count, len(rows) // size)
        last = rows[whole * size :] if count > whole else rows[:0]
        if self.disjoint:
            rows = rows[: whole * size]
        planned = torch.zeros(count, dtype=torch.bool)
        if self._snapshot is not None and whole > 0:
            rows, planned[:whole] = self._planned_first(rows, whole, self._snapshot, generator)
        rows = torch.cat((rows[: whole * size], last))
        if self._groups is not None and self._max_per_group is not None:
            reserve = None if self.disjoint else self._not_in(torch.cat((done, rows)))
            rows = spread(rows, size, self._groups, self._max_per_group, generator, reserve=reserve)
        self._order, self._stale = torch.cat((done, rows)), False
        self._planned = torch.cat((self._planned[: self._handed_out], planned))

    def _not_in(self, rows: Tensor) -> Tensor:
        """The rows that are not among `rows`, ascending."""
        left = torch.ones(self.num_rows, dtype=torch.bool)
        left[rows] = False
        return left.nonzero().flatten()

    def _planned_first(
        self, rows: Tensor, whole: int, snapshot: Snapshot, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Rows of as many planned batches as there are rows held by the snapshot, the others of `rows` shuffled in; and
        which batches (whole,) are planned."""
        held = snapshot.written.cpu()
        known = rows[held[rows]]
        count = whole * len(known) // len(rows)
        if (count < 2 and self.disjoint) or count < 1:  # a single batch of given rows needs no plan
            return rows, torch.zeros(whole, dtype=torch.bool)
        known = known[: count * self.batch_size] if self.disjoint else known
        if not self._prepared:
            self.prepare(snapshot, self._counter.at("graph", snapshot.version).generator())
            self._prepared = True
        batches = self.plan(known.sort().values, count, snapshot, generator).cpu()[:count]
        if self._kept < self.batch_size:
            batches = mixed(batches, self.batch_size - self._kept, generator)
        left = torch.ones(self.num_rows, dtype=torch.bool)
        left[batches] = False
        rest = rows[left[rows]]
        rest = torch.cat((rest[~held[rest]], rest[held[rest]]))  # where not all come, those not held yet do
        rest = rest[: (whole - len(batches)) * self.batch_size]
        rest = rest[torch.randperm(len(rest), generator=generator)]
        order = torch.randperm(whole, generator=generator)
        return torch.cat((batches, rest.view(-1, self.batch_size)))[order].flatten(), order < len(batches)


def mixed(batches: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Batches (n, B) of which `count` slots each, drawn at random, change their rows among all batches."""
    slots = torch.rand(batches.shape, generator=generator).argsort(1)[:, :count]
    moved = batches.gather(1, slots).flatten()
    return batches.scatter(1, slots, moved[torch.randperm(len(moved), generator=generator)].view_as(slots))
