"""`mine_hard_negatives`: embeddings in, hard negatives out.

For every query: the best `range_max` rows of D_i (what may be a negative at all, rules.py) by exact or index
search, their scores (search.py), the filters and the choice among what passes (rules.py). Queries are worked on in
parts, independent of each other, so that neither their size nor who computes them shows in the result.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from negbank.bounds import Count, Gt, Le, checked
from negbank.bounds import Positive as Positive_
from negbank.mining import parts
from negbank.mining.budget import index_pays, parse_size, plan
from negbank.mining.candidates import RUN, Finder, Rescore, build_index
from negbank.mining.choice import choose, padded
from negbank.mining.identity import identity
from negbank.mining.inputs import IdsLike, Positives, Source, Work, open_inputs
from negbank.mining.result import MiningResult
from negbank.mining.rules import Finite, Rank, Reference, Rules, Shortfall, Strategy
from negbank.mining.search import EXACT
from negbank.snapshot import Snapshot


@checked
def mine_hard_negatives(
    queries: Source | None,
    corpus: Source | Snapshot,
    positives: Positives = None,
    *,
    num_negatives: Count = 3,
    range_min: Rank = 0,
    range_max: int | None = None,
    absolute_margin: Finite | None = None,
    relative_margin: Finite | None = None,
    min_score: Finite | None = None,
    max_score: Finite | None = None,
    positive_reference: Reference = "min",
    sampling_strategy: Strategy = "top",
    temperature: Positive_ = 0.05,
    exclude: Any = None,
    groups: Any = None,
    ignore_identical: Any = False,
    dedupe: Literal["id", "exact", "near"] = "id",
    near: Annotated[float, Gt(-1), Le(1)] = 0.95,
    rescore: Rescore | None = None,
    exact: bool = True,
    index: str | None = None,
    shortfall: Shortfall = "short",
    query_ids: IdsLike | None = None,
    corpus_ids: IdsLike | None = None,
    query_batch: Count | None = None,
    memory_budget: int | str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> MiningResult:
    """Mine hard negatives: rows of the corpus that are similar to a query and are not its positives.

    Scores are cosines: products of unit float32 rows, summed exactly and rounded once (search.py). The result is the
    same for any query batch, shard size, number of threads, and number of processes (under `torch.distributed` each
    does its share and returns the whole).

    Args:
        queries: (Q, D) embeddings: an array, a tensor, a data frame, a list of rows, the path of a `.npy` file or of a
            folder of them, or shards: a tuple of arrays, a list of paths (`as_rows`). None, or the rows of the corpus
            themselves, to mine within the corpus, where no row is its own negative.
        corpus: (N, D), likewise; or a `Snapshot`, or the path of a saved one, whose index is then searched.
        positives: pairs of (query id, corpus id): a list of 2-tuples, an integer array (P, 2), a table of two columns;
            by query: a list or a dict of ids, lists of ids or {id: grade}, where grades above 0 count; CSR (indptr,
            ids); a sparse matrix (Q, N) by position. None: each query's own id, within the corpus none at all.
        num_negatives: wanted for every query.
        range_min, range_max: ranks range_min ≤ r < range_max among the rows that may be negatives (positives, excluded
            pairs and groups are not counted) are considered. Default of range_max: range_min + num_negatives, times 10
            if a filter can reject or draws are random, + the most positives of a query.
        absolute_margin: a negative scores at most p − absolute_margin, p the score of the positive.
        relative_margin: a negative scores at most p − |p| · relative_margin (right for negative p, too).
        min_score, max_score: bounds of a negative's score.
        positive_reference: p of a query with several positives: "min", "max", "mean", or "each": every pair (query,
            positive) is a row of the result with negatives of its own.
        sampling_strategy: "top", the best; "random"; or "softmax" of score / temperature: without replacement, from the
            candidates that pass, with the proposal's log-probabilities in the result.
        temperature: of "softmax", in units of the score.
        exclude: what must not be a negative of which query, in the forms of `positives`; unknown corpus ids are no row.
        groups: labels; rows of one label are never negatives of each other. (N,) where queries are corpus rows in the
            same order, else a pair (labels of queries, labels of the corpus). A negative label is no group.
        ignore_identical: True: a row with the query's own id (of `query_ids` and `corpus_ids`), or with its embedding,
            is no negative of it; a tuple (texts of queries, texts of the corpus): one with its id, its text or the text
            of one of its positives.
        dedupe: "id": only known ids are positives; "exact": rows equal to a positive, or to a chosen negative, are left
            out, too; "near": rows whose cosine to one is `near` or more.
        near: the bound of dedupe="near".
        rescore: a callable (query ids, corpus ids) → scores, such as a cross-encoder; its scores replace the cosines of
            candidates and positives, before ranks, filters and choice.
        exact: score candidates again from the rows. False keeps the scores of the first pass: a little
            faster, but off by up to 0.01 where that is bfloat16, and then not the same for every batch.
        index: None: exact search, or the snapshot's own index; "exact"; a Faiss factory string: an index is built in
            memory, tuned to a recall of 0.99, and measured; or "auto": the one of these that is expected to be faster.
        shortfall: for rows that find fewer: "short" keeps them, "drop" empties them, "pad_random" fills them with
            random rows that pass all filters but ranks and min_score, "error" raises.
        query_ids, corpus_ids: distinct integers or strings; 0..Q−1 and 0..N−1 by default.
        query_batch: queries of a part; chosen by default.
        memory_budget: bytes, or a string such as "2GB", that the whole process stays under; files are read in blocks.
        out: a folder to stream parts to; a run that was interrupted goes on when called again, a finished one is read.
        seed: of random draws, each a hash of (seed, query id, row id).
        progress: show a bar with rates.

    Returns:
        MiningResult: R rows of negatives, sorted by (−score, id).

    Raises:
        ValueError: naming argument, value and remedy: for arguments out of range, an empty corpus, rows that are not
            finite or zero, integer embeddings, widths that differ, ids that come twice or are unknown, a shard that is
            truncated, a budget too small; from margins where a query has no positive.
        FileNotFoundError: for a path that does not exist.
        OSError: when `out` cannot be written, or, as `OwnedError`, is written by another process.
        DamagedSnapshotError: for a saved snapshot that is damaged or of another format.

    The margins and their defaults follow NV-Retriever (Moreira et al. 2024, arXiv:2407.15831).
    """
    given = locals()
    rules = Rules(**{name: given[name] for name in Rules._fields})
    if range_max is None:
        rules = rules._replace(range_max=range_min + num_negatives)
    rules.check()
    if out is not None:
        parts.require_free(Path(out))
    bound = {"id": None, "exact": EXACT, "near": near}[dedupe]
    budget = None if memory_budget is None else parse_size(memory_budget)
    if ignore_identical is True and not exact:
        raise ValueError("ignore_identical=True: compares exact scores; leave exact=True, or give texts")
    work = open_inputs(queries, corpus, positives, query_ids, corpus_ids, exclude, groups, index, ignore_identical)
    count = len(work.query_ids)
    if range_max is None:
        choosy = rules.margins or bound is not None or sampling_strategy != "top" or rescore is not None
        choosy = choosy or min_score is not None or max_score is not None
        most = int(work.positives.counts.max(initial=0))
        rules = rules._replace(range_max=range_min + num_negatives * (10 if choosy else 1) + most)
    depth = min(rules.range_max, len(work.corpus))
    kept = 0 if out is not None else 2 * count * (depth * 9 + num_negatives * 9 + 64)
    sizes = plan(budget, count, len(work.corpus), work.corpus.dim, depth, kept, query_batch, bound is not None)
    digest = work.check(digest=out is not None)
    rank, size = parts.world()
    width = min(sizes.queries, math.ceil(count / size))
    if work.searched is not None or index not in (None, "exact"):
        width = RUN * math.ceil(width / RUN)
    told = {**rules._asdict(), "dedupe": dedupe, "near": near, "exact": exact, "index": index, "inputs": digest}
    told |= {"rescore": None if out is None else identity(rescore), "ignore_identical": ignore_identical is True}
    with nullcontext() if out is None else parts.opened(Path(out), told, width) as folder:
        if folder is not None:
            if folder.complete:
                return MiningResult(*folder.result())
            width = folder.part_queries
        searched = work.searched
        if index not in (None, "exact"):
            if len(work.corpus) < 2:
                raise ValueError(f"index={index!r}: a corpus of {len(work.corpus)} row(s) needs no index; use 'exact'")
            if index != "auto" or work.corpus.device.type != "cpu" or index_pays(count, len(work.corpus)):
                searched = build_index(str(index), work, depth, seed)
        if searched is None or bound is not None:
            work.corpus.settle(sizes.resident)
        identical = EXACT if ignore_identical is True else None
        miner = Miner(work, rules, Finder(work, searched, depth, bound, rescore, exact, identical, sizes))
        total = math.ceil(count / width)
        numbers = range(rank, total, size)

        with tqdm(total=count, desc="mining", unit=" queries", disable=not progress or rank > 0) as bar:

            def make(number: int) -> parts.Part:
                stop = min((number + 1) * width, count)
                part = miner.part(number * width, stop)
                bar.update((stop - number * width) * min(size, total))
                return part

            about = {"rules": rules._asdict(), "depth": depth, "queries": count, "rows": len(work.corpus)}
            about["recall"] = miner.finder.recall(seed)
            constant = {
                "positive_indptr": work.positives.indptr,
                "positives": miner.finder.compact(work.positives.values),
                "query_ids": work.query_ids.values,
                "corpus_ids": work.corpus_ids.values,
            }
            known = {name: values for name, values in constant.items() if values is not None}
            if folder is None:
                arrays, sums = parts.in_memory(numbers, make, total)
                return MiningResult({**known, **arrays}, {**about, **sums})
            for number in folder.missing(numbers):
                folder.put(number, make(number))
            parts.together(lambda: folder.finish(total, known, about))
            return MiningResult.load(folder.path)


class Miner(NamedTuple):
    """Mines parts: runs of queries, each searched, scored, compared, chosen from and padded by itself."""

    work: Work
    rules: Rules
    finder: Finder

    def part(self, start: int, stop: int) -> parts.Part:
        """Everything of queries start..stop−1."""
        work, rules = self.work, self.rules
        known = self.finder.candidates(start, stop)
        chosen = choose(known, rules, work.query_ids, work.corpus_ids)
        if rules.shortfall == "pad_random":
            chosen = padded(chosen, known, rules, self.finder, work)
        made = {**known.arrays(), **chosen.arrays(), "rejects": chosen.rejects}
        return {parts.COUNTS.get(name, name): np.diff(v) if name in parts.COUNTS else v for name, v in made.items()}
