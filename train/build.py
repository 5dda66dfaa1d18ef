"""The composition root: a configuration's names become objects here, and configuration goes no further.

A new method is one file, one dataclass in `train/options.py`, and one line here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from negbank.samplers import batches as batch_samplers
from negbank.samplers.batches import BatchSampler
from negbank.samplers.negatives import (
    Dcl,
    Emc2,
    Hardest,
    Hcl,
    Importance,
    InBatch,
    ISogClr,
    Moco,
    NegativeCache,
    NegativeSampler,
    SogClr,
)
from negbank.train import optim
from negbank.train.data import sources
from negbank.train.data.augment import PRESETS, Augment, Plain
from negbank.train.data.images import ImageSubset, Splits
from negbank.train.encoders import ENCODERS, Embedder, Projector
from negbank.train.evaluate import Evaluator
from negbank.train.inference import Inference
from negbank.train.options import Config
from negbank.train.trainer import Trainer
from torch import Tensor, nn

from negbank import EmbeddingBank, Exclusions, Refresher, Snapshot
from negbank.counter import Counter
from negbank.index import empty_index
from negbank.proposals import Cells, HeadTail, Nearest, Probe, Proposal, StaleSoftmax, Uniform, measure


@dataclass
class Assembly:
    """Everything a run is made of."""

    config: Config
    splits: Splits
    trainer: Trainer
    evaluator: Evaluator
    inference: Inference
    steps: int
    device: torch.device
    precision: str


def build(config: Config, *, embedder: nn.Module | None = None, splits: Splits | None = None) -> Assembly:
    """Load the data and make every object of a run.

    Args:
        config: checked by `negbank.train.config.load`.
        embedder: your own module instead of `config.encoder`: images → unit embeddings, with a `backbone`.
        splits: your own images instead of `config.data`.

    Raises:
        ValueError: for what only the data can tell: a batch or a k larger than the data set, a name with no data; and
            for an index or labels that cannot be read.
    """
    device = choose_device(config.run.device)
    precision = choose_precision(config.run.precision, device)
    splits = load_data(config) if splits is None else splits
    count, seed = len(splits.train), config.run.seed
    if not 2 <= config.batches.batch_size <= count:
        raise ValueError(
            f"batches.batch_size={config.batches.batch_size}: data.type={config.data.type} has {count} training rows; "
            f"choose at most that"
        )
    ablated = config.ablation.proposals if config.ablation.every is not None else []
    named = {f"ablation.proposals[{i}]": each for i, each in enumerate(ablated)}
    for section in ("negatives", "batches"):
        named[f"{section}.proposal"] = getattr(getattr(config, section), "proposal", None)
    for path, each in named.items():
        k = getattr(each, "k", 1)
        if k >= count:
            raise ValueError(f"{path}.k={k}: there are only {count - 1} other training rows; lower k")
    augment, plain = views(config, splits)
    if embedder is None:
        embedder = build_embedder(config, channels=splits.train.shape[0])
    embedder = embedder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    autocast = functools.partial(
        torch.autocast, device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=True
    )
    forward: Any = torch.compile(embedder, dynamic=True) if config.run.compile else embedder
    inference = Inference(embedder, plain, device=device, autocast=autocast)
    width = inference.embeddings(splits.train, torch.arange(2)).shape[1]
    bank = EmbeddingBank(count, width, device=device)

    def encode(rows: Tensor) -> Tensor:
        trainer.encodings += len(rows)
        return inference.embeddings(splits.train, rows)

    batches = build_batches(config, count, encode)
    refresher = None
    task = Task(
        count, device, Counter.of(seed).at("negatives"), lambda: None if refresher is None else refresher.staleness
    )
    negatives = build_negatives(config, task)
    if wants_snapshot(config, batches, negatives):
        require_factory(config.index.factory, width)
        unit = len(batches) if config.refresh.unit == "epochs" else 1
        refresher = Refresher(
            bank,
            every=config.refresh.every * unit,
            mode=config.refresh.mode,
            encode=functools.partial(inference.embeddings, splits.train),
            max_drift=config.refresh.max_drift,
            measure=staleness_probe(config, count, negatives.fresh_queries),
            check_every=config.refresh.check_every,
            probe_rows=config.refresh.probe_rows,
            factory=config.index.factory,
            target_recall=config.index.target_recall,
            seed=seed,
        )
    steps = config.run.steps or config.run.epochs * len(batches)  # type: ignore[operator]
    if config.optim.warmup >= steps:
        raise ValueError(f"optim.warmup={config.optim.warmup}: the run has only {steps} steps; make it shorter")
    trainer = Trainer(
        forward,
        splits.train,
        augment=augment,
        batches=batches,
        negatives=negatives,
        bank=bank,
        refresher=refresher,
        optimiser=build_optimiser(config, embedder, negatives.learned),
        schedule=functools.partial(optim.cosine_with_warmup, steps=steps, warmup=config.optim.warmup),
        temperature=config.loss.temperature,
        generator=generator(seed, "views"),
        device=device,
        autocast=autocast,
    )
    evaluator = Evaluator(
        inference,
        splits,
        augment,
        temperature=config.loss.temperature,
        knn_k=config.eval.knn_k,
        max_rows=config.eval.max_rows,
        global_rows=config.eval.global_rows,
    )
    return Assembly(config, splits, trainer, evaluator, inference, steps, device, precision)


STREAMS = ("weights", "batches", "views", "negatives")


def generator(seed: int, stream: str) -> torch.Generator:
    """The random stream of one part of a run: independent of how much the others draw."""
    return torch.Generator().manual_seed(seed * len(STREAMS) + STREAMS.index(stream))


def load_data(config: Config) -> Splits:
    """The images that `config.data` names, or `config.data.rows` of the training ones, the same for every run seed.

    Raises:
        ValueError: for more rows than there are.
    """
    data = config.data
    options = {k: v for k, v in vars(data).items() if k in ("root", "size", "memory_gb", "holdout")}
    splits = sources.load(data.type, **options)
    if data.rows is None:
        return splits
    if data.rows > len(splits.train):
        raise ValueError(
            f"data.rows={data.rows}: data.type={data.type} has {len(splits.train)} training rows; lower it"
        )
    chosen = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))[: data.rows].sort().values
    return splits._replace(train=ImageSubset(splits.train, chosen))


def views(config: Config, splits: Splits) -> tuple[Augment, Plain]:
    """The random view and the evaluation transform of `config.data.augment`, normalised alike."""
    channels, size, _ = splits.train.shape
    preset = config.data.augment.preset
    if preset == "auto":
        preset = "digits" if channels == 1 else "small_images" if size <= 96 else "natural"
    chosen = dict(PRESETS[preset])
    for name, value in vars(config.data.augment).items():
        if name != "preset" and value is not None:
            chosen[name] = tuple(value) if isinstance(value, list) else value
    for name in ("mean", "std"):  # a preset for colour on grey images, or the other way round
        if len(chosen[name]) != channels:
            chosen[name] = (sum(chosen[name]) / len(chosen[name]),) * channels
    return Augment(size=size, **chosen), Plain(size=size, mean=chosen["mean"], std=chosen["std"])


def build_embedder(config: Config, *, channels: int) -> Embedder:
    """The encoder and projector of `config.encoder`, initialised from the run's seed alone."""
    options = {k: v for k, v in vars(config.encoder).items() if k not in ("type", "projector")}
    projection = vars(config.encoder.projector)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(config.run.seed, "weights").initial_seed())
        backbone = ENCODERS[config.encoder.type](channels=channels, **options)
        return Embedder(backbone, Projector(backbone.features, **projection))


