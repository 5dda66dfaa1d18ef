"""negbank in a training loop of your own: EMC² chains with index proposals, in plain PyTorch.

python examples/plain_pytorch_loop.py [steps]
"""

import functools
import itertools
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

from negbank import EmbeddingBank, Refresher
from negbank.proposals import Nearest
from negbank.samplers.batches import UniformBatches
from negbank.samplers.negatives import Emc2, EncodedBatch
from negbank.train.losses import info_nce, surrogate

TEMPERATURE = 0.2


def main(steps: int) -> float:
    """Train on scikit-learn digits under pixel noise; the last mini-batch loss."""
    images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=1e-3)

    def embed(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(encoder(x), dim=1)

    def view(x: torch.Tensor) -> torch.Tensor:
        return x + 0.3 * torch.randn(x.shape, generator=generator)

    bank = EmbeddingBank(len(images), 64)
    refresher = Refresher(bank, every=50)  # an index over the rows as they were trained, rebuilt every 50 steps
    nearest = functools.partial(Nearest, k=32, temperature=TEMPERATURE, floor=0.3)
    negatives = Emc2(len(images), temperature=TEMPERATURE, proposals="both", proposal=nearest)
    loader = torch.utils.data.DataLoader(range(len(images)), batch_sampler=UniformBatches(len(images), 32))
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for step, rows in enumerate(itertools.islice(epochs, steps), start=1):
        drawn = (ticket := negatives.draw(rows, step=step)).further  # index proposals, and where the chains stand
        z = embed(view(images[torch.cat((rows, rows, drawn))]))  # all in one forward pass
        found, info = negatives(batch := EncodedBatch.from_views(rows, z, drawn), ticket)
        optimiser.zero_grad()
        surrogate(batch, found, temperature=TEMPERATURE).backward()
        optimiser.step()
        found.commit()  # the chains move on, once the step is taken
        bank.write(torch.cat((rows, drawn)), torch.cat((z[: len(rows)], z[2 * len(rows) :])), step=step)
        if refresher.step(step):
            negatives.update(refresher.snapshot)
            print(f"step {step}: " + ", ".join(f"{name} {value:.2f}" for name, value in info.items()))
    return float(info_nce(batch, temperature=TEMPERATURE))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
