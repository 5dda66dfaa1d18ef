"""How fast chains with each proposal mix, and what its draws are worth, exactly: on scikit-learn digits.

    python benchmarks/proposals.py [--cosine 0.97] [--query bank|fresh] [--anchors 120] [--adapt]

1797 rows, the 32 leading principal components scaled by the square roots of their singular values, normalised;
β = 1/0.07. The bank is the truth moved by Gaussian noise to the given mean cosine. Columns R: exact total variation to
π after R proposals from a uniform start (samplers/mixing.py), mean over anchors. ESS: effective draws a draw. sup: the
median over anchors of sup π/q. `adapt`: with adapt=True, fitted to a probe of 64 other rows.
`query`: the bank's row, known before the forward pass, or the fresh embedding.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits

from negbank import Snapshot
from negbank.proposals import Anchors, Cells, HeadTail, Mixture, Nearest, Proposal, StaleSoftmax, Uniform, measure
from negbank.samplers.mixing import effective_sample_size, supremum, total_variation
from negbank.train.studies.ablation.sources import moved

BETA, BUDGETS = 1 / 0.07, (1, 8, 16, 64)


def truth() -> torch.Tensor:
    """Digits as unit rows (1797, 32), float64."""
    pixels = torch.from_numpy(load_digits().data)
    u, s, _ = torch.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    return torch.nn.functional.normalize(u[:, :32] * s[:32].sqrt(), dim=1)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cosine", type=float, default=0.97)
    arguments.add_argument("--query", choices=("bank", "fresh"), default="bank")
    arguments.add_argument("--anchors", type=int, default=120)
    arguments.add_argument("--adapt", action="store_true")
    options = arguments.parse_args()
    z = truth()
    snapshot = Snapshot.build(moved(z, options.cosine, seed=1), factory="exact")
    count = len(z)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    rows, probed = order[: options.anchors], order[options.anchors : options.anchors + 64]
    anchors = Anchors(rows, snapshot.vectors[rows] if options.query == "bank" else z[rows].float())
    others = torch.arange(count) != rows[:, None]
    target = torch.where(others, BETA * z[rows] @ z.T, -torch.inf)
    start = others.double() / (count - 1)
    proposals: dict[str, Proposal] = {
        "Uniform": Uniform(snapshot),
        "Nearest k=50 floor .5": Nearest(snapshot, 50, floor=0.5),
        "Nearest (k=64 floor .3)": Nearest(snapshot),
        "Cells": Cells(snapshot),
        "HeadTail k=50 floor .1": HeadTail(snapshot, 50),
        "HeadTail (k=64 floor .1)": HeadTail(snapshot),
        "StaleSoftmax": StaleSoftmax(snapshot),
        "½ HeadTail + ½ Cells": Mixture([HeadTail(snapshot), Cells(snapshot)], [0.5, 0.5]),
    }
    if options.adapt:
        generator = torch.Generator().manual_seed(5)
        probe = measure(snapshot, probed, lambda r: z[r], fresh_queries=options.query == "fresh", generator=generator)
        proposals = {kind.__name__: kind(snapshot, adapt=True, probe=probe) for kind in (Nearest, HeadTail, Cells)}
    print(f"| proposal | {' | '.join(f'R={r}' for r in BUDGETS)} | ESS | sup |\n|---|{'---|' * (len(BUDGETS) + 2)}")
    for name, proposal in proposals.items():
        log_q = proposal(anchors).log_prob(torch.arange(count).expand(len(rows), -1))
        distance = total_variation(target, log_q, start, max(BUDGETS)).mean(1)
        cells = " | ".join(f"{float(distance[r]):.4f}" for r in BUDGETS)
        ess, sup = effective_sample_size(target, log_q).mean(), supremum(target, log_q).median()
        print(f"| {name} | {cells} | {float(ess):.3f} | {float(sup):.1f} |")


if __name__ == "__main__":
    main()
