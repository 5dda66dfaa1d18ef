"""`mine_hard_negatives`: embeddings in, hard negatives out.

For every query: the best `range_max` rows of D_i (what may be a negative at all, forbidden.py) by exact or index
search, their scores, the filters and the choice among what passes (rules.py). Queries are worked on in parts,
independent of each other, so that neither their size nor who computes them shows in the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from negbank.index import FaissIndex, Index
from negbank.mining import parts
from negbank.mining.budget import parse_size, plan
from negbank.mining.candidates import RUN
from negbank.mining.expected import index_pays
from negbank.mining.inputs import Work, check_inputs, open_inputs
from negbank.mining.miner import Miner, Rescore, sample_of
from negbank.mining.near import bound_of
from negbank.mining.positives import Positives
from negbank.mining.result import MiningResult, assembled
from negbank.mining.rows import Source
from negbank.mining.rules import Rules
from negbank.mining.search import half_is_fast
from negbank.snapshot import Snapshot

TARGET_RECALL = 0.99


def mine_hard_negatives(
    queries: Source | None,
    corpus: Source | Snapshot,
    positives: Positives = None,
    *,
    num_negatives: int = 3,
    range_min: int = 0,
    range_max: int | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    min_score: float | None = None,
    max_score: float | None = None,
    positive_reference: str = "min",
    sampling_strategy: str = "top",
    temperature: float = 0.05,
    exclude: Any = None,
    groups: Any = None,
    dedupe: str = "id",
    near: float = 0.95,
    rescore: Rescore | None = None,
    exact: bool = True,
    index: str | None = None,
    shortfall: str = "short",
    query_ids: Sequence[int] | Sequence[str] | np.ndarray | Tensor | None = None,
    corpus_ids: Sequence[int] | Sequence[str] | np.ndarray | Tensor | None = None,
    query_batch: int | None = None,
    memory_budget: int | str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> MiningResult:
    """Mine hard negatives: rows of the corpus that are similar to a query and are not its positives.

    Scores are cosines, computed in float32 from the rows. The result is the same for any query batch, shard size,
    number of threads, and number of processes (under `torch.distributed` each does its share and returns the whole).

    Args:
        queries: (Q, D) embeddings: an array, a tensor, the path of a `.npy` file or of a folder of them, or a list of
            these; None to mine within the corpus, where no row is its own negative.
        corpus: (N, D), likewise; or a `Snapshot`, or the path of a saved one, whose index is then searched.
        positives: pairs (P, 2) of (query id, corpus id), CSR (indptr, ids), a list of lists by query, a dict of lists,
            or None: each query's own id.
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
        exclude: pairs (query id, corpus id) that must not be negatives.
        groups: labels; rows of one label are never negatives of each other. (N,) where queries are corpus rows in the
            same order, else a pair (labels of queries, labels of the corpus). A negative label is no group.
        dedupe: "id": only known ids are positives; "exact": rows equal to a positive, or to a chosen negative, are left
            out, too; "near": rows whose cosine to one is `near` or more.
        near: the bound of dedupe="near".
        rescore: a callable (query ids, corpus ids) → scores, such as a cross-encoder; its scores replace the cosines of
            candidates and positives, before ranks, filters and choice.
        exact: score candidates again in float32 from the rows. False keeps the scores of the first pass: a little
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
        OSError: when `out` cannot be written.
        DamagedSnapshotError: for a saved snapshot that is damaged or of another format.

    The margins and their defaults follow NV-Retriever (Moreira et al. 2024, arXiv:2407.15831).
    """
    rules = Rules(
        num_negatives, range_min, range_max or range_min + num_negatives, absolute_margin, relative_margin, min_score,
        max_score, positive_reference, sampling_strategy, temperature, shortfall, seed,
    )  # fmt: skip
    if range_max is not None:
        rules = rules._replace(range_max=range_max)
    rules.check()
    bound = bound_of(dedupe, near)
    if query_batch is not None and query_batch < 1:
        raise ValueError(f"query_batch={query_batch}: expected at least 1")
    budget = None if memory_budget is None else parse_size(memory_budget)
    work = open_inputs(queries, corpus, positives, query_ids, corpus_ids, exclude, groups, index)
    if range_max is None:
        choosy = rules.margins or bound is not None or sampling_strategy != "top"
        choosy = choosy or min_score is not None or max_score is not None or rescore is not None
        most = int(np.diff(work.positives.indptr).max(initial=0))
        rules = rules._replace(range_max=range_min + num_negatives * (10 if choosy else 1) + most)
    depth = min(rules.range_max, len(work.corpus))
    digest = check_inputs(work, out is not None)
    kept = 0 if out is not None else 2 * len(work.query_ids) * (depth * 9 + num_negatives * 9 + 64)
    sizes = plan(
        budget, len(work.query_ids), len(work.corpus), work.corpus.dim, depth, kept, query_batch, bound is not None
    )
    rank, size = parts.world()
    width = min(sizes.queries, math.ceil(len(work.query_ids) / size))
    if work.searched is not None or index not in (None, "exact"):
        width = RUN * math.ceil(width / RUN)
    folder = None
    if out is not None:
        told = {**rules._asdict(), "dedupe": dedupe, "near": near, "exact": exact, "index": index, "inputs": digest}
        folder = _folder(Path(out), {**told, "rescore": rescore is not None}, width)
        if folder.complete:
            return MiningResult.load(folder.path)
        width = folder.part_queries
    searched = work.searched or _build_index(index, work, depth, seed)
    if searched is None or bound is not None:
        work.corpus.settle(sizes.resident)
    miner = Miner(work, rules, bound, rescore, exact, searched, sizes, depth)
    total = math.ceil(len(work.query_ids) / width)
    numbers = range(rank, total, size)

    with tqdm(total=len(work.query_ids), desc="mining", unit=" queries", disable=not progress or rank > 0) as bar:

        def make(number: int) -> parts.Part:
            stop = min((number + 1) * width, len(work.query_ids))
            part = miner.part(number * width, stop)
            bar.update((stop - number * width) * min(size, total))
            return part

        manifest = {
            "rules": rules._asdict(),
            "depth": depth,
            "queries": len(work.query_ids),
            "rows": len(work.corpus),
            "recall": None if searched is None else miner.recall(seed),
        }
        constant = {"positive_indptr": work.positives.indptr, "positives": miner.compact(work.positives.values)}
        for name, ids in (("query_ids", work.query_ids), ("corpus_ids", work.corpus_ids)):
            if ids.values is not None:
                constant[name] = ids.values
        if folder is None:
            return assembled(parts.in_memory(numbers, make, total), constant, manifest)
        for number in folder.missing(numbers):
            folder.put(number, make(number))
        _together(lambda: folder.finish(total, constant, manifest))
        return MiningResult.load(folder.path)


def _build_index(index: str | None, work: Work, depth: int, seed: int) -> Index | None:
    """An index over the corpus, tuned on a sample of the queries themselves: they may lie unlike the rows."""
    if index in (None, "exact"):
        return None
    corpus, forbidden = work.corpus, work.forbidden.most(np.arange(len(work.query_ids)))
    if len(corpus) < 2:
        raise ValueError(f"index={index!r}: a corpus of {len(corpus)} row(s) needs no index; use 'exact'")
    cpu = corpus.device.type == "cpu"
    if index == "auto" and cpu and not index_pays(len(work.query_ids), len(corpus), half_is_fast()):
        return None
    corpus.settle(len(corpus) * corpus.dim * 4)
    built = FaissIndex(
        corpus.block(0, len(corpus)), factory=str(index), target_recall=TARGET_RECALL, recall_at=depth, seed=seed
    )
    if built.report.factory == "Flat":
        return None
    queries = work.queries.take(torch.from_numpy(sample_of(len(work.query_ids), seed)))
    built.tune(queries, min(2 * depth, depth + forbidden), TARGET_RECALL)
    return built


def _folder(path: Path, run: dict[str, Any], width: int) -> parts.Folder:
    made: list[parts.Folder] = []
    _together(lambda: made.append(parts.Folder(path, run, width)))
    return made[0] if made else parts.Folder(path, run, width)


def _together(action: Callable[[], None]) -> None:
    """Have process 0 act when all have come this far; the others wait, and fail where it fails."""
    rank, size = parts.world()
    if size > 1:
        torch.distributed.barrier()
    error: list[Exception | None] = [None]
    if rank == 0:
        try:
            action()
        except (ValueError, OSError) as found:
            error[0] = found
    if size > 1:
        torch.distributed.broadcast_object_list(error, src=0)
    if error[0] is not None:
        raise error[0]
