"""The same data set cut into batches by each sampler: docs/batches.png, and how hard the batches are.

    python benchmarks/batches_picture.py [--out docs/batches.png]

scikit-learn digits as in benchmarks/proposals.py (1797 rows, 32-d, unit), B = 64, by t-SNE; six batches of an epoch in
colour. The table: mean cosine of the pairs in a batch, mean loss at τ = 0.1 of a batch whose positives are perfect, and
the share of pairs of one class.
"""

from __future__ import annotations

import argparse

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from proposals import truth
from sklearn.datasets import load_digits
from sklearn.manifold import TSNE

from negbank import Snapshot
from negbank.samplers.batches import Knn, Ordered, ProSampler, Spectral, UniformBatches

SIZE, SHOWN = 64, 6


def measures(batches: list[list[int]], z: torch.Tensor, labels: torch.Tensor) -> tuple[float, float, float]:
    """Mean over batches: pairwise cosine, loss, and false negatives."""
    found = []
    for rows in batches:
        cosines, pairs = z[rows] @ z[rows].T, len(rows) * (len(rows) - 1)
        same = labels[rows][:, None] == labels[rows]
        loss = ((cosines - 1) / 0.1).logsumexp(1).mean()
        found.append([(cosines.sum() - len(rows)) / pairs, loss, (same.sum() - len(rows)) / pairs])
    cosine, loss, false = torch.tensor(found).mean(0).tolist()
    return cosine, loss, false


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", default="docs/batches.png")
    options = arguments.parse_args()
    z, labels = truth().float(), torch.from_numpy(load_digits().target)
    snapshot = Snapshot.build(z)
    flat = TSNE(random_state=0).fit_transform(z.numpy())
    count = len(z)

    samplers = {
        "uniform": UniformBatches(count, SIZE),
        "ordered (5 of 10)": Ordered(count, SIZE, temperature=0.1, pool=10, keep=5),
        "prosampler (M = 500, K = 50)": ProSampler(count, SIZE, candidates=500, neighbors=50),
        "knn": Knn(count, SIZE, neighbors=64),
        "spectral, groups of 10": Spectral(count, SIZE, temperature=0.1, group=10),
        "spectral, global": Spectral(count, SIZE, temperature=0.1, scope="global"),
    }
    figure, axes = plt.subplots(2, 3, figsize=(12, 8), layout="constrained")
    print("| batches | cosine | loss | one class |\n|---|---|---|---|")
    for (name, sampler), panel in zip(samplers.items(), axes.flat):
        sampler.update(snapshot)
        batches = list(sampler)
        cosine, loss, false = measures(batches, z, labels)
        print(f"| {name} | {cosine:.3f} | {loss:.2f} | {false:.2f} |")
        panel.scatter(flat[:, 0], flat[:, 1], s=4, color="0.85")
        for batch in batches[:SHOWN]:
            panel.scatter(flat[batch, 0], flat[batch, 1], s=9)
        panel.set(title=f"{name}: loss {loss:.2f}", xticks=[], yticks=[])
    figure.suptitle(f"Digits, B = {SIZE}: the first {SHOWN} batches of an epoch, one colour each")
    figure.savefig(options.out, dpi=100)


if __name__ == "__main__":
    main()
