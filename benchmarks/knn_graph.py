"""The kNN graph of a bank, exact and by cell join, beside its peers.

    python benchmarks/knn_graph.py [--rows 100000] [--dim 128] [--k 100] [--spread 0.5] [--clusters 1000] [--runs 3]
                                   [--methods exact join ivf ...]

Unit rows (N, D) around `clusters` Gaussian centres: centre + spread · noise, so two rows of a cluster have a cosine of
1 / (1 + spread²): 0.8 for 0.5, and 0.61 for 0.8, where clusters are weak. Recall@k of 1000 rows against all products
in float64. Seconds to build and search, with k-means, tuning and measuring for the cell join; the peers' tuning is not
counted: the smallest nprobe or ef that reaches the target recall, and of several builds the one that is fastest with
it. Medians of runs taken in turn; CPU seconds are of all threads; peak: memory with the result (Linux).

`pip install "negbank[bench]"` for hnswlib. A million rows: --rows 1000000 --methods join --runs 1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from needs import need
from torch import Tensor

import faiss  # isort: skip  (after torch)

from negbank import ExactIndex
from negbank.index.cell_join import cell_join
from negbank.index.exact_graph import exact_graph

CHECKED = 1000
"""Rows on which recall is measured."""


class Method(NamedTuple):
    """A name with its settings, and what gives the ids (N, k) of the neighbours."""

    name: str
    graph: Callable[[], Tensor]


class Setting(NamedTuple):
    """What all methods are given. truth (CHECKED, k): the neighbours of the rows `checked`."""

    x: Tensor
    k: int
    target: float
    threads: int
    checked: Tensor
    truth: Tensor

    def recall(self, found: Tensor) -> float:
        """Mean share of the truth that is in found (CHECKED, ≥ k)."""
        parts = zip(found.split(50), self.truth.split(50))
        hits = sum(int((a[:, :, None] == b[:, None, :]).sum()) for a, b in parts)
        return hits / self.truth.numel()


def rows(count: int, dim: int, clusters: int, spread: float) -> Tensor:
    """Unit rows (N, D)."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(clusters, dim, generator=generator)
    x = centres[torch.randint(clusters, (count,), generator=generator)]
    return torch.nn.functional.normalize(x.add_(torch.randn(count, dim, generator=generator), alpha=spread), dim=1)


def neighbours(x: Tensor, some: Tensor, k: int) -> Tensor:
    """The k nearest others of some rows (s,), from all products in float64."""
    parts = []
    for part in some.split(50):
        scores = torch.cat([x[part].double() @ block.double().T for block in x.split(100_000)], 1)
        scores[torch.arange(len(part)), part] = -torch.inf
        parts.append(scores.topk(k, dim=1).indices)
    return torch.cat(parts)


def others(ids: Tensor, k: int) -> Tensor:
    """The first k of (N, k + 1) found ids that are not the row itself."""
    hit = ids == torch.arange(len(ids))[:, None]
    hit[:, -1] |= ~hit.any(1)
    return ids[~hit].view(len(ids), k)


def exact(s: Setting) -> Method:
    return Method("**exact**", lambda: exact_graph(s.x, None, s.k).ids)


def exact_float32(s: Setting) -> Method:
    return Method("**exact**, float32 products", lambda: exact_graph(s.x, None, s.k, dtype=torch.float32).ids)


def join(s: Setting) -> Method:
    def graph() -> Tensor:
        found = cell_join(s.x, None, s.k, target_recall=s.target)
        print(f"  {found.report}")
        return found.ids

    return Method("**cell join**", graph)


def search(s: Setting) -> Method:
    index = ExactIndex(s.x)
    return Method("**exact search** for all rows", lambda: others(index.search(s.x, s.k + 1).ids, s.k))


def plain(s: Setting) -> Method:
    def graph() -> Tensor:
        return others(torch.cat([(part @ s.x.T).topk(s.k + 1, dim=1).indices for part in s.x.split(1024)]), s.k)

    return Method("torch, matmul + topk by 1024 rows", graph)


def flat(s: Setting) -> Method:
    def graph() -> Tensor:
        _, ids = faiss.knn(s.x.numpy(), s.x.numpy(), s.k + 1, metric=faiss.METRIC_INNER_PRODUCT)
        return others(torch.from_numpy(ids), s.k)

    return Method("Faiss IndexFlatIP", graph)


