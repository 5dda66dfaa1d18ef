"""How well queries find their documents: held-out pairs, against the whole corpus or among each other.

    whole       a held-out left row is a query; the corpus is every right row there is, those that were trained on, too
    held_out    held-out rows of both sides, each among the held-out rows of the other, both ways

The relevant documents of a query are its own and those of its group. Where the right side has labels, such as a
document's source, a query has siblings if another document of the corpus has the label of its own: documents that are
easily taken for one another. Both kinds of queries are reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from negbank.bank import unit_rows
from negbank.bounds import Ge, checked
from negbank.index import ExactIndex
from negbank.ragged import within
from negbank.train.data.contract import Pairs, Splits
from negbank.train.evaluate.measures import mean_cosine
from negbank.train.evaluate.ranking import Judgements, measured, ranks
from negbank.train.inference import Inference

SEED = 20_240_415
TRAINED = 1000
"""Training pairs that are judged, too, so that what is learned by heart shows."""


class Retrieval:
    """Recall, MRR and NDCG of held-out queries against the whole corpus, and of some training pairs.

    Args:
        inference: of the two towers.
        splits: pairs; the held-out ones are queries, or the training ones where none are held out.
        ks: k of the recalls.
        max_rows: queries, a fixed random subset.
        corpus: whole, or held_out: held-out pairs among each other, both ways.

    Raises:
        ValueError: for data of one side, or a k beyond the documents there are.
    """

    @checked
    def __init__(
        self,
        inference: Sequence[Inference],
        splits: Splits,
        *,
        ks: list[int] = (1, 5, 10),  # type: ignore[assignment]
        max_rows: Annotated[int, Ge(2)] = 10_000,
        corpus: Literal["whole", "held_out"] = "whole",
    ) -> None:
        train, test = splits.train, splits.test
        pairs = train if test is None else test
        if not isinstance(pairs, Pairs) or not isinstance(train, Pairs):
            raise ValueError("eval.type=retrieval: judges pairs; take data.type=pairs, or eval.type=features")
        self._inference, self._pairs, self._ks, self._whole = inference, pairs, list(ks), corpus == "whole"
        self._train = train if test is not None and self._whole else None
        self._rows = _some(len(pairs.left), max_rows)
        documents = len(self._rows) if not self._whole else sum(len(each.right) for each in self._corpus)
        if not ks or min(ks) < 1 or max(ks) > documents:
            raise ValueError(f"eval.ks={list(ks)}: expected 1..{documents}, the documents; lower them")

    @property
    def _corpus(self) -> list[Pairs]:
        """The pairs whose right sides are the corpus, in its order: those of the queries first."""
        return [self._pairs] if self._train is None else [self._pairs, self._train]

    def baseline(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def quick(self) -> dict[str, float]:
        """All of it."""
        return self.full()

    def full(self) -> dict[str, float]:
        """Recalls, MRR, NDCG, and mean cosines that tell a collapse."""
        left, right = self._inference
        queries = unit_rows(left.embeddings(self._pairs.left, self._rows))
        if not self._whole:
            documents, groups = right.embeddings(self._pairs.right, self._rows), self._pairs.groups
            found = recall_both_ways(
                queries, documents, ks=self._ks, groups=None if groups is None else groups[self._rows]
            )
            return {**found, **_cosines(queries, documents)}
        corpus = unit_rows(torch.cat([right.embeddings(p.right, torch.arange(len(p.right))) for p in self._corpus]))
        each = self._judged(queries, corpus, self._rows)
        found = {name: float(values.mean()) for name, values in each.items()} | self._by_siblings(each, self._rows)
        if self._train is not None:
            rows = _some(len(self._train.left), TRAINED)
            trained = unit_rows(left.embeddings(self._train.left, rows))
            of_trained = self._judged(trained, corpus, rows + len(self._pairs.left))
            found["train_recall@1"] = float(of_trained["recall@1"].mean())
        return {**found, **_cosines(queries, corpus)}

    def _judged(self, queries: Tensor, corpus: Tensor, own: Tensor) -> dict[str, Tensor]:
        """Measures of each of queries (Q, D), whose own documents are at places own (Q,) of the corpus."""
        judged = Judgements(*(each.to(corpus.device) for each in self._relevant(own)))
        return measured(ranks(queries, corpus, judged), judged, recalls=sorted({1, *self._ks}))

    def _by_siblings(self, found: Mapping[str, Tensor], own: Tensor) -> dict[str, float]:
        """Means over queries with siblings and without, and the share of the first; empty without labels."""
        labels = self._labels()
        if labels is None:
            return {}
        known, counts = labels >= 0, torch.bincount(labels[labels >= 0])
        siblings = torch.zeros(len(labels), dtype=torch.bool)
        siblings[known] = counts[labels[known]] > 1
        some = siblings[own].to(found["recall@1"].device)
        means = {"siblings": float(some.double().mean())}
        for name in ("recall@1", "mrr@10"):
            for kind, which in (("siblings", some), ("alone", ~some)):
                if bool(which.any()):
                    means[f"{name}_{kind}"] = float(found[name][which].mean())
        return means

    def _relevant(self, own: Tensor) -> Judgements:
        """The document of every query, and those of its group."""
        query = torch.arange(len(own))
        groups = [each.groups for each in self._corpus]
        if any(each is None for each in groups):
            return Judgements(query, own, torch.ones(len(own)))
        label = torch.cat([each for each in groups if each is not None]).cpu()
        order = label.argsort(stable=True)
        mine = label[own]
        first, last = (torch.searchsorted(label[order], mine, right=right) for right in (False, True))
        alone = mine < 0
        counts = torch.where(alone, 1, last - first)
        at = torch.where(alone, 0, first).repeat_interleave(counts) + within(counts)
        documents = order[at.clamp(max=len(order) - 1)]
        documents = torch.where(alone.repeat_interleave(counts), own.repeat_interleave(counts), documents)
        return Judgements(query.repeat_interleave(counts), documents, torch.ones(len(documents)))

    def _labels(self) -> Tensor | None:
        """Labels of the corpus (N,), or None."""
        found = [each.right.labels for each in self._corpus]
        return None if any(each is None for each in found) else torch.cat([each for each in found if each is not None])


def _some(count: int, most: int) -> Tensor:
    """At most so many of rows 0..count−1, a fixed random subset, ascending."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(SEED))[:most].sort().values


