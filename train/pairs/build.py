"""A pair trainer from a configuration: its batches, negatives, loss, index, refresh, optim and run sections."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from negbank.samplers.batches import BatchSampler
from negbank.train import optim
from negbank.train.build import (
    Task,
    build_batches,
    build_negatives,
    build_optimiser,
    choose_device,
    choose_precision,
    generator,
    require_factory,
    wants_snapshot,
)
from negbank.train.options import Config
from negbank.train.pairs.trainer import NAMES, PairTrainer, Read, Side, encode
from torch import Tensor, nn

from negbank import EmbeddingBank, Exclusions, Refresher
from negbank.counter import Counter


def build_pairs(
    config: Config,
    num_rows: int,
    left: tuple[nn.Module, Read],
    right: tuple[nn.Module, Read],
    *,
    exclude: Exclusions | None = None,
) -> PairTrainer:
    """The trainer of two encoders of your own.

    Args:
        config: checked by `negbank.train.config.parse`; data, encoder, eval and ablation are of no meaning here.
        num_rows: N pairs.
        left, right: an encoder, inputs → unit embeddings (n, D), and how its inputs are read, see `Read`.
        exclude: rows that are no negatives of each other, such as captions of one image: `Exclusions(N, groups=...)`.

    Raises:
        ValueError: for a batch larger than the data set, a proposal that adapts, or as `PairTrainer`.
    """
    if getattr(getattr(config.negatives, "proposal", None), "adapt", False):
        raise ValueError(
            "negatives.proposal.adapt=True: staleness is measured within one bank, and pairs have two; set "
            "temperature and floor instead"
        )
    if not 2 <= config.batches.batch_size <= num_rows:
        raise ValueError(f"batches.batch_size={config.batches.batch_size}: there are {num_rows} pairs; choose from 2..")
    device, seed = choose_device(config.run.device), config.run.seed
    encoders = nn.ModuleList([left[0], right[0]]).to(device)

    def scored(rows: Tensor) -> Tensor:
        trainer.encodings += len(rows)
        return encode(*left, rows)

    batches = build_batches(config, num_rows, scored, exclude)
    steps = config.run.steps or config.run.epochs * len(batches)  # type: ignore[operator]
    if config.optim.warmup >= steps:
        raise ValueError(f"optim.warmup={config.optim.warmup}: the run has only {steps} steps; make it shorter")
    counter = Counter.of(seed).at("negatives")
    sides = [
        _side(config, num_rows, *each, batches, device, counter.at(name), exclude)
        for name, each in zip(NAMES, (left, right))
    ]
    learned = [tensor for side in sides for tensor in side.negatives.learned]
    precision = choose_precision(config.run.precision, device)
    trainer = PairTrainer(
        sides[0],
        sides[1],
        batches=batches,
        optimiser=build_optimiser(config, encoders, learned),
        schedule=functools.partial(optim.cosine_with_warmup, steps=steps, warmup=config.optim.warmup),
        temperature=config.loss.temperature,
        generator=generator(seed, "views"),
        device=device,
        autocast=functools.partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=precision == "bf16"),
    )
    return trainer


def _side(
    config: Config,
    num_rows: int,
    encoder: nn.Module,
    read: Read,
    batches: BatchSampler,
    device: torch.device,
    counter: Counter,
    exclude: Exclusions | None,
) -> Side:
    """One side, its bank still empty."""
    fresh: Callable[[Tensor], Tensor] = functools.partial(encode, encoder, read)
    bank = EmbeddingBank(num_rows, fresh(torch.arange(1)).shape[1], device=device)
    negatives = build_negatives(config, Task(num_rows, device, counter, lambda: None, views=1, exclude=exclude))
    if not wants_snapshot(config, batches, negatives):
        return Side(encoder, read, bank, negatives)
    require_factory(config.index.factory, bank.vectors.shape[1])
    refresher = Refresher(
        bank,
        every=config.refresh.every * (len(batches) if config.refresh.unit == "epochs" else 1),
        mode=config.refresh.mode,
        encode=fresh,
        max_drift=config.refresh.max_drift,
        check_every=config.refresh.check_every,
        probe_rows=config.refresh.probe_rows,
        factory=config.index.factory,
        target_recall=config.index.target_recall,
        seed=config.run.seed,
    )
    return Side(encoder, read, bank, negatives, refresher)