def smallest(reaches: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest effort in low..high that reaches the target, found by doubling and bisection."""
    top = low
    while not reaches(top):
        if top >= high:
            return None
        low, top = top + 1, min(2 * top, high)
    while low < top:
        middle = (low + top) // 2
        low, top = (low, middle) if reaches(middle) else (middle + 1, top)
    return top


def ivf(s: Setting) -> Method:
    x = s.x.numpy()

    def build(lists: int, rounds: int) -> Any:
        index = faiss.index_factory(x.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
        index.cp.niter = rounds
        index.train(x)
        index.add(x)
        return index

    def run(lists: int, rounds: int, probes: int) -> Tensor:
        index = build(lists, rounds)
        index.nprobe = probes
        return others(torch.from_numpy(index.search(x, s.k + 1)[1]), s.k)

    best: tuple[float, int, int, int] | None = None
    for factor in (1, 2, 4):
        for rounds in (4, 10):
            lists = round(factor * len(x) ** 0.5)
            started = time.perf_counter()
            index = build(lists, rounds)
            seconds = time.perf_counter() - started

            def reaches(probes: int, index: Any = index) -> bool:
                index.nprobe = probes
                ids = torch.from_numpy(index.search(x[s.checked.numpy()], s.k + 1)[1])
                return s.recall(ids) >= s.target

            probes = smallest(reaches, 1, lists)
            started = time.perf_counter()
            index.search(x[s.checked.numpy()], s.k + 1)
            seconds += (time.perf_counter() - started) * len(x) / len(s.checked)
            if probes is not None and (best is None or seconds < best[0]):
                best = (seconds, lists, rounds, probes)
    assert best is not None
    _, lists, rounds, probes = best
    name = f"Faiss IVF{lists}, {rounds} rounds of k-means, nprobe {probes}"
    return Method(name, lambda: run(lists, rounds, probes))


def hnsw(s: Setting) -> Method:
    import hnswlib

    x = s.x.numpy()

    def build(links: int, effort: int) -> Any:
        index = hnswlib.Index(space="ip", dim=x.shape[1])
        index.init_index(max_elements=len(x), ef_construction=effort, M=links, random_seed=0)
        index.set_num_threads(s.threads)
        index.add_items(x)
        return index

    def found(index: Any, queries: Any, ef: int) -> Tensor:
        index.set_ef(ef)
        return torch.from_numpy(index.knn_query(queries, s.k + 1)[0].astype("int64"))

    best: tuple[float, int, int, int] | None = None
    for links, effort in ((8, 40), (16, 40), (16, 100), (32, 100)):
        started = time.perf_counter()
        index = build(links, effort)
        seconds = time.perf_counter() - started

        def reaches(ef: int, index: Any = index) -> bool:
            return s.recall(found(index, x[s.checked.numpy()], ef)) >= s.target

        ef = smallest(reaches, s.k + 1, 16 * s.k)
        if ef is None:
            continue
        started = time.perf_counter()
        found(index, x[s.checked.numpy()], ef)
        seconds += (time.perf_counter() - started) * len(x) / len(s.checked)
        if best is None or seconds < best[0]:
            best = (seconds, links, effort, ef)
    assert best is not None, "hnswlib does not reach the target recall"
    _, links, effort, ef = best
    name = f"hnswlib, M {links}, ef {effort} to build, {ef} to search"
    return Method(name, lambda: others(found(build(links, effort), x, ef), s.k))


METHODS = {
    "exact": exact,
    "exact32": exact_float32,
    "join": join,
    "search": search,
    "plain": plain,
    "flat": flat,
    "ivf": ivf,
    "hnsw": hnsw,
}


def held(name: str) -> float:
    """Resident memory in GB, now (VmRSS) or at most (VmHWM); 0 where the system does not say."""
    if not os.path.exists("/proc/self/status"):
        return 0.0
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1e6 for line in file if line.startswith(name))


def measured(method: Method) -> tuple[Tensor, float, float, float]:
    """The ids, seconds, CPU seconds, and the peak of memory in GB above what was held before."""
    before = held("VmRSS")
    if before:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    started, busy = time.perf_counter(), time.process_time()
    ids = method.graph()
    return ids, time.perf_counter() - started, time.process_time() - busy, held("VmHWM") - before


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--dim", type=int, default=128)
    arguments.add_argument("--k", type=int, default=100)
    arguments.add_argument("--clusters", type=int, default=1000)
    arguments.add_argument("--spread", type=float, default=0.5)
    arguments.add_argument("--target", type=float, default=0.99)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = arguments.parse_args()
    if "hnsw" in options.methods:
        need("bench", "hnswlib")
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    x = rows(options.rows, options.dim, options.clusters, options.spread)
    checked = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:CHECKED]
    truth = neighbours(x, checked, options.k)
    setting = Setting(x, options.k, options.target, options.threads, checked, truth)
    for dtype in (torch.bfloat16, torch.float32):
        exact_graph(x[:3000], None, 10, dtype=dtype)  # compiles
    methods = [METHODS[name](setting) for name in options.methods]
    taken: dict[str, list[tuple[float, float, float, float]]] = {method.name: [] for method in methods}
    for _ in range(options.runs):
        for method in methods:
            ids, seconds, busy, peak = measured(method)
            taken[method.name].append((seconds, busy, setting.recall(ids[checked]), peak))
            del ids
    medians = {name: [statistics.median(column) for column in zip(*runs)] for name, runs in taken.items()}
    first = next(iter(medians.values()))[0]
    print(
        f"\n{options.rows} × {options.dim}, k = {options.k}, {options.clusters} clusters, spread {options.spread}, "
        f"{options.threads} threads, load average {os.getloadavg()[0]:.1f}\n"
    )
    print("| method | seconds | CPU seconds | recall | peak, GB | to the first |\n|---|---|---|---|---|---|")
    for name, (seconds, busy, recall, peak) in medians.items():
        print(f"| {name} | {seconds:.2f} | {busy:.2f} | {recall:.4f} | {peak:.2f} | {seconds / first:.1f} |")


if __name__ == "__main__":
    main()
