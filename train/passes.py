"""Forward passes of one step: dropout by counter, and gradient caching where a step is larger than memory.

Gradient caching (Gao et al. 2021, arXiv:2101.06983): with z = f_θ(x) of all inputs x of a step and a loss L(z),

    ∂L/∂θ = Σ_p (∂L/∂z_p)ᵀ ∂z_p/∂θ

so the pieces p are embedded without a graph, L is taken at the embeddings, and each piece is run again with a graph
against its ∂L/∂z_p: the memory of one piece, the gradient of all, at one more forward pass. A loss whose parts are
accumulated piece by piece is another one: there a row only meets its own piece. The second run must be the first one
over again: dropout is seeded by (step, tower, piece) for both. Batch statistics would be a piece's, and are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from negbank.counter import Counter
from negbank.train.data.contract import Inputs

Autocast = Callable[[], AbstractContextManager[Any]]


class Passes:
    """The passes of one step, and what is left to do for their gradient.

    Args:
        place: of the step's random numbers, for layers such as dropout.
        autocast: the precision of forward passes.
        device: where the encoders are.
        cached: whether pieces are embedded one by one, and run again for the gradient.
    """

    def __init__(self, place: Counter, *, autocast: Autocast, device: torch.device, cached: bool) -> None:
        self._place, self._autocast, self._device, self._cached = place, autocast, device, cached
        self._left: list[tuple[nn.Module, Inputs, Counter, Tensor, slice]] = []

    def __call__(self, encoder: nn.Module, pieces: Sequence[Inputs], *, name: str) -> Tensor:
        """Embeddings (n, D) of all pieces of inputs, in order, in float32 or wider, with gradient.

        Args:
            name: tells this pass from the step's others.
        """
        encoder.train()
        if not self._cached:
            (whole,) = pieces
            return self._run(encoder, whole, self._place.at(name, 0))
        places = [self._place.at(name, piece) for piece in range(len(pieces))]
        with torch.no_grad():
            parts = [self._run(encoder, inputs, place) for inputs, place in zip(pieces, places)]
        embeddings = torch.cat(parts).requires_grad_()
        end = 0
        for inputs, place, part in zip(pieces, places, parts):
            start, end = end, end + len(part)
            self._left.append((encoder, inputs, place, embeddings, slice(start, end)))
        return embeddings

    @torch.no_grad()
    def keys(self, encoder: nn.Module, pieces: Sequence[Inputs], *, name: str) -> Tensor:
        """The same without gradient, by a momentum encoder."""
        encoder.train()
        return torch.cat([self._run(encoder, x, self._place.at(name, i)) for i, x in enumerate(pieces)])

    def backward(self, loss: Tensor) -> None:
        """The gradient of a loss of the embeddings, in the parameters of all encoders that made them."""
        loss.backward()
        for encoder, inputs, place, embeddings, part in self._left:
            if embeddings.grad is not None:
                self._run(encoder, inputs, place).backward(embeddings.grad[part])

    def _run(self, encoder: nn.Module, inputs: Inputs, place: Counter) -> Tensor:
        with seeded(place, self._device), self._autocast():
            embeddings: Tensor = encoder(inputs.to(self._device, non_blocking=True))
        return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))


@contextmanager
def seeded(place: Counter, device: torch.device) -> Iterator[None]:
    """Torch's own random numbers begin at a place inside, and go on outside as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(place.key)  # torch.manual_seed keeps a note for every kind of device
        if device.type == "cuda":
            torch.cuda.manual_seed(place.key)
        yield


def has_batch_norm(encoder: nn.Module) -> bool:
    """Whether an embedding depends on the others of its pass."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules())
