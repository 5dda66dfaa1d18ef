"""How far the gradient that a method's negatives give is from the exact one of the global loss, inside a run.

    F = mean_a −β s_a⁺ + log mean_{j ∈ D_a} exp(β s_aj)    a: 2N anchors (row, view); j: both views of all other rows;
                                                           of two encoders a: N rows of one, j: of the other; both ways

g = ∇F with respect to the encoder's parameters over all N rows, ĝ the surrogate's gradient for one batch and one draw
of negatives as the sampler stands, over n such draws with mean ḡ, in units of |g|:

    error   √mean|ĝ − g|²           spread  s, s² = Σ|ĝ − ḡ|² / (n − 1)         cosine  mean cosine of ĝ and g
    bias    √max(0, |ḡ − g|² − s²/n), of which the noise s/√n of the mean is taken out

A bias below `noise` = s/√n is not told from none. Both gradients are of fixed views of every row, a drawn row under one
of them at random, in evaluation mode (where batch norm makes no embedding depend on its batch) and float32. The
encoders, the optimiser and the banks are left alone, and every draw begins with the samplers' state of the moment, but
at a step of its own. What was drawn is undone: the run goes on as without it. Small data: it takes O(N²) scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn

from negbank.bounds import Annotated, Count, Ge, checked
from negbank.counter import Counter
from negbank.exclusions import Exclusions
from negbank.train.data.contract import Pairs
from negbank.train.hooks import Hook, Running
from negbank.train.towers import Direction, row_of_views
from negbank.train.trainer import Encoded, Trainer

EVENT = "gradient"
"""Of its rows in metrics.jsonl."""
VIEW_SEED = 20_240_415
ANCHORS, INPUTS = 256, 500
"""Anchors scored, and inputs encoded, at once."""


class GradientError(Hook):
    """The method's gradient against the exact one of the global loss, inside a run.

    Args:
        steps: optimiser steps after which it is measured; small data only: O(N²) scores.
        draws: gradients, each of one batch.
    """

    @checked
    def __init__(self, *, steps: tuple[Count, ...] = (), draws: Annotated[int, Ge(2)] = 32) -> None:
        self._steps, self._draws = frozenset(steps), draws

    def begin(self, run: Running) -> None:
        """Check that the run takes the steps."""
        self._run = run
        late = sorted(step for step in self._steps if step > run.steps)
        if late:
            raise ValueError(f"gradient_error.steps: {late} of run.steps={run.steps} steps; leave them out")

    def after(self, step: int) -> None:
        """Measure if it is one of the steps."""
        if step in self._steps:
            data = self._run.splits.train
            groups = data.groups if isinstance(data, Pairs) else None
            self._run.log(EVENT, gradient_error(self._run.trainer, draws=self._draws, groups=groups))


def gradient_error(trainer: Trainer, *, draws: int, groups: Tensor | None = None) -> dict[str, float]:
    """error, bias, noise, spread and cosine of `draws` ≥ 2 gradients as the trainer's next steps would take them.

    Args:
        trainer: of one tower or two.
        draws: how many.
        groups: (N,) labels of pairs; rows of one group are no negatives of each other.

    Raises:
        ValueError: when the exact gradient is zero or not finite, and nothing can be measured in its units.
    """
    state, snapshots = trainer.state_dict(), trainer.snapshots()
    encoders = [tower.encoder for tower in trainer.towers]
    modules = [*encoders, *(each for each in trainer.slow if each is not None)]
    modes, views = [module.training for module in modules], FixedViews(trainer)
    exclude = Exclusions(len(trainer.towers[0].data), groups=groups).to(trainer.device)
    try:
        for module in modules:
            module.eval()
        exact = exact_gradient(
            encoders, views.blocks, trainer.directions, exclude=exclude, temperature=trainer.temperature
        )
        trainer.batches.load_state_dict(state["batches"])  # of what was read ahead nothing has been used
        batches = chain.from_iterable(repeat(trainer.batches))
        found = torch.stack([_estimate(trainer, views, next(batches), trainer.step_number + i) for i in range(draws)])
    finally:
        for module, mode in zip(modules, modes):
            module.train(mode)
        trainer.load_state_dict(state, snapshots)
    size = float(exact.norm())
    if not 0 < size < float("inf"):
        raise ValueError(f"the exact gradient's norm is {size}: the encoder has collapsed or diverged")
    return errors(found, exact)


class FixedViews:
    """The same views of every row, whenever they are read: as many of each tower's rows as a step takes."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, place = trainer, Counter.of(VIEW_SEED)
        self._seeds = [
            torch.stack([place.at(t, view).seeds(len(tower.data)) for view in range(trainer.views)])
            for t, tower in enumerate(trainer.towers)
        ]

    def read(self, tower: int, rows: Tensor, views: Tensor) -> Any:
        """Inputs of rows (n,) of a tower, each under one of its views (n,)."""
        rows = rows.cpu()
        return self._trainer.towers[tower].data.read(rows, self._seeds[tower][views, rows]).to(self._trainer.device)

    def blocks(self, tower: int) -> Iterator[Any]:
        """All rows of a tower, first views before second ones."""
        count = self._seeds[tower].shape[1]
        for part in torch.arange(self._trainer.views * count).split(INPUTS):
            yield self.read(tower, part % count, part // count)


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


def exact_gradient(
    encoders: Sequence[nn.Module],
    blocks: Callable[[int], Iterator[Any]],
    directions: Sequence[Direction],
    *,
    exclude: Exclusions,
    temperature: float,
) -> Tensor:
    """∇F (P,) by way of the embeddings: ∂F/∂z over all anchors first, then ∂z/∂θ. F is the mean over directions.

    Args:
        encoders: one or two.
        blocks: position of an encoder → inputs of all N rows, once or all first views before all second ones.
        directions: which anchors are contrasted with whose rows.
        exclude: D_i, of N rows.
        temperature: τ.
    """
    with torch.no_grad():
        z = [torch.cat([encoder(part).float() for part in blocks(t)]) for t, encoder in enumerate(encoders)]
    for each in z:
        each.requires_grad_()
    slopes, count = [torch.zeros_like(each) for each in z], exclude.num_rows
    for way in directions:
        anchors, others = z[way.anchors], z[way.keys]
        rows = torch.arange(len(anchors), device=anchors.device) % count
        for part in torch.arange(len(anchors), device=anchors.device).split(ANCHORS):
            positive = (anchors[part] * others[(part + count) % len(anchors)]).sum(1) / temperature
            allowed = exclude.allowed(rows[part], rows.expand(len(part), -1))
            logits = (anchors[part] @ others.T / temperature).masked_fill(~allowed, -torch.inf)
            loss = (logits.logsumexp(1) - positive).sum() / (len(anchors) * len(directions))
            for slope, more in zip(slopes, torch.autograd.grad(loss, z, allow_unused=True)):
                slope += 0 if more is None else more
    total = torch.zeros((), device=z[0].device)
    for t, encoder in enumerate(encoders):
        end = 0
        for part in blocks(t):
            found = encoder(part).float()
            start, end = end, end + len(found)
            total = total + _gradient((found * slopes[t][start:end]).sum(), encoders)
    return total


def _estimate(trainer: Trainer, views: FixedViews, batch: list[int], step: int) -> Tensor:
    """The surrogate's gradient (P,) for a batch and the draws of a step, of which the samplers keep nothing."""
    rows, encoders = torch.tensor(batch, device=trainer.device), [tower.encoder for tower in trainer.towers]
    every = (rows.repeat(trainer.views), torch.arange(trainer.views).repeat_interleave(len(rows)))
    embeddings = [encoder(views.read(t, *every)).float() for t, encoder in enumerate(encoders)]
    with torch.no_grad():
        keys = [None if slow is None else slow(views.read(t, *every)).float() for t, slow in enumerate(trainer.slow)]
    tickets = []
    for way in trainer.directions:
        tower, queries = trainer.towers[way.anchors], None
        if tower.negatives.fresh_queries:
            queries = row_of_views(embeddings[way.anchors], len(rows), trainer.views)
        elif way.anchors != way.keys:
            queries = tower.bank.read(rows)
        tickets.append(tower.negatives.draw(rows, step=step, queries=queries))
        if len(further := tickets[-1].further):
            seen = torch.randint(
                trainer.views, further.shape, generator=Counter.of(VIEW_SEED).at("seen", step).generator()
            )
            drawn = encoders[way.keys](views.read(way.keys, further, seen)).float()
            embeddings[way.keys] = torch.cat((embeddings[way.keys], drawn))
    losses, *_ = trainer.contrast(rows, Encoded(embeddings, keys, tickets))
    return _gradient(torch.stack(losses).mean(), encoders)


def _gradient(loss: Tensor, encoders: Sequence[nn.Module]) -> Tensor:
    """The gradient (P,) of a loss in all parameters, those that two encoders share once."""
    parameters = list(dict.fromkeys(p for encoder in encoders for p in encoder.parameters()))
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found)])
