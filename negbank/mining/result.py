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

from negbank.bounds import Count, Positive, checked
from negbank.links import Ids
from negbank.mining.candidates import Candidates
from negbank.mining.choice import CHUNK, choose
from negbank.mining.formats import Lookup, Row, export, records
from negbank.mining.parts import read_result, write_result
from negbank.mining.rules import (
    REASONS,
    Csr,
    Finite,
    Rank,
    Reference,
    Rules,
    Shortfall,
    Strategy,
    reference_scores,
    verdicts,
)
from negbank.mining.scores import Column, Statistics, histograms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAID = {"near_positive": "dedupe: like a positive", "near_negative": "dedupe: like a chosen negative"}
"""What `summary` calls reasons that are no argument's name."""
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
        self.query, self._positive = self._known().queries(self.rules.positive_reference)

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
    def places(self) -> np.ndarray:
        """(M,) the negatives by position in the corpus."""
        return self._arrays["negatives"]

    @property
    def corpus_rows(self) -> int:
        """N, rows of the corpus."""
        return len(self._corpus_ids)

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

    def rows(self) -> Iterator[Row]:
        """Every row with its ids and scores as Python values."""
        for first in range(0, len(self), CHUNK):
            query, below = self.query[first : first + CHUNK], self.indptr[first : first + CHUNK + 1]
            if self._positive is None:
                low, high = self.positive_indptr[query], self.positive_indptr[query + 1]
            else:
                low, high = self._positive[first : first + CHUNK], self._positive[first : first + CHUNK] + 1
            known, found = slice(low.min(), high.max()), slice(below[0], below[-1])
            positives = self._corpus_ids.of(self._arrays["positives"][known]).tolist()
            negatives = self._corpus_ids.of(self._arrays["negatives"][found]).tolist()
            above, scores = self.positive_scores[known].tolist(), self.scores[found].tolist()
            cuts = zip(low - low.min(), high - low.min(), below - below[0], below[1:] - below[0])
            for q, (a, b, c, d) in zip(self._query_ids.of(query).tolist(), cuts):
                yield Row(q, positives[a:b], above[a:b], negatives[c:d], scores[c:d])

    def reference(self) -> np.ndarray:
        """(R,) float32, the positive score that every row's margins measure against; NaN without a positive."""
        return reference_scores(self.positive_indptr, self.positive_scores, self.rules.positive_reference)

    def statistics(self) -> Statistics:
        """Counts, moments and quantiles of positive scores, negative scores and their difference."""
        difference = np.repeat(self.reference(), np.diff(self.indptr)) - self.scores
        return Statistics(Column.of(self.positive_scores), Column.of(self.scores), Column.of(difference))

    def summary(self) -> str:
        """A table of scores, what each filter removed, and which rows came out short."""
        rules, lines = self.rules, self.statistics().table()
        examined = int(np.minimum(np.diff(self.candidate_indptr)[self.query], rules.range_max).sum())
        rows = "pairs of a query and a positive" if rules.positive_reference == "each" else "queries"
        lines.append(f"{examined:,} candidates of {len(self):,} {rows}; rejected:")
        for reason, count in self.rejects.items():
            if count:
                name = SAID.get(reason, f"{reason}={getattr(rules, reason, None)}")
                lines.append(f"  {count:>10,} ({count / examined:.2%}) by {name}")
        if not any(self.rejects.values()):
            lines.append("  none")
        missing = rules.num_negatives * len(self) - int(self.indptr[-1])
        if missing:
            lines.append(
                f"{self.short:,} of {len(self):,} rows have fewer than num_negatives={rules.num_negatives}: "
                f"{missing:,} negatives missing ({rules.shortfall}); raise range_max or loosen the filters"
            )
        if self.random is not None:
            lines.append(f"{int(self.random.sum()):,} negatives are random padding")
        lines.append(
            "exact search" if self.recall is None else f"index recall {self.recall:.4f} on a sample of queries"
        )
        return "\n".join(lines)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Histograms of the scores of positives, negatives and rejected candidates; written to `path` if given."""
        known, reference, rejected = self._known(), self.reference(), [np.zeros(0, dtype=np.float32)]
        for at in range(0, len(self), CHUNK):
            window, _ = known.window(self.query[at : at + CHUNK])
            verdict = verdicts(window, reference[at : at + CHUNK], self.rules)
            rejected.append(window.scores[verdict > 1 + REASONS.index("range_min")])  # ranks aside
        scores = {"positives": self.positive_scores, "negatives": self.scores, "rejected": np.concatenate(rejected)}
        limits = {"min_score": self.rules.min_score, "max_score": self.rules.max_score}
        return histograms(scores, limits, path)

    @checked
    def refilter(
        self,
        *,
        num_negatives: Count = UNCHANGED,
        range_min: Rank = UNCHANGED,
        range_max: int = UNCHANGED,
        absolute_margin: Finite | None = UNCHANGED,
        relative_margin: Finite | None = UNCHANGED,
        min_score: Finite | None = UNCHANGED,
        max_score: Finite | None = UNCHANGED,
        positive_reference: Reference = UNCHANGED,
        sampling_strategy: Strategy = UNCHANGED,
        temperature: Positive = UNCHANGED,
        shortfall: Shortfall = UNCHANGED,
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
        chosen = choose(self._known(), rules, self._query_ids, self._corpus_ids)
        arrays = {name: values for name, values in self._arrays.items() if name not in ("log_probs", "random")}
        changed = {"rules": rules._asdict(), "rejects": chosen.rejects.tolist()}
        return MiningResult({**arrays, **chosen.arrays()}, {**self._manifest, **changed})

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
        return export(records(self.rows(), form, lookup, scores, self.rules.num_negatives), out)

    def _known(self) -> Candidates:
        a = self._arrays
        return Candidates(
            0,
            Csr(a["positive_indptr"], a["positives"]),
            a["positive_scores"],
            Csr(a["candidate_indptr"], a["candidates"]),
            a["candidate_scores"],
            a.get("near"),
            Csr(a["pair_indptr"], a["pairs"]) if "pairs" in a else None,
            a.get("others"),
        )
