"""From Python: tensors, torch data sets and pairs of them, and modules that know nothing of us."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import negbank
from negbank.train.build import build
from negbank.train.config import parse
from negbank.train.data.contract import Splits
from negbank.train.data.tensors import TensorData
from negbank.train.run import RunError

N, WIDTH = 240, 12
CLASSES = torch.arange(N) % 4
CENTRES = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
ROWS = CENTRES[CLASSES] + 0.7 * torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(1))
SMALL = {"eval": {"global_rows": 60, "knn_k": 5}, "batches": {"batch_size": 24}, "optim": {"lr": 0.01}}


def encoder(out=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, out))  # not normalised, no backbone


def test_ten_lines_are_enough(tmp_path):
    """A torch Dataset and a plain nn.Module, under options by name: it learns, and the module is handed back."""
    data, test = TensorDataset(ROWS[:200], CLASSES[:200]), TensorDataset(ROWS[200:], CLASSES[200:])
    found = negbank.fit(
        data, encoder(), test=test, negatives="sogclr", run={"steps": 60, "dir": str(tmp_path / "run")}, **SMALL
    )
    assert not found.encoder.training
    vectors = found.encoder(ROWS[:5])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    assert found.summary["knn_accuracy"] > 0.9
    assert found.summary["view_retrieval_at_1"] > 1.5 * 1 / 60
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 60


class Noisy(Dataset):
    """Items are made when asked for, under noise of torch's global generator."""

    def __len__(self):
        return N

    def __getitem__(self, row):
        return ROWS[row] + 0.1 * torch.randn(WIDTH), int(CLASSES[row])


def test_a_data_set_with_its_own_noise_goes_on_where_it_stopped(tmp_path):
    options = {"negatives": {"type": "hardest", "k": 2}, "refresh": {"every": 5, "unit": "steps"}, **SMALL}
    run = {"steps": 20, "checkpoint_every": 10, "dir": str(tmp_path / "whole")}
    whole = negbank.fit(Noisy(), encoder(), run=run, **options)

    def stopped(*arguments):
        if len(list((tmp_path / "part" / "checkpoints").glob("step_*"))) == 1 and arguments[0].training:
            raise KeyboardInterrupt

    module = encoder()
    module.register_forward_hook(stopped)
    with pytest.raises(KeyboardInterrupt):
        negbank.fit(Noisy(), module, run={**run, "dir": str(tmp_path / "part")}, **options)
    again = negbank.fit(Noisy(), encoder(), resume=True, run={**run, "dir": str(tmp_path / "part")}, **options)
    for mine, theirs in zip(again.encoder.parameters(), whole.encoder.parameters()):
        assert torch.equal(mine, theirs)
    with pytest.raises(RunError, match="holds a run already"):
        negbank.fit(Noisy(), encoder(), run=run, **options)


