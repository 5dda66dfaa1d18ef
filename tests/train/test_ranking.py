"""Measures of rankings against a published package and a literal loop; the corpus that queries are judged on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from negbank.train.data.contract import Pairs, Splits
from negbank.train.data.tensors import TensorData
from negbank.train.evaluate.ranking import Judgements, measured, ranks
from negbank.train.evaluate.retrieval import Retrieval
from negbank.train.inference import Inference


def random_judgements(queries, documents, generator, most=6):
    pairs = [
        (q, int(d), int(torch.randint(1, 4, (), generator=generator)))
        for q in range(queries)
        for d in torch.randperm(documents, generator=generator)[: 1 + q % most]
    ]
    return Judgements(*(torch.tensor(each) for each in zip(*pairs)))


@pytest.mark.parametrize("seed", range(5))
def test_measures_are_those_of_trec_eval(seed):
    import pytrec_eval

    generator = torch.Generator().manual_seed(seed)
    queries, corpus = (nn.functional.normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (40, 90))
    judged = random_judgements(40, 90, generator)
    found = {k: float(v.mean()) for k, v in measured(ranks(queries, corpus, judged), judged).items()}
    scores = queries @ corpus.T
    qrels: dict[str, dict[str, int]] = {}
    for q, d, grade in zip(*(each.tolist() for each in judged)):
        qrels.setdefault(f"q{q}", {})[f"d{d}"] = grade
    near = scores.topk(10, 1)
    whole = {f"q{q}": {f"d{d}": float(scores[q, d]) for d in range(90)} for q in range(40)}
    first = {f"q{q}": {f"d{d}": float(scores[q, d]) for d in near.indices[q].tolist()} for q in range(40)}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"recall.1,5,10", "ndcg_cut.10"}).evaluate(whole)
    cut = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(first)
    names = {"recall@1": "recall_1", "recall@5": "recall_5", "recall@10": "recall_10", "ndcg@10": "ndcg_cut_10"}
    expected = {name: sum(each[key] for each in theirs.values()) / 40 for name, key in names.items()}
    expected["mrr@10"] = sum(each["recip_rank"] for each in cut.values()) / 40
    assert found == pytest.approx(expected, abs=1e-9)


def test_ties_count_against_whoever_is_relevant():
    generator = torch.Generator().manual_seed(0)
    corpus = nn.functional.normalize(torch.randint(-1, 2, (60, 3), generator=generator) + 0.01, dim=1)
    queries = nn.functional.normalize(torch.randint(-1, 2, (30, 3), generator=generator) + 0.02, dim=1)
    judged = random_judgements(30, 60, generator)
    found = ranks(queries, corpus, judged).tolist()
    scores = (queries @ corpus.T).tolist()
    grades = {(q, d): g for q, d, g in zip(*(each.tolist() for each in judged))}
    for q, d, rank in zip(judged.queries.tolist(), judged.documents.tolist(), found):
        before = 0
        for other in range(60):
            if other == d or scores[q][other] < scores[q][d] - 1e-6:
                continue
            grade = grades.get((q, other), 0)
            tied = abs(scores[q][other] - scores[q][d]) <= 1e-6
            before += not (tied and (grade, other) > (grades[q, d], d) and grade)
        assert rank == before + 1 or any(  # exact ties of float sums may be ordered either way among relevant ones
            (q, o) in grades and o != d and abs(scores[q][o] - scores[q][d]) < 1e-5 for o in range(60)
        )
    same = ranks(queries[:1].expand(30, -1), queries[:1].expand(60, -1), judged)
    assert all(value == 0 for value in measured(same, judged, recalls=(1, 5))["mrr@10"].tolist())


class Rows(nn.Module):
    def forward(self, x):
        return nn.functional.normalize(x, dim=1)


def retrieval(left, right, groups=None, labels=None, **options):
    """Of which the first ten rows are held out."""
    cut = lambda each, part: TensorData(each[part], mask=0.0)  # noqa: E731
    sides = [
        Pairs(
            cut(left, part),
            TensorData(right[part], mask=0.0, labels=None if labels is None else labels[part]),
            None if groups is None else groups[part],
        )
        for part in (slice(10, None), slice(0, 10))
    ]
    inference = Inference(Rows(), device=torch.device("cpu"), autocast=lambda: torch.autocast("cpu", enabled=False))
    return Retrieval([inference, inference], Splits(*sides), **options).full()


def test_queries_are_judged_against_every_document():
    generator = torch.Generator().manual_seed(0)
    right = torch.randn(50, 5, generator=generator)
    left = right + 0.7 * torch.randn(50, 5, generator=generator)
    labels = torch.arange(50) // 2 % 23
    labels[3] = -1
    found = retrieval(left, right, labels=labels)
    q, d = (nn.functional.normalize(each, dim=1) for each in (left, right))
    scores = q @ d.T
    rank = 1 + (scores > scores.diagonal()[:, None]).sum(1)
    assert found["recall@1"] == pytest.approx(float((rank[:10] == 1).double().mean()))
    assert found["mrr@10"] == pytest.approx(sum(1 / r if r <= 10 else 0 for r in rank[:10].tolist()) / 10)
    ndcg = sum(1 / math.log2(r + 1) if r <= 10 else 0 for r in rank[:10].tolist()) / 10
    assert found["ndcg@10"] == pytest.approx(ndcg)
    assert found["train_recall@1"] == pytest.approx(float((rank[10:] == 1).double().mean()))
    some = [int(labels[i]) >= 0 and int((labels == labels[i]).sum()) > 1 for i in range(10)]
    assert 0 < sum(some) < 10
    assert found["siblings"] == sum(some) / 10
    assert found["recall@1_siblings"] == pytest.approx(sum(rank[i] == 1 for i in range(10) if some[i]) / sum(some))
    alone = [i for i in range(10) if not some[i]]
    assert found["mrr@10_alone"] == pytest.approx(sum(1 / int(rank[i]) * (rank[i] <= 10) for i in alone) / len(alone))


def test_documents_of_a_group_are_relevant_alike():
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(50, 5, generator=generator), torch.randn(50, 5, generator=generator)
    groups = torch.arange(50) % 7
    groups[:3] = -1
    found = retrieval(left, right, groups=groups)
    q, d = (nn.functional.normalize(each, dim=1) for each in (left, right))
    recalls = []
    for i in range(10):
        relevant = {j for j in range(50) if j == i or (groups[i] >= 0 and groups[j] == groups[i])}
        near = (q[i] @ d.T).argsort(descending=True)[:10].tolist()
        recalls.append(len(relevant & set(near)) / len(relevant))
    assert found["recall@10"] == pytest.approx(sum(recalls) / 10)


def test_a_k_beyond_the_corpus_is_refused():
    rows = torch.randn(20, 3)
    with pytest.raises(ValueError, match=r"expected 1..20"):
        retrieval(rows, rows, ks=[1, 21])
    assert "left_to_right_at_5" in retrieval(rows, rows, ks=[1, 5], corpus="held_out")
    with pytest.raises(ValueError, match=r"expected 1..10"):
        retrieval(rows, rows, ks=[1, 11], corpus="held_out")