def build_optimiser(config: Config, module: nn.Module, learned: Sequence[Tensor] = ()) -> torch.optim.Optimizer:
    """The optimiser that `config.optim` names, over all parameters of `module`, and `learned` without weight decay."""
    options = {k: v for k, v in vars(config.optim).items() if k not in ("type", "warmup")}
    optimiser = optim.build(config.optim.type, module, **options)
    if learned:
        optimiser.add_param_group({"params": list(learned), "weight_decay": 0.0})
    return optimiser


def build_batches(
    config: Config, num_rows: int, encode: Callable[[Tensor], Tensor], exclude: Exclusions | None = None
) -> BatchSampler:
    """The batch sampler that `config.batches` names.

    Args:
        encode: rows → fresh embeddings, for one that scores them.
        exclude: rows that may not be drawn for one another, for one that draws; only the row itself by default.
    """
    options = {k: v for k, v in vars(config.batches).items() if k not in ("type", "batch_size", "groups")}
    if options.get("temperature", 1.0) is None:
        options["temperature"] = config.loss.temperature
    if "score" in options:
        options["encode"] = encode
    if "proposal" in options:
        allowed = Exclusions(num_rows) if exclude is None else exclude  # moved to the snapshot's device by the proposal
        options["proposal"] = functools.partial(_proposal, options["proposal"], config, allowed, lambda: None)
    if getattr(config.batches, "groups", None) is not None:
        options["groups"] = labels(config.batches.groups)
    counter = Counter.of(config.run.seed).at("batches")
    return BATCHES[config.batches.type](num_rows, config.batches.batch_size, counter=counter, **options)