LONGER = {
    "hardest": {"negatives": {"type": "hardest", "k": 2}, "refresh": {"every": 4, "unit": "steps"}},
    "mined": {"negatives": {"type": "mined", "pick": "random"}, "refresh": {"every": 4, "unit": "steps"}},
    "emc2": {"negatives": {"type": "emc2", "proposal": {"k": 8}}, "refresh": {"every": 6, "unit": "steps"}},
    "sogclr": {"negatives": "sogclr"},
    "moco, knn": {
        "negatives": {"type": "moco", "queue": 48}, "batches": {"type": "knn", "batch_size": 24, "neighbors": 9},
        "refresh": {"every": 12, "unit": "steps"},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LONGER)
def test_a_run_can_be_lengthened(name, tmp_path, capsys):
    """Under a constant rate the bits of a run that had this length from the beginning, refreshes at T among them."""
    options = {**SMALL, **LONGER[name], "optim": {"lr": 0.01, "schedule": "constant", "warmup": 3}}
    options["eval"] = {**SMALL["eval"], "every": 6}

    def run(folder, steps, **more):
        given = {"steps": steps, "dir": str(tmp_path / folder), "log_every": 1, "checkpoint_every": 5}
        found = negbank.fit(Noisy(), encoder(), run=given, **options, **more)
        return [p.detach().clone() for p in found.encoder.parameters()], found.summary

    whole, _ = run("whole", 20)
    run("part", 12)
    longer, summary = run("part", 20, resume=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(longer, whole))
    assert summary["steps"] == 20
    said = "had 12 steps and has 20 now; from step 12 on the learning rate stays at its peak, as in a run of that"
    assert said in capsys.readouterr().out
    assert (tmp_path / "part" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    again, _ = run("part", 20, resume=True)  # of a run that has ended: nothing is left to do
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(again, whole))
    with pytest.raises(RunError, match=r"run\.steps is 11, and its checkpoint is of step 20; set 20 or more"):
        run("part", 11, resume=True)


def test_what_the_schedule_does_in_a_longer_run_is_said(tmp_path, capsys):
    run = {"steps": 8, "dir": str(tmp_path / "run"), "checkpoint_every": 4}
    negbank.fit(ROWS, encoder(), negatives="in_batch", run=run, **SMALL)
    negbank.fit(ROWS, encoder(), negatives="in_batch", resume=True, run={**run, "steps": 16}, **SMALL)
    said = capsys.readouterr().out
    assert (
        "the learning rate follows the half cosine of 16 steps: 0.5 of its peak where it was 0; optim.schedule=" in said
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 16
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert kept["run"]["steps"] == 16


def test_pairs_of_tensors(tmp_path):
    other = ROWS @ torch.randn(WIDTH, 7, generator=torch.Generator().manual_seed(2))
    right = nn.Linear(7, 8)
    found = negbank.fit(
        (ROWS, other), [encoder(), right], batches={"batch_size": 24}, eval={"type": "retrieval", "ks": (1, 5)},
        optim={"lr": 0.02}, run={"steps": 80, "dir": str(tmp_path / "run")},
    )  # fmt: skip
    assert found.summary["recall@5"] > 3 * found.summary["untrained_recall@1"]
    assert len(found.encoder) == 2


class Pooled(nn.Linear):
    """One row for all inputs."""

    def __init__(self):
        super().__init__(WIDTH, 8)

    def forward(self, inputs):
        return super().forward(inputs).mean(0)


class Half(Pooled):
    """A row for every other input."""

    def forward(self, inputs):
        return nn.Linear.forward(self, inputs[::2])


class Constant(nn.Module):
    """Its value everywhere."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, inputs):
        return inputs * 0 + self.value


class Backed(nn.Module):
    """A module with a backbone that it may not use."""

    def __init__(self, backbone, unit=True):
        super().__init__()
        self.backbone, self.head, self.unit = backbone, nn.Linear(WIDTH, 8), unit

    def forward(self, inputs):
        found = self.head(inputs)
        return nn.functional.normalize(found, dim=1) if self.unit else 5 * found


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("backed", [False, True])
def test_a_module_of_ones_own_gives_unit_rows_in_float32(precision, unit, backed, tmp_path, capsys):
    """Whatever it gives, in whatever precision; with the features of its backbone, and a note on what was done."""
    torch.manual_seed(0)
    module = Backed(nn.Linear(WIDTH, 5), unit)
    if not backed:
        module = nn.Sequential(module)
    run = {"steps": 3, "dir": str(tmp_path / "run"), "precision": precision}
    config, _ = parse(
        {"data": {"type": "own"}, "encoder": {"type": "own"}, "negatives": {"type": "sogclr"}, "run": run, **SMALL}
    )
    found = build(config, encoder=module, splits=Splits(TensorData(ROWS)))
    rows = torch.arange(50)
    with found.inference[0]._autocast():
        embeddings = found.inference[0].encoder(ROWS[rows])
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(50), atol=1e-6, rtol=0)
    scaled = not unit or precision == "bf16"
    assert any("not of norm 1 in float32, and are scaled" in note for note in found.notes) == scaled
    assert any("has no `backbone`" in note for note in found.notes) == (not backed)
    features = found.inference[0].features(TensorData(ROWS), rows)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), torch.no_grad():
        expected = module.backbone(ROWS[rows]) if backed else module(ROWS[rows])
    torch.testing.assert_close(features, expected.float())
    found.trainer.step()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Pooled(), r"encoder: gave shape \(8,\) for 4 inputs; .*one row an input"),
        (Half(), r"encoder: gave shape \(2, 8\) for 4 inputs; .*one row an input"),
        (nn.Flatten(0), "encoder: no parameter of it requires a gradient"),
        (nn.Linear(WIDTH, 8).requires_grad_(False), "encoder: no parameter of it requires a gradient"),
        (nn.Linear(WIDTH, 8).bfloat16(), r"its parameter weight is torch.bfloat16, .*encoder.float\(\)"),
        (nn.Linear(WIDTH, 8).double(), r"fails on inputs \(4, 12\) torch.float32 \(.*dtype"),
        (nn.Linear(7, 8), r"fails on inputs \(4, 12\) torch.float32 \(mat1 and mat2.*; have it take what the data"),
        (nn.LSTM(WIDTH, 8), "encoder: gives a tuple; have it give a floating tensor"),
        (
            nn.Sequential(nn.Linear(WIDTH, 8), Constant(0.0)),
            "encoder: gives rows of norms .*0.0, 0.0.* has no direction",
        ),
        (nn.Sequential(nn.Linear(WIDTH, 8), Constant(torch.nan)), "encoder: gives rows of norms .*nan"),
        (
            Backed(nn.Unflatten(1, (3, 4))),
            r"its `backbone` gave shape \(4, 3, 4\) for 4 inputs; .*call it another name",
        ),
        (Backed(nn.Linear(5, 5)), r"encoder: its `backbone` fails on inputs \(4, 12\)"),
        (Backed(nn.LSTM(WIDTH, 5)), "encoder: its `backbone` gives a tuple"),
        (nn.Linear(WIDTH, 1), "encoder: gives embeddings of width 1"),
    ],
)
def test_a_module_that_cannot_be_trained_is_said_at_once(module, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        negbank.fit(ROWS, module, run={"steps": 5, "dir": str(tmp_path / "run")}, **SMALL)


def test_what_is_no_data_is_said(tmp_path):
    with pytest.raises(TypeError, match=r"data: int, expected a tensor, a torch Dataset"):
        negbank.fit(3, encoder(), run={"steps": 5, "dir": str(tmp_path / "run")})
    with pytest.raises(ValueError, match=r"negatives\.type: 'sogclrr' is unknown"):
        negbank.fit(ROWS, encoder(), negatives="sogclrr", run={"steps": 5})
