"""ProSampler's graph and walks beside a literal reading of the published code.

    python benchmarks/batches_walk.py [--rows 100000] [--dim 128] [--batch-size 256] [--repeats 5]

Rows around 400 centres that lie around 20 others; M = 1000 candidates, K = 100 neighbours, α = 0.2. Graph: candidates
shared by a block of rows, beside each row gathering its own in blocks of 256 rows. Walks: all batches of an epoch in
one plan, beside a Python loop over `random.choice`, `torch.rand(1)` and sets of all rows not walked yet. CPU seconds
of one thread; medians, taken in turn. Cosine: mean within a batch, in the first, the middle and the last tenth of an
epoch.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from negbank import Snapshot
from negbank.index import ExactIndex
from negbank.samplers.batches import Knn, ProSampler
from negbank.samplers.batches.graph import candidate_graph

CANDIDATES, NEIGHBORS, ALPHA = 1000, 100, 0.2


def clustered(rows: int, dim: int) -> Tensor:
    """Unit rows (N, D)."""
    generator = torch.Generator().manual_seed(0)
    coarse, fine = torch.randn(20, dim, generator=generator), torch.randn(400, dim, generator=generator)
    label = torch.randint(400, (rows,), generator=generator)
    noise = torch.randn(rows, dim, generator=generator)
    return torch.nn.functional.normalize(coarse[label % 20] + fine[label] + noise, dim=1)


def gathered(vectors: Tensor, block: int = 256) -> Tensor:
    """As published: each row gathers M candidates of its own, with replacement; the K most similar (N, K)."""
    neighbors = []
    for part in torch.arange(len(vectors)).split(block):
        ids = torch.randint(0, len(vectors), (len(part), CANDIDATES))
        scores = (vectors[part][:, None, :] @ vectors[ids].mT).squeeze(1)
        neighbors.append(ids.gather(1, scores.topk(NEIGHBORS, dim=1).indices))
    return torch.cat(neighbors)


def published(neighbors: Tensor, batch_size: int, count: int) -> list[list[int]]:
    """Overlapping walks with restart as the published loop has them."""
    adjacency, batches, walked = neighbors.numpy(), [], set[int]()
    for _ in range(count):
        path = [random.choice(list(set(range(len(adjacency))) - walked))]
        batch = {path[0]}
        while len(batch) < batch_size:
            nodes = adjacency[path[-1]].tolist()
            if torch.rand(1).item() < ALPHA:
                path.append(path[0])
            else:
                path.append(random.choice(nodes))
                batch.add(path[-1])
        walked |= batch
        batches.append(list(batch))
    return batches


def timed(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 100_000), ("dim", 128), ("batch-size", 256), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    rows, size, generator = options.rows, options.batch_size, torch.Generator().manual_seed(0)
    vectors = clustered(rows, options.dim)
    bank = Snapshot(vectors, ExactIndex(vectors), rows=None, positives=None, step=0, version=0)

    shared = [
        timed(lambda: candidate_graph(bank, CANDIDATES, NEIGHBORS, generator=generator))
        for _ in range(options.repeats + 1)
    ][1:]
    tenth = vectors[torch.randperm(rows)[: rows // 10]]
    own = [10 * timed(lambda: gathered(tenth)) for _ in range(2)]
    print("| graph | seconds | ratio |\n|---|---|---|")
    print(f"| candidates shared | {statistics.median(shared):.2f} | 1 |")
    ratio = statistics.median(own) / statistics.median(shared)
    print(f"| each row's own (a tenth of the rows, times 10) | {statistics.median(own):.1f} | {ratio:.0f} |\n")

    settings = {"neighbors": NEIGHBORS, "restart": ALPHA}
    samplers = {
        "ProSampler, each row once": ProSampler(rows, size, candidates=CANDIDATES, **settings),
        "ProSampler, overlapping": ProSampler(rows, size, candidates=CANDIDATES, cover="walk", **settings),
        "Knn on the same graph": Knn(rows, size, neighbors=NEIGHBORS),
    }
    graph = candidate_graph(bank, CANDIDATES, NEIGHBORS, generator=generator)
    count = rows // size
    few = min(count, 20)
    every = torch.arange(rows)
    rates: dict[str, list[float]] = {name: [] for name in (*samplers, "published loop, overlapping")}
    cosines = {}
    for sampler in samplers.values():
        sampler._graph = graph
        sampler.plan(every[: count * size], count, bank, generator)
    for _ in range(options.repeats):
        for name, sampler in samplers.items():
            started = time.process_time()
            planned = sampler.plan(every[: count * size], count, bank, generator)
            rates[name].append(count / (time.process_time() - started))
            z = vectors[planned]
            mean = (z.sum(1).square().sum(-1) - size) / (size * (size - 1))
            cosines[name] = [float(part.mean()) for part in mean.tensor_split(10)]
        started = time.process_time()
        published(graph.neighbors, size, few)
        rates["published loop, overlapping"].append(few / (time.process_time() - started))
    loop = statistics.median(rates["published loop, overlapping"])
    print("| walks | batches/s | ratio | cosine |\n|---|---|---|---|")
    for name, values in rates.items():
        found = cosines.get(name)
        shown = "" if found is None else " ".join(f"{found[i]:.3f}" for i in (0, 5, 9))
        print(f"| {name} | {statistics.median(values):.0f} | {statistics.median(values) / loop:.0f} | {shown} |")


if __name__ == "__main__":
    main()