BATCHES: dict[str, Callable[..., BatchSampler]] = {
    "uniform": batch_samplers.UniformBatches,
    "knn": batch_samplers.Knn,
    "prosampler": batch_samplers.ProSampler,
    "spectral": batch_samplers.Spectral,
    "ordered": batch_samplers.Ordered,
    "drawn": batch_samplers.Drawn,
}


def labels(path: str) -> Tensor:
    """The integers (N,) of an .npy file.

    Raises:
        ValueError: for a file that is none, or of anything else.
    """
    remedy = "give an .npy file of integer labels (N,), as numpy.save writes it"
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"batches.groups={path}: not readable ({error}); {remedy}") from None
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError(f"batches.groups={path}: an archive of arrays; {remedy}")
    if found.dtype.kind not in "iu":
        raise ValueError(f"batches.groups={path}: holds {found.dtype}; {remedy}")
    return torch.from_numpy(found)


def require_factory(factory: str, width: int) -> None:
    """Raise ValueError for a factory string that Faiss refuses, here and not at the first refresh."""
    if factory not in ("auto", "exact"):
        try:
            empty_index(factory, width)
        except ValueError as error:
            raise ValueError(f"index.{error}") from None


Staleness = Callable[[], Probe | None]
"""The newest probe of the snapshot in use, if one was taken."""


