"""Runs of texts: functions of packages as pairs, one encoder for both sides, exact resumes, and search."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from negbank.train import run
from negbank.train.build import build
from negbank.train.commands import main
from negbank.train.config import parse
from negbank.train.data.text import code
from negbank.train.data.text.functions import functions
from negbank.train.search import search

SOURCE = '''
def area(radius):
    """The area of a circle. More words that
    do not matter."""
    return 3.14 * radius**2

def short():
    """Too short."""
    return 1

def empty(x):
    """A function that has no body at all."""

class Shape:
    @property
    def corners(self):
        """How many corners this shape
        has in all."""
        # counted
        return 4
'''


def test_functions_are_their_first_sentence_and_their_code():
    found = list(functions(SOURCE))
    assert [each.query for each in found] == ["The area of a circle", "How many corners this shape has in all"]
    assert found[0].document == "def area(radius):\n    return 3.14 * radius**2"
    assert found[1].document == "def corners(self):\n    # counted\n    return 4"
    assert list(functions("def broken(:")) == []


def test_functions_of_a_folder_are_found_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "CACHE", tmp_path / "cache")
    for number in range(150):
        body = f'def f{number}(x):\n    """Adds the number {number} to it."""\n    return x + {number}\n'
        (tmp_path / "lib" / f"p{number % 3}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / f"p{number % 3}" / f"m{number}.py").write_text(body)
    (tmp_path / "lib" / "tests").mkdir()
    (tmp_path / "lib" / "tests" / "t.py").write_text(SOURCE)
    (tmp_path / "lib" / "again.py").write_text(body)
    splits = code.python_code(str(tmp_path / "lib"), tokenizer="hashed", holdout=20)
    left = splits.train.left.data
    assert sorted(left.texts) == sorted(f"Adds the number {number} to it" for number in range(150))
    assert (len(splits.test.left), len(splits.train.right)) == (20, 130)
    monkeypatch.setattr(code, "_parsed", lambda root, paths: pytest.fail("parsed again"))
    again = code.python_code(str(tmp_path / "lib"), tokenizer="hashed", holdout=20, split=1)
    assert not torch.equal(again.test.left.rows, splits.test.left.rows)
    monkeypatch.undo()
    monkeypatch.setattr(code, "CACHE", tmp_path / "cache")
    with pytest.raises(ValueError, match="documented functions"):
        code.python_code(str(tmp_path / "lib" / "tests"), tokenizer="hashed")


def pairs_config(folder, **changes):
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(60)]
    rows = [rng.choice(words, 12) for _ in range(90)]
    path = folder / "pairs.tsv"
    path.write_text("q\td\n" + "".join(f"{' '.join(r[:4])}\t{' '.join(r[2:])}\n" for r in rows))
    side = {"type": "text", "path": str(path), "tokenizer": "hashed", "delete": 0.2}
    config = {
        "data": {
            "type": "pairs", "left": side | {"column": "q"}, "right": side | {"column": "d"}, "holdout": 10,
        },
        "encoder": {"type": "transformer", "features": 16, "layers": 1, "heads": 2, "dropout": 0.2},
        "encoder_right": {"type": "left"},
        "batches": {"type": "knn", "batch_size": 8, "neighbors": 10},
        "negatives": {"type": "in_batch"},
        "refresh": {"every": 1, "unit": "epochs"},
        "optim": {"type": "adamw", "lr": 1e-3},
        "eval": {"type": "retrieval", "ks": [1], "every": 100},
        "run": {"steps": 24, "dir": str(folder / "run"), "device": "cpu", "precision": "float32", "log_every": 1,
                "checkpoint_every": 7},
    }  # fmt: skip
    for path, value in changes.items():
        *sections, key = path.split(".")
        at = config
        for each in sections:
            at = at[each]
        at[key] = value
    return parse(config)[0]


def weights(assembly):
    return torch.cat([p.detach().flatten() for p in assembly.trainer.towers[0].encoder.parameters()])


def stepped(config, steps=20):
    assembly = build(config)
    for _ in range(steps):
        assembly.trainer.step()
        assembly.trainer.refresh()
    return assembly


def test_both_sides_share_an_encoder_and_batches_are_planned_from_their_mean(tmp_path):
    assembly = stepped(pairs_config(tmp_path))
    left, right = assembly.trainer.towers
    assert left.encoder is right.encoder
    assert left.refresher is None is right.refresher
    (snapshot,) = assembly.trainer.snapshots()
    both = left.bank.written & right.bank.written
    assert snapshot.step == 20
    assert bool(both.all())
    mean = nn.functional.normalize(left.bank.vectors + right.bank.vectors, dim=1)
    torch.testing.assert_close(snapshot.vectors, mean)
    one_side = stepped(pairs_config(tmp_path, **{"batches.space": "right"}))
    torch.testing.assert_close(one_side.trainer.snapshots()[0].vectors, one_side.trainer.towers[1].bank.vectors)
    # chosen for nothing, but for the drift that is measured on at most 256 rows, at the second refresh
    assert (one_side.trainer.encodings, assembly.trainer.encodings) == (20 * 2 * 8 + 80, 20 * 2 * 8 + 2 * 80)


def test_a_full_refresh_encodes_both_sides_of_the_mean(tmp_path):
    assembly = stepped(pairs_config(tmp_path, **{"refresh.mode": "full", "refresh.every": 2}), steps=10)
    left, right = assembly.trainer.towers
    assert (assembly.trainer.encodings, assembly.trainer.snapshots()[0].step) == (10 * 2 * 8 + 2 * 80, 1)
    assert bool((left.bank.written & right.bank.written).all())


def test_the_left_encoder_is_shared_with_the_right_alone(tmp_path):
    with pytest.raises(ValueError, match="name an encoder of its own here"):
        build(pairs_config(tmp_path, **{"encoder": {"type": "left"}, "encoder_right": None}))
    with pytest.raises(ValueError, match="take static, transformer or pretrained"):
        build(pairs_config(tmp_path, **{"encoder": {"type": "mlp"}}))
    with pytest.raises(ValueError, match=r"take optim.type=adamw"):
        build(pairs_config(tmp_path, **{"encoder": {"type": "static"}, "optim": {"type": "sgd"}}))


@pytest.mark.parametrize("encoder", ["transformer", "static"])
def test_workers_and_pieces_change_no_number(tmp_path, encoder):
    section = {"type": encoder} if encoder == "static" else pairs_config(tmp_path).encoder.model_dump()
    whole = weights(stepped(pairs_config(tmp_path, encoder=section)))
    workers = stepped(pairs_config(tmp_path, encoder=section, **{"data.workers": 2}))
    assert torch.equal(weights(workers), whole)
    workers.trainer._ahead.close()
    changed = {"encoder": section} if encoder == "static" else {  # dropout is drawn by the piece; Adam divides by noise
        "encoder": section | {"dropout": 0.0}, "optim": {"type": "sgd", "lr": 0.1}
    }  # fmt: skip
    whole = weights(stepped(pairs_config(tmp_path, **changed)))
    pieces = weights(stepped(pairs_config(tmp_path, **changed, **{"run.micro_batch": 3})))
    torch.testing.assert_close(pieces, whole, atol=2e-4, rtol=1e-3)


def test_a_resumed_run_of_texts_with_dropout_is_the_same_bits(tmp_path):
    config = pairs_config(tmp_path)
    run.start(config)
    whole = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for step in (24, 21):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step_{step:08d}")
        run.resume(tmp_path / "run")
        assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == whole


def test_documents_of_a_run_are_found_by_meaning(tmp_path, capsys):
    with pytest.raises(run.RunError, match="no run"):
        search(tmp_path / "run", ["w1"])
    config = pairs_config(tmp_path, **{"encoder": {"type": "static"}, "run.steps": 60})
    run.start(config)
    query = (tmp_path / "pairs.tsv").read_text().splitlines()[40].split("\t")
    (hits,) = search(tmp_path / "run", [query[0]], k=3)
    assert [round(hit.score, 5) for hit in hits] == sorted((round(hit.score, 5) for hit in hits), reverse=True)
    assert query[1] in [hit.text for hit in hits]
    assert main(["search", str(tmp_path / "run"), query[0], "-k", "1"]) == 0
    assert hits[0].text[:110] in capsys.readouterr().out
    assert main(["search", str(tmp_path / "run"), "-k", "0", "w1"]) == 2
