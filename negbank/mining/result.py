"""What mining found: the negatives, and the candidates they were chosen from.

Ragged arrays are CSR: row i's negatives are ids[indptr[i] : indptr[i + 1]], sorted by (−score, id). A row is a query,
or, with positive_reference="each", one (query, positive) pair. The candidates stay, so that other thresholds need no
new search.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from negbank.mining.export import Lookup, Records, export
from negbank.mining.ids import Ids
from negbank.mining.parts import read_result, write_result
from negbank.mining.positives import Csr
from negbank.mining.rules import REASONS, Rules, reference_scores
from negbank.mining.select import Kept, select
from negbank.mining.summary import Statistics, histograms, statistics, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNCHANGED: Any = object()
"""Stands for the value an argument of the first mining had."""


class MiningResult:
    """Hard negatives of R rows over Q queries.

    Attributes:
        indptr: (R + 1,) int64 offsets.
        scores: (M,) float32, cosine or what `rescore` gave.
        log_probs: (M,) float32, log q of each negative under the "random" or "softmax" proposal, normalised over the
            candidates that passed every filter; NaN for random padding; None for "top".
        random: (M,) bool, negatives that are random padding; None without shortfall="pad_random".
        query: (R,) int64, the query (by position) of every row.
        positive_indptr, positive_scores: CSR over the Q queries, in the order given.
        candidate_indptr, candidate_scores: CSR over the Q queries, what was searched, by (−score, id).
        rejects: candidates rejected, by filter (`rules.REASONS`).
        recall: share of the exact candidates that the index found, on a sample of queries; None for exact search.
        rules: the arguments that chose.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> None:
        self._arrays, self._manifest = dict(arrays), dict(manifest)
        self.rules = Rules(**manifest["rules"])
        self.rejects: dict[str, int] = dict(zip(REASONS, manifest["rejects"]))
        self.recall: float | None = manifest["recall"]
        self._query_ids = Ids(arrays.get("query_ids"), int(manifest["queries"]), "query_ids")
        self._corpus_ids = Ids(arrays.get("corpus_ids"), int(manifest["rows"]), "corpus_ids")
        self.indptr, self.scores = arrays["indptr"], arrays["scores"]
        self.log_probs, self.random = arrays.get("log_probs"), arrays.get("random")
        self.positive_indptr, self.positive_scores = arrays["positive_indptr"], arrays["positive_scores"]
        self.candidate_indptr, self.candidate_scores = arrays["candidate_indptr"], arrays["candidate_scores"]
        self.query, self._positive = self._kept().queries(self.rules.positive_reference)

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and scores of a row's negatives, by (−score, id)."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of a result with {len(self)} rows")
        start, stop = self.indptr[row % len(self)], self.indptr[row % len(self) + 1]
        return self._corpus_ids.of(self._arrays["negatives"][start:stop]), self.scores[start:stop]

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self[row] for row in range(len(self)))

    @property
    def ids(self) -> np.ndarray:
        """(M,) ids of the negatives."""
        return self._corpus_ids.of(self._arrays["negatives"])

    @property
    def query_ids(self) -> np.ndarray:
        """(R,) the query id of every row."""
        return self._query_ids.of(self.query)

    @property
    def positive_ids(self) -> np.ndarray:
        """(P,) ids of the known positives, CSR by `positive_indptr`."""
        return self._corpus_ids.of(self._arrays["positives"])

    @property
    def candidate_ids(self) -> np.ndarray:
        """ids of the candidates, CSR by `candidate_indptr`."""
        return self._corpus_ids.of(self._arrays["candidates"])

    @property
    def short(self) -> int:
        """Rows with fewer than `num_negatives` negatives."""
        return int((np.diff(self.indptr) < self.rules.num_negatives).sum())

    def positives_of(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and scores of a row's positives: all of its query's, or the one of its pair with "each"."""
        if self._positive is not None:
            at = slice(self._positive[row], self._positive[row] + 1)
        else:
            query = self.query[row]
            at = slice(self.positive_indptr[query], self.positive_indptr[query + 1])
        return self._corpus_ids.of(self._arrays["positives"][at]), self.positive_scores[at]

    def rows(self, start: int, stop: int) -> Iterator[tuple[Any, list[Any], list[float], list[Any], list[float]]]:
        """Of rows start..stop−1: query id, ids and scores of the positives, ids and scores of the negatives."""
        query = self.query[start:stop]
        low = self.positive_indptr[query] if self._positive is None else self._positive[start:stop]
        high = self.positive_indptr[query + 1] if self._positive is None else low + 1
        below = self.indptr[start : stop + 1]
        from_, to = (int(low.min()), int(high.max())) if len(query) else (0, 0)
        above = self._corpus_ids.of(self._arrays["positives"][from_:to]).tolist()
        above_scores = self.positive_scores[from_:to].tolist()
        ids = self._corpus_ids.of(self._arrays["negatives"][below[0] : below[-1]]).tolist()
        scores = self.scores[below[0] : below[-1]].tolist()
        bounds = zip((low - from_).tolist(), (high - from_).tolist())
        cuts = (below - below[0]).tolist()
        for i, (q, (a, b)) in enumerate(zip(self._query_ids.of(query).tolist(), bounds)):
            at = slice(cuts[i], cuts[i + 1])
            yield q, above[a:b], above_scores[a:b], ids[at], scores[at]

    def reference(self) -> np.ndarray:
        """(R,) float32, the positive score that every row's margins measure against; NaN without a positive."""
        return reference_scores(self.positive_indptr, self.positive_scores, self.rules.positive_reference)

    def statistics(self) -> Statistics:
        """Counts, moments and quantiles of positive scores, negative scores and their difference."""
        reference = np.repeat(self.reference(), np.diff(self.indptr))
        return statistics(self.positive_scores, self.scores, reference - self.scores)

    def summary(self) -> str:
        """A table of scores, what each filter removed, and which rows came out short."""
        return table(self)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Histograms of the scores of positives, negatives and rejected candidates; written to `path` if given."""
        return histograms(self, self._kept(), path)

    def refilter(
        self,
        *,
        num_negatives: int = UNCHANGED,
        range_min: int = UNCHANGED,
        range_max: int = UNCHANGED,
        absolute_margin: float | None = UNCHANGED,
        relative_margin: float | None = UNCHANGED,
        min_score: float | None = UNCHANGED,
        max_score: float | None = UNCHANGED,
        positive_reference: str = UNCHANGED,
        sampling_strategy: str = UNCHANGED,
        temperature: float = UNCHANGED,
        shortfall: str = UNCHANGED,
        seed: int = UNCHANGED,
    ) -> MiningResult:
        """The result that other rules give on the same candidates, without a search; what is not given stays.

        Raises:
            ValueError: as `mine_hard_negatives`; for ranks beyond the candidates that were kept, and for
                shortfall="pad_random", which needs the embeddings.
        """
        given = {name: value for name, value in locals().items() if name != "self" and value is not UNCHANGED}
        if "shortfall" not in given and self.rules.shortfall == "pad_random":
            given["shortfall"] = "short"
        rules = self.rules._replace(**given)
        depth = int(self._manifest["depth"])
        rules.check()
        if min(rules.range_max, int(self._manifest["rows"])) > depth:
            raise ValueError(f"range_max={rules.range_max}: {depth} candidates a query were kept; mine again for more")
        if rules.shortfall == "pad_random":
            raise ValueError("shortfall='pad_random': needs the embeddings; mine again, or use 'short' or 'drop'")
        chosen = select(self._kept(), rules, self._query_ids, self._corpus_ids)
        arrays = {name: values for name, values in self._arrays.items() if name not in ("log_probs", "random")}
        arrays |= {"indptr": chosen.negatives.indptr, "negatives": chosen.negatives.values, "scores": chosen.scores}
        if chosen.log_probs is not None:
            arrays["log_probs"] = chosen.log_probs
        changed = {"rules": rules._asdict(), "rejects": chosen.rejects.tolist()}
        return MiningResult(arrays, {**self._manifest, **changed})

    def save(self, folder: str | Path) -> None:
        """Write arrays, manifest and checksums as a new folder.

        Raises:
            FileExistsError: when the folder is there already.
        """
        write_result(Path(folder), self._arrays, self._manifest)

    @classmethod
    def load(cls, folder: str | Path) -> MiningResult:
        """Read a saved or streamed result, memory-mapped, every file checked against its checksum first.

        Raises:
            DamagedResultError: naming the file that is missing, changed, or of another format; for an unfinished run.
        """
        return cls(*read_result(Path(folder)))

    def to(
        self,
        form: str = "triplet",
        lookup: Lookup | tuple[Lookup, Lookup] | None = None,
        *,
        out: str | Path | None = None,
        scores: bool = False,
    ) -> Any:
        """Training records.

        Args:
            form: "triplet" (anchor, positive, negative), "n-tuple" (anchor, positive, negative_1..n; without short
                rows), "labeled-pair" (anchor, document, label), "labeled-list" (anchor, documents, labels), or "ids"
                (query, positives, positive_scores, negatives, scores: a row a record).
            lookup: what an id stands for: a mapping, a sequence by id, or a callable; a pair of them for queries and
                corpus; the ids themselves by default.
            out: None for an iterator of dicts; a path ending in .jsonl or .parquet to write there; "dataset" for a
                `datasets.Dataset`.
            scores: add the scores: `scores` lists [positive, negatives...], or `score` instead of `label`.

        Raises:
            ValueError: for an unknown form or ending, or an id that `lookup` does not know.
            ImportError: where "dataset" or .parquet needs a package that is missing.
        """
        return export(Records(self, form, lookup, scores), out)

    def _kept(self) -> Kept:
        a = self._arrays
        pairs = Csr(a["pair_indptr"], a["pairs"]) if "pairs" in a else None
        return Kept(
            0,
            Csr(a["positive_indptr"], a["positives"]),
            a["positive_scores"],
            Csr(a["candidate_indptr"], a["candidates"]),
            a["candidate_scores"],
            a.get("near"),
            pairs,
            a.get("others"),
        )


def assembled(arrays: dict[str, np.ndarray], constant: dict[str, np.ndarray], manifest: dict[str, Any]) -> MiningResult:
    """The result of parts put together: `arrays` from them, `constant` known before."""
    rejects = [int(count) for count in arrays.pop("rejects")]
    return MiningResult({**constant, **arrays}, {**manifest, "rejects": rejects})