def staleness_probe(
    config: Config, num_rows: int, fresh_queries: bool
) -> Callable[[Snapshot, Callable[[Tensor], Tensor], int], Probe] | None:
    """What the refresher measures for proposals that adapt; None where none does."""
    if not getattr(getattr(config.negatives, "proposal", None), "adapt", False):
        return None
    counter = Counter.of(config.run.seed).at("probe")

    def probe(snapshot: Snapshot, encode: Callable[[Tensor], Tensor], step: int) -> Probe:
        random = counter.at(step).generator()
        every = torch.arange(num_rows, device=snapshot.vectors.device) if snapshot.rows is None else snapshot.rows
        rows = every[torch.randperm(len(every), generator=random)[: config.refresh.probe_rows // 4].to(every.device)]
        return measure(
            snapshot, rows, encode, temperature=config.loss.temperature, draws=2 * config.refresh.probe_rows,
            fresh_queries=fresh_queries, generator=random,
        )  # fmt: skip

    return probe


class Task(NamedTuple):
    """What negatives are for, which their configuration does not say: N rows seen under so many views."""

    num_rows: int
    device: torch.device
    counter: Counter
    staleness: Staleness
    views: int = 2
    exclude: Exclusions | None = None


def build_negatives(config: Config, task: Task) -> NegativeSampler:
    """The negative sampler that `config.negatives` names."""
    return NEGATIVES[config.negatives.type](config, task)


def _in_batch(config: Config, task: Task) -> NegativeSampler:
    return InBatch(temperature=config.loss.temperature, exclude=task.exclude, device=task.device, **_chosen(config))


def _sogclr(config: Config, task: Task) -> NegativeSampler:
    return SogClr(
        task.num_rows, temperature=config.loss.temperature, views=task.views, exclude=task.exclude, device=task.device,
        **_chosen(config),
    )  # fmt: skip


def _isogclr(config: Config, task: Task) -> NegativeSampler:
    return ISogClr(
        task.num_rows, temperature=config.loss.temperature, views=task.views, exclude=task.exclude, device=task.device,
        **_chosen(config),
    )  # fmt: skip


def _dcl(config: Config, task: Task) -> NegativeSampler:
    return Dcl(temperature=config.loss.temperature, exclude=task.exclude, **_chosen(config))


def _hcl(config: Config, task: Task) -> NegativeSampler:
    return Hcl(temperature=config.loss.temperature, exclude=task.exclude, **_chosen(config))


def _moco(config: Config, task: Task) -> NegativeSampler:
    return Moco(
        task.num_rows, temperature=config.loss.temperature, exclude=task.exclude, device=task.device, **_chosen(config)
    )


def _hardest(config: Config, task: Task) -> NegativeSampler:
    return Hardest(
        task.num_rows, temperature=config.loss.temperature, exclude=task.exclude, counter=task.counter,
        **_chosen(config),
    )  # fmt: skip


def _negative_cache(config: Config, task: Task) -> NegativeSampler:
    return NegativeCache(
        task.num_rows, temperature=config.loss.temperature, exclude=task.exclude, counter=task.counter,
        device=task.device, **_chosen(config),
    )  # fmt: skip


def _chosen(config: Config) -> dict[str, Any]:
    """The options of `config.negatives`, whose names are those of the sampler's arguments."""
    return {k: v for k, v in vars(config.negatives).items() if k != "type"}


def _emc2(config: Config, task: Task) -> NegativeSampler:
    options = config.negatives
    exclude = _excluded(task)
    return Emc2(
        task.num_rows,
        temperature=config.loss.temperature,
        views=task.views,
        proposals=options.proposals,
        proposal=functools.partial(_proposal, options.proposal, config, exclude, task.staleness),
        draws=options.draws,
        pool=options.pool,
        query=options.query,
        start=options.start,
        burn_in=options.burn_in,
        score=options.score,
        batch_views=options.batch_views,
        exclude=exclude,
        counter=task.counter,
        device=task.device,
    )


def _importance(config: Config, task: Task) -> NegativeSampler:
    options = config.negatives
    exclude = _excluded(task)
    return Importance(
        task.num_rows,
        temperature=config.loss.temperature,
        proposal=functools.partial(_proposal, options.proposal, config, exclude, task.staleness),
        draws=options.draws,
        pool=options.pool,
        query=options.query,
        batch=options.batch,
        positive=options.positive,
        exclude=exclude,
        counter=task.counter,
    )


def _excluded(task: Task) -> Exclusions:
    """D_i of the task: all rows but i unless it says more."""
    return (Exclusions(task.num_rows) if task.exclude is None else task.exclude).to(task.device)


def _proposal(named: Any, config: Config, exclude: Exclusions, staleness: Staleness, snapshot: Snapshot) -> Proposal:
    """The proposal that the section `named` names; its temperature is the loss's unless it has its own."""
    options = {k: v for k, v in vars(named).items() if k != "type"}
    if options.get("temperature", 1.0) is None:
        options["temperature"] = config.loss.temperature
    if options.get("adapt"):
        options["probe"] = staleness()
        options["adapt"] = options["probe"] is not None
    return PROPOSALS[named.type](snapshot, exclude=exclude, **options)


NEGATIVES: dict[str, Callable[[Config, Task], NegativeSampler]] = {
    "emc2": _emc2,
    "importance": _importance,
    "in_batch": _in_batch,
    "sogclr": _sogclr,
    "isogclr": _isogclr,
    "dcl": _dcl,
    "hcl": _hcl,
    "moco": _moco,
    "hardest": _hardest,
    "negative_cache": _negative_cache,
}
PROPOSALS: dict[str, Callable[..., Proposal]] = {
    "nearest": Nearest,
    "head_tail": HeadTail,
    "cells": Cells,
    "stale_softmax": StaleSoftmax,
    "uniform": Uniform,
}


def wants_snapshot(config: Config, batches: BatchSampler, negatives: NegativeSampler) -> bool:
    """Whether any sampler or ablation of the run reads the bank's index; if none does, none is built."""
    return config.ablation.every is not None or batches.reads_snapshot or negatives.reads_snapshot


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        ValueError: for a device that is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"run.device={name}: not available ({str(error).splitlines()[0]}); use auto or cpu") from None


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the machine multiplies it natively, else float32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    found = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bf16" if found.get("avx512_bf16") or found.get("amx_bf16") else "float32"