def _cosines(left: Tensor, right: Tensor) -> dict[str, float]:
    return {"left_mean_cosine": mean_cosine(left), "right_mean_cosine": mean_cosine(right)}


def recall_both_ways(
    left: Tensor, right: Tensor, *, ks: Sequence[int] = (1, 5, 10), groups: Tensor | None = None
) -> dict[str, float]:
    """Recall@k of row i's partner among all rows of the other side, by exact search, from left to right and back.

    Args:
        left, right: (N, D) embeddings; row i of one is the partner of row i of the other.
        ks: at which k.
        groups: (N,) labels; every row of the query's label counts as its partner, one of them suffices.

    Returns:
        `left_to_right_at_k` and `right_to_left_at_k`, shares in [0, 1].

    Raises:
        ValueError: for embeddings of different shapes, or a k outside 1..N.
    """
    if left.shape != right.shape:
        raise ValueError(f"left, right: shapes {tuple(left.shape)} and {tuple(right.shape)}; expected one row a pair")
    if not ks or min(ks) < 1 or max(ks) > len(left):
        raise ValueError(f"ks={list(ks)}: expected values in 1..{len(left)}, the number of pairs; lower them")
    labels = torch.arange(len(left), device=left.device) if groups is None else groups.to(left.device)
    result: dict[str, float] = {}
    for name, queries, rows in (("left_to_right", left, right), ("right_to_left", right, left)):
        found = ExactIndex(unit_rows(rows)).search(unit_rows(queries), max(ks)).ids
        hit = labels[found] == labels[:, None]
        result |= {f"{name}_at_{k}": float(hit[:, :k].any(1).double().mean()) for k in ks}
    return result
