"""Spearman's correlation against scipy's, and a run that is judged by it."""

from __future__ import annotations

import json

import pytest
import torch
from scipy.stats import spearmanr

from negbank.train.config import parse
from negbank.train.evaluate.sts import spearman
from negbank.train.run import start


@pytest.mark.parametrize("levels", [3, 6, 1000])
def test_it_is_that_of_scipy(levels):
    generator = torch.Generator().manual_seed(levels)
    for _ in range(20):
        x, y = torch.randint(levels, (50,), generator=generator), torch.randint(levels, (50,), generator=generator)
        assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
        assert spearman(x, -x) == pytest.approx(-1)
    assert spearman(torch.zeros(5), torch.arange(5)) != spearman(torch.zeros(5), torch.arange(5))  # NaN


def config(folder, **eval):
    (folder / "texts.txt").write_text(
        "".join(f"the {a} {b}\n" for a in ["red", "blue", "old", "new"] for b in ["cat", "dog"])
    )
    rows = ["red cat,red cat,5", "red cat,red dog,3", "red cat,old sea,0", "new dog,new dog of,4", " ,red,1"]
    (folder / "sts.csv").write_text("\n".join(["sentence1,sentence2,score", *rows]) + "\n")
    sections = {
        "data": {"type": "text", "path": str(folder / "texts.txt"), "tokenizer": "hashed", "delete": 0.2},
        "encoder": {"type": "static", "dim": 64},
        "batches": {"batch_size": 4},
        "negatives": {"type": "in_batch"},
        "eval": {"type": "sts", "path": str(folder / "sts.csv"), **eval},
        "run": {"steps": 4, "dir": str(folder / "run")},
    }
    return parse(sections)[0]


def test_a_run_of_texts_is_judged_by_it(tmp_path):
    start(config(tmp_path))
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["spearman"] > 0.9  # equal sentences have cosine 1, those without a common word about 0


def test_what_cannot_be_judged_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no column 'mark'"):
        start(config(tmp_path, score="mark"))
    with pytest.raises(ValueError, match=r"record 1: 'red cat' is no score"):
        start(config(tmp_path, score="sentence1"))
