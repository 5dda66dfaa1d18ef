from __future__ import annotations

import functools

import pytest
import torch
from negbank.samplers.batches import UniformBatches
from negbank.samplers.negatives import InBatch, Ticket
from negbank.train import losses
from negbank.train.build import build, choose_device, choose_precision
from negbank.train.config import parse
from negbank.train.data.images import ImageArray
from negbank.train.trainer import NonFiniteError, Trainer
from torch import nn

from negbank import EmbeddingBank
from negbank.proposals import HeadTail

ROWS = 60


class Linear(nn.Module):
    """Pixels to unit vectors; what it was asked to encode is kept."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 8)
        self.seen = []

    def forward(self, images):
        self.seen.append(images.detach().clone())
        return nn.functional.normalize(self.layer(images.flatten(1)), dim=1)


def images():
    generator = torch.Generator().manual_seed(0)
    return ImageArray(torch.randint(0, 256, (ROWS, 1, 8, 8), generator=generator, dtype=torch.uint8))


def make(negatives=None, batches=None, **options):
    torch.manual_seed(0)
    module = Linear()
    return Trainer(
        module,
        images(),
        augment=lambda x, generator: x.float() / 255,
        batches=batches or UniformBatches(ROWS, 10),
        negatives=negatives or InBatch(temperature=0.2),
        bank=EmbeddingBank(ROWS, 8),
        refresher=None,
        optimiser=torch.optim.SGD(module.parameters(), lr=0.1),
        schedule=lambda step: 1.0,
        temperature=0.2,
        generator=torch.Generator().manual_seed(2),
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
    (seen,) = trainer.embedder.seen
    assert len(seen) == 2 * 10 + 3 == trainer.encodings
    assert torch.equal(seen[:10], seen[10:20])
    assert int(trainer.bank.written.sum()) == 13
    assert metrics["lr"] == 0.1
    written = trainer.bank.written.nonzero().flatten()
    expected = images().read(written).float() / 255
    assert all((seen == image).flatten(1).all(1).any() for image in expected)


def test_a_step_is_a_gradient_step_on_the_textbook_loss():
    trainer, twin = make(), make()
    rows = torch.tensor(next(iter(twin.batches)))
    z = twin.embedder(images().read(rows.repeat(2)).float() / 255)
    logits = z @ z.T / 0.2
    logits.fill_diagonal_(-torch.inf)
    labels = torch.arange(20).roll(10)
    nn.functional.cross_entropy(logits, labels).backward()
    twin.optimiser.step()
    trainer.step()
    for mine, theirs in zip(trainer.embedder.parameters(), twin.embedder.parameters()):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("what", ["embedding", "loss", "gradient"])
def test_what_is_not_finite_stops_before_the_optimiser_and_is_named(what, monkeypatch):
    trainer = make()
    for _ in range(3):
        trainer.step()
    if what == "embedding":
        forward = trainer.embedder.forward
        poison = lambda x: forward(x).index_fill(0, torch.tensor([4]), torch.nan)  # noqa: E731
        trainer.embedder.forward = poison
    elif what == "gradient":
        trainer.embedder.layer.weight.register_hook(lambda gradient: gradient * torch.nan)
    else:
        monkeypatch.setattr("negbank.train.trainer.surrogate", lambda *a, **k: losses.surrogate(*a, **k) * torch.inf)
    before = [p.detach().clone() for p in trainer.embedder.parameters()]
    bank = trainer.bank.state_dict()
    with pytest.raises(NonFiniteError, match=f"step 3: the {what} of rows .*start anew in another run.dir"):
        trainer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.embedder.parameters()))
    assert torch.equal(bank["vectors"], trainer.bank.vectors)


def test_fresh_queries_come_from_a_first_pass_over_the_views():
    negatives = Drawing(temperature=0.2)
    negatives.fresh_queries = True
    trainer = make(negatives)
    before = trainer.embedder.layer.weight.detach().clone(), trainer.embedder.layer.bias.detach().clone()
    trainer.step()
    views, drawn = trainer.embedder.seen
    assert (len(views), len(drawn)) == (20, 3)
    assert trainer.encodings == 23
    first, second = nn.functional.normalize(nn.functional.linear(views.flatten(1), *before), dim=1).chunk(2)
    torch.testing.assert_close(negatives.queries, nn.functional.normalize(first + second, dim=1))
    assert not negatives.queries.requires_grad


def test_fresh_queries_and_batch_statistics_do_not_go_together():
    with pytest.raises(ValueError, match=r"encoder\.norm=group"):
        build(parse({"data": {"type": "digits"}, "negatives": {"query": "fresh"}, "run": {"steps": 9}})[0])
    options = {"encoder": {"norm": "group", "projector": {"norm": "none"}}, "negatives": {"query": "fresh"}}
    assert build(parse({"data": {"type": "digits"}, "run": {"steps": 9}, **options})[0]).trainer.negatives.fresh_queries


def test_a_proposal_adapts_to_the_newest_probe():
    options = {"proposal": {"type": "head_tail", "k": 8, "adapt": True}}
    refresh = {"every": 20, "unit": "steps", "check_every": 5, "probe_rows": 64, "mode": "full"}
    assembly = build(
        parse({"data": {"type": "digits"}, "negatives": options, "refresh": refresh, "run": {"steps": 9}})[0]
    )
    trainer = assembly.trainer
    trainer.refresh()
    first = trainer.refresher.staleness
    proposals = [trainer.negatives._index._proposal]
    for _ in range(5):
        trainer.step()
        trainer.refresh()
    assert trainer.refresher.staleness is not first
    proposals.append(trainer.negatives._index._proposal)
    assert proposals[0] is not proposals[1]
    expected = HeadTail(trainer.refresher.snapshot, 8, 0.1, adapt=True, probe=trainer.refresher.staleness)
    assert (proposals[1].temperature, proposals[1].floor, proposals[1].tail) == (
        expected.temperature, expected.floor, expected.tail,
    )  # fmt: skip


def test_in_batch_proposals_need_uniform_batches():
    batches, negatives = UniformBatches(ROWS, 10), InBatch(temperature=0.2)
    batches.uniform, negatives.requires = False, "uniform"
    with pytest.raises(ValueError, match="in-batch proposals need uniform batches"):
        make(negatives, batches)
    negatives.requires, batches.known = "known", False
    with pytest.raises(ValueError, match="which is not known of Uniform batches"):
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
        ({"run": {"epochs": 1}, "optim": {"warmup": 500}}, "optim.warmup=500: the run has only 22 steps"),
    ]:
        config, _ = parse({**base, **change})
        with pytest.raises(ValueError, match=message):
            build(config)


def test_device_and_precision_as_asked():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_precision("float32", torch.device("cpu")) == "float32"
    assert choose_precision("auto", torch.device("cpu")) in ("bf16", "float32")
