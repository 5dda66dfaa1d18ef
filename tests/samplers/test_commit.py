"""Rules of all negative samplers: a step that is not taken leaves no trace, and a row is one of the data set."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from negbank import Exclusions, Snapshot
from negbank.bank import EmbeddingBank
from negbank.proposals import Nearest
from negbank.samplers.negatives import (
    Dcl,
    Emc2,
    EncodedBatch,
    Hardest,
    Hcl,
    Importance,
    InBatch,
    ISogClr,
    Mined,
    Moco,
    NegativeCache,
    SogClr,
)
from negbank.train.losses import surrogate

N, D, B, T = 40, 6, 8, 0.2
NEAREST = partial(Nearest, k=8, temperature=T, floor=0.3)
KEEPING = {
    "sogclr": SogClr,
    "sogclr, one u": partial(SogClr, per_view=False),
    "isogclr": ISogClr,
    "emc2": partial(Emc2, proposal=NEAREST),
    "emc2, in batch": partial(Emc2, proposals="in_batch"),
    "emc2, bank": partial(Emc2, proposal=NEAREST, score="bank"),
    "emc2, delayed": partial(Emc2, proposal=NEAREST, score="delayed", draws=8),
    "emc2, pool": partial(Emc2, proposal=NEAREST, pool=True, draws=8),
    "cache": partial(NegativeCache, refresh=0.1),
    "moco": partial(Moco, queue=20),
    "a learned temperature": lambda num_rows, **options: InBatch(learn=True, **options),
}
KEEPING_NOTHING = {
    "in_batch": lambda num_rows, **options: InBatch(**options),
    "dcl": lambda num_rows, **options: Dcl(exclude=Exclusions(num_rows), **options),
    "hcl": lambda num_rows, **options: Hcl(exclude=Exclusions(num_rows), **options),
    "cache, index": partial(NegativeCache, search="index"),
    "emc2, fresh start": partial(Emc2, proposal=NEAREST, start="fresh"),
    "importance": partial(Importance, proposal=NEAREST, draws=6),
    "hardest": Hardest,
    "mined": Mined,
    "moco v3": partial(Moco, queue=0),
}
EVERY = {**KEEPING, **KEEPING_NOTHING}


@pytest.fixture
def data(clustered):
    z = clustered(N, dim=D, spread=0.6)
    return z, Snapshot.build(z, factory="exact")


def make(name, snapshot):
    made = EVERY[name](N, temperature=T)
    made.update(snapshot)
    return made


def visit(made, z, rows, step):
    ticket = made.draw(rows, step=step)
    further = ticket.further
    x = torch.cat((z[rows], z[rows].flip(1), z[further])).requires_grad_()
    keys = None if made.momentum is None else torch.cat((z[rows], z[rows].roll(1, 1)))
    batch = EncodedBatch.from_views(rows, torch.nn.functional.normalize(x, dim=1), further, keys)
    negatives, _ = made(batch, ticket)
    return batch, negatives


def alike(one, other):
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return one is other or (isinstance(one, int) and one == other)


@pytest.mark.parametrize("name", EVERY)
def test_a_sampler_moves_when_the_step_is_taken_and_not_before(name, data):
    z, snapshot = data
    made = make(name, snapshot)
    for step, rows in enumerate(torch.arange(N).view(-1, B)):
        before = made.state_dict()
        batch, negatives = visit(made, z, rows, step)
        surrogate(batch, negatives, temperature=T).backward()
        if name == "a learned temperature":  # the optimiser moves it, and it is put back into its bounds
            made.learned[0].data += 9.0
            before = made.state_dict()
        again = visit(made, z, rows, step)[1]  # as if the first had not been
        if name != "a learned temperature":
            assert torch.equal(again.weights, negatives.weights)
        assert alike(made.state_dict(), before)
        negatives.commit()
        assert alike(made.state_dict(), before) == (name in KEEPING_NOTHING)


@pytest.mark.parametrize("rows", [[-1], [0, -1], [3, -2, 5], [N], [0, N + 7], [-(2**40), 1]], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_what_is_no_row_of_the_data_set_is_refused(name, rows, data):
    _, snapshot = data
    made, rows = make(name, snapshot), torch.tensor(rows)
    before = made.state_dict()
    if name in ("in_batch", "a learned temperature") and int(rows.min()) >= 0:
        return  # it has no table, and does not know how many rows there are
    x = torch.nn.functional.normalize(torch.randn(2 * len(rows), D, generator=torch.Generator().manual_seed(0)), dim=1)
    batch = EncodedBatch.from_views(rows, x, keys=None if made.momentum is None else x)
    with pytest.raises(ValueError, match=r"rows: .* reach outside the rows 0\.\."):
        made(batch, made.draw(rows, step=0))
    assert alike(made.state_dict(), before)


@pytest.mark.parametrize("given", [[-2], [0, N], [-1, -5]], ids=str)
def test_tables_of_rows_refuse_what_is_neither_a_row_nor_an_outside_query(given):
    rows, exclude = torch.tensor(given), Exclusions(N, groups=torch.arange(N) % 9)
    for every in (exclude, Exclusions(N)):
        for ask in (
            every.count,
            partial(every.uniform, n=2, generator=None),
            partial(every.allowed, ids=rows[:, None]),
        ):
            with pytest.raises(ValueError, match=rf"rows: .* reach outside the rows -1\.\.{N - 1}"):
                ask(rows)
    bank = EmbeddingBank(N, D)
    for ask in (bank.read, lambda r: bank.write(r, torch.ones(len(r), D), step=0)):
        with pytest.raises(ValueError, match=rf"ids: .* reach outside the rows 0\.\.{N - 1}"):
            ask(rows)
