"""How far the gradient that a method's negatives give is from the exact one of the global loss, inside a run.

    F = mean_a −β s_a⁺ + log mean_{j ∈ D_a} exp(β s_aj)    a: 2N anchors (row, view); j: both views of all other rows

g = ∇F with respect to the encoder's parameters over all N rows, ĝ the surrogate's gradient for one batch and one draw
of negatives as the sampler stands, over n such draws with mean ḡ, in units of |g|:

    error   √mean|ĝ − g|²           spread  s, s² = Σ|ĝ − ḡ|² / (n − 1)         cosine  mean cosine of ĝ and g
    bias    √max(0, |ḡ − g|² − s²/n), of which the noise s/√n of the mean is taken out

A bias below `noise` = s/√n is not told from none. Both gradients are of two fixed views a row, a drawn row under one of
them at random, in evaluation mode (where batch norm makes no embedding depend on its batch) and float32. The encoder,
the optimiser and the bank are left alone, and every draw begins with the sampler's state of the moment, at a step of
its own. What was drawn is undone: the run goes on as without the measurement. Small data: it takes O(N²) scores.
"""

from __future__ import annotations

from itertools import chain, repeat
from typing import cast

import torch
from negbank.samplers.negatives import EncodedBatch
from negbank.train.losses import surrogate
from negbank.train.trainer import Trainer, expected
from torch import Tensor, nn

from negbank.bank import unit_rows

VIEW_SEED = 20_240_415
ANCHORS, IMAGES = 256, 500
"""Anchors scored, and images encoded, at once."""


def gradient_error(trainer: Trainer, *, draws: int) -> dict[str, float]:
    """error, bias, noise, spread and cosine of `draws` ≥ 2 gradients as the trainer's next steps would take them.

    Raises:
        ValueError: when the exact gradient is zero or not finite, and nothing can be measured in its units.
    """
    state, random = trainer.state_dict(), torch.get_rng_state()
    modes = trainer.embedder.training
    trainer.embedder.eval()
    try:
        views = _views(trainer)
        exact = exact_gradient(trainer.embedder, views, temperature=trainer.temperature)
        found = torch.stack([_estimate(trainer, views, trainer.step_number + draw) for draw in range(draws)])
    finally:
        trainer.embedder.train(modes)
        trainer.load_state_dict(state, None if trainer.refresher is None else trainer.refresher.snapshot)
        torch.set_rng_state(random)
    size = float(exact.norm())
    if not 0 < size < float("inf"):
        raise ValueError(f"the exact gradient's norm is {size}: the encoder has collapsed or diverged")
    return errors(found, exact)


def errors(found: Tensor, exact: Tensor) -> dict[str, float]:
    """The five measures of gradients (n, P) against the exact one (P,)."""
    size, mean, count = exact.norm(), found.mean(0), len(found)
    variance = (found - mean).square().sum() / (count - 1)
    values = {
        "error": (found - exact).square().sum(1).mean().sqrt() / size,
        "bias": ((mean - exact).square().sum() - variance / count).clamp(min=0).sqrt() / size,
        "noise": (variance / count).sqrt() / size,
        "spread": variance.sqrt() / size,
        "cosine": torch.cosine_similarity(found, exact, dim=1).mean(),
    }
    return {name: float(value) for name, value in values.items()}


def exact_gradient(embedder: nn.Module, views: Tensor, *, temperature: float) -> Tensor:
    """∇F (P,) of views (2, N, C, S, S), through the embeddings: ∂F/∂z over all anchors first, then ∂z/∂θ."""
    images, count = views.flatten(0, 1), views.shape[1]
    with torch.no_grad():
        z = torch.cat([embedder(part).float() for part in images.split(IMAGES)])
    z.requires_grad_()
    row = torch.arange(2 * count, device=z.device) % count
    slopes = torch.zeros_like(z)
    for part in torch.arange(2 * count, device=z.device).split(ANCHORS):
        positive = (z[part] * z[(part + count) % (2 * count)]).sum(1) / temperature
        logits = (z[part] @ z.T / temperature).masked_fill(row[part, None] == row, -torch.inf)
        loss = (logits.logsumexp(1) - positive).sum() / (2 * count)
        slopes += torch.autograd.grad(loss, z)[0]
    total: Tensor | None = None
    for part, slope in zip(images.split(IMAGES), slopes.split(IMAGES)):
        gradient = _flat((embedder(part).float() * slope).sum(), embedder)
        total = gradient if total is None else total + gradient
    return cast(Tensor, total)


def _estimate(trainer: Trainer, views: Tensor, step: int) -> Tensor:
    """The surrogate's gradient (P,) for the trainer's next batch, as if at `step`; the sampler's state is put back."""
    negatives, before = trainer.negatives, trainer.negatives.state_dict()
    rows = torch.tensor(next(chain.from_iterable(repeat(trainer.batches))), device=trainer.device)
    embeddings = trainer.embedder(views[:, rows].flatten(0, 1)).float()
    queries = unit_rows(embeddings.detach().unflatten(0, (2, -1)).sum(0)) if negatives.fresh_queries else None
    ticket = negatives.draw(rows, step=step, queries=queries)
    drawn = ticket.further
    if len(drawn):
        seen = torch.randint(2, (len(drawn),)).to(views.device)
        embeddings = torch.cat((embeddings, trainer.embedder(views[seen, drawn]).float()))
    keys = None
    if trainer.momentum_encoder is not None:
        with torch.no_grad():
            keys = trainer.momentum_encoder.eval()(views[:, rows].flatten(0, 1)).float()
    batch = EncodedBatch.from_views(rows, embeddings, drawn, keys, expected(trainer.batches, rows))
    loss = surrogate(batch, negatives(batch, ticket)[0], temperature=trainer.temperature)
    gradient = _flat(loss, trainer.embedder)
    negatives.load_state_dict(before)
    return gradient


def _views(trainer: Trainer) -> Tensor:
    """Two fixed views of all rows: (2, N, C, S, S)."""
    generator, every = torch.Generator().manual_seed(VIEW_SEED), torch.arange(len(trainer.images))
    parts = [trainer.images.read(part).to(trainer.device) for part in every.split(IMAGES)]
    return torch.stack([torch.cat([trainer.augment(part, generator=generator) for part in parts]) for _ in range(2)])


def _flat(loss: Tensor, module: nn.Module) -> Tensor:
    parameters = list(module.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found)])
