from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from negbank import EmbeddingBank
from negbank.counter import Counter, seeded_uniforms
from negbank.proposals import HeadTail
from negbank.samplers.batches import UniformBatches
from negbank.samplers.negatives import Emc2, InBatch, ISogClr, NegativeCache, SogClr, Ticket
from negbank.train import losses
from negbank.train.build import build
from negbank.train.config import parse
from negbank.train.descent import NonFiniteError
from negbank.train.device import choose_device, choose_precision
from negbank.train.towers import Tower
from negbank.train.trainer import Trainer

ROWS = 60


class Linear(nn.Module):
    """Inputs to unit vectors; what it was asked to encode is kept."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 8)
        self.seen = []

    def forward(self, inputs):
        self.seen.append(inputs.detach().clone())
        return nn.functional.normalize(self.layer(inputs.flatten(1)), dim=1)


class Rows:
    """Random rows, with noise of a given strength under a seed."""

    labels = None

    def __init__(self, noise=0.0):
        self.rows = torch.rand(ROWS, 64, generator=torch.Generator().manual_seed(0))
        self.noise = noise

    def __len__(self):
        return ROWS

    def read(self, rows, seeds):
        return self.rows[rows] + (0 if seeds is None else self.noise * seeded_uniforms(seeds, 64))


def make(negatives=None, batches=None, *, noise=0.0, **options):
    torch.manual_seed(0)
    module = Linear()
    tower = Tower(module, Rows(noise), EmbeddingBank(ROWS, 8), negatives or InBatch(temperature=0.2))
    return Trainer(
        [tower],
        batches=batches or UniformBatches(ROWS, 10, counter=Counter.of(1)),
        optimiser=torch.optim.SGD(module.parameters(), lr=0.1),
        schedule=lambda step: 1.0,
        temperature=0.2,
        counter=Counter.of(2),
        device=torch.device("cpu"),
        autocast=functools.partial(torch.autocast, "cpu", enabled=False),
        **options,
    )


class Drawing(InBatch):
    """SimCLR that asks for three further rows a step."""

    def draw(self, rows, *, step, queries=None):
        self.queries = queries
        return Ticket(step, rows, torch.tensor([row for row in range(ROWS) if row not in rows.tolist()])[:3])


def test_a_step_encodes_views_and_drawn_rows_in_one_pass_and_writes_each_row_once():
    trainer = make(Drawing(temperature=0.2))
    metrics = trainer.step()
    tower = trainer.towers[0]
    (seen,) = tower.encoder.seen
    assert len(seen) == 2 * 10 + 3 == trainer.encodings
    assert torch.equal(seen[:10], seen[10:20])
    assert int(tower.bank.written.sum()) == 13
    assert metrics["lr"] == 0.1
    written = tower.bank.written.nonzero().flatten()
    assert all((seen == row).all(1).any() for row in tower.data.rows[written])


def test_views_differ_and_are_functions_of_the_step_alone():
    first, second = make(noise=0.1), make(noise=0.1)
    first.step()
    views = first.towers[0].encoder.seen[0]
    assert not torch.isclose(views[:10], views[10:]).any(0).all()
    first.step()
    second.descent.step_number = 1  # the second step, taken alone
    second.batches.load_state_dict(make_consumed(second.batches, 1))
    second.step()
    assert torch.equal(first.towers[0].encoder.seen[1], second.towers[0].encoder.seen[0])


def make_consumed(batches, count):
    """The state of batches of which so many were handed out."""
    for _ in zip(range(count), batches):
        pass
    return batches.state_dict()


def test_a_step_is_a_gradient_step_on_the_textbook_loss():
    trainer, twin = make(), make()
    module = twin.towers[0].encoder
    rows = torch.tensor(next(iter(twin.batches)))
    z = module(twin.towers[0].data.read(rows.repeat(2), None))
    logits = z @ z.T / 0.2
    logits.fill_diagonal_(-torch.inf)
    nn.functional.cross_entropy(logits, torch.arange(20).roll(10)).backward()
    twin.descent.optimiser.step()
    trainer.step()
    for mine, theirs in zip(trainer.towers[0].encoder.parameters(), module.parameters()):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("negatives", [InBatch, SogClr, ISogClr, Emc2, NegativeCache])
@pytest.mark.parametrize("what", ["embedding", "loss", "gradient"])
def test_what_is_not_finite_stops_before_the_optimiser_and_is_named(what, negatives, monkeypatch):
    trainer = make(
        InBatch(temperature=0.2, learn=True) if negatives is InBatch
        else negatives(ROWS, temperature=0.2, **({"proposals": "in_batch"} if negatives is Emc2 else {}))
    )  # fmt: skip
    for _ in range(3):
        trainer.step()
    module, bank = trainer.towers[0].encoder, trainer.towers[0].bank
    if what == "embedding":
        forward = module.forward
        module.forward = lambda x: forward(x).index_fill(0, torch.tensor([4]), torch.nan)
    elif what == "gradient":
        module.layer.weight.register_hook(lambda gradient: gradient * torch.nan)
    else:
        surrogate = losses.surrogate
        monkeypatch.setattr(losses, "surrogate", lambda *a, **k: surrogate(*a, **k) * torch.inf)
    before = [p.detach().clone() for p in module.parameters()]
    vectors, kept = bank.vectors.clone(), str(trainer.towers[0].negatives.state_dict())
    with pytest.raises(NonFiniteError, match=f"step 3: the {what} of rows .*start anew in another run.dir"):
        trainer.step()
    assert str(trainer.towers[0].negatives.state_dict()) == kept
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters()))
    assert torch.equal(vectors, bank.vectors)


def test_fresh_queries_come_from_a_first_pass_over_the_views():
    negatives = Drawing(temperature=0.2)
    negatives.fresh_queries = True
    trainer = make(negatives)
    layer = trainer.towers[0].encoder.layer
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    trainer.step()
    views, drawn = trainer.towers[0].encoder.seen
    assert (len(views), len(drawn)) == (20, 3)
    assert trainer.encodings == 23
    first, second = nn.functional.normalize(nn.functional.linear(views.flatten(1), *before), dim=1).chunk(2)
    torch.testing.assert_close(negatives.queries, nn.functional.normalize(first + second, dim=1))
    assert not negatives.queries.requires_grad


def test_fresh_queries_and_batch_statistics_do_not_go_together():
    with pytest.raises(ValueError, match=r"encoder\.norm=group"):
        build(parse({"data": {"type": "digits"}, "negatives": {"query": "fresh"}, "run": {"steps": 9}})[0])
    options = {"encoder": {"norm": "group", "projector": {"norm": "none"}}, "negatives": {"query": "fresh"}}
    (tower,) = build(parse({"data": {"type": "digits"}, "run": {"steps": 9}, **options})[0]).trainer.towers
    assert tower.negatives.fresh_queries


def test_a_proposal_adapts_to_the_newest_probe():
    options = {"proposal": {"type": "head_tail", "k": 8, "adapt": True}}
    refresh = {"every": 20, "unit": "steps", "check_every": 5, "probe_rows": 64, "mode": "full"}
    trainer = build(
        parse({"data": {"type": "digits"}, "negatives": options, "refresh": refresh, "run": {"steps": 9}})[0]
    ).trainer
    (tower,) = trainer.towers
    trainer.refresh()
    first = tower.refresher.probe
    proposals = [tower.negatives._index._proposal]
    for _ in range(5):
        trainer.step()
        trainer.refresh()
    assert tower.refresher.probe is not first
    proposals.append(tower.negatives._index._proposal)
    assert proposals[0] is not proposals[1]
    expected = HeadTail(tower.refresher.snapshot, k=8, temperature=0.1, adapt=True, probe=tower.refresher.probe)
    assert (proposals[1].temperature, proposals[1].floor, proposals[1].tail) == (
        expected.temperature, expected.floor, expected.tail,
    )  # fmt: skip


def test_in_batch_proposals_need_uniform_batches():
    batches, negatives = UniformBatches(ROWS, 10), InBatch(temperature=0.2)
    batches.uniform, negatives.requires = False, "uniform"
    with pytest.raises(ValueError, match=r"takes the batch's rows for uniform draws.*batches\.type=uniform"):
        make(negatives, batches)
    negatives.requires, batches.known = "known", False
    with pytest.raises(ValueError, match="which is not known of uniform batches"):
        make(negatives, batches)
    negatives.requires = "any"
    make(negatives, batches)


def test_what_only_the_data_can_tell_is_said_before_training():
    base = {"data": {"type": "digits"}, "run": {"steps": 5}, "encoder": {"width": 16, "features": 16}}
    for change, message in [
        ({"batches": {"batch_size": 5000}}, "batches.batch_size=5000: data.type=digits has 14"),
        ({"negatives": {"proposal": {"k": 1500}}}, "negatives.proposal.k=1500: there are only"),
        ({"eval": {"knn_k": 2000}}, "eval.knn_k=2000"),
        ({"run": {"epochs": 1, "device": "cuda:77"}}, "run.device=cuda:77: not available"),
    ]:
        config, _ = parse({**base, **change})
        with pytest.raises(ValueError, match=message):
            build(config)


@pytest.mark.parametrize(("warmup", "taken", "note"), [(500, 2, "has only 22 steps"), (0.5, 11, ""), (20, 20, "")])
def test_a_warm_up_fits_the_run(warmup, taken, note):
    config, _ = parse({
        "data": {"type": "digits"}, "run": {"epochs": 1}, "encoder": {"width": 16, "features": 16},
        "optim": {"warmup": warmup},
    })  # fmt: skip
    found = build(config)
    schedule = found.trainer.descent.schedule
    assert found.steps == 22
    assert [schedule(step) for step in range(taken)] == [pytest.approx((step + 1) / taken) for step in range(taken)]
    assert schedule(taken) == 1.0
    assert note in "".join(found.notes)
    assert bool(note) == bool(found.notes)


def test_device_and_precision_as_asked():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_precision("float32", torch.device("cpu")) == "float32"
    assert choose_precision("auto", torch.device("cpu")) in ("bf16", "float32")
