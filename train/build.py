"""The composition root: a configuration's names become objects here, and configuration goes no further."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from negbank.bank import EmbeddingBank, added, unit_rows
from negbank.counter import Counter
from negbank.exclusions import Exclusions
from negbank.index.factory import require_trainable
from negbank.proposals import Probe, measure
from negbank.refresh import Refresher
from negbank.snapshot import Snapshot
from negbank.train import optim, registry
from negbank.train.config.schema import model
from negbank.train.config.sections import Options
from negbank.train.data.contract import Data, Pairs, Splits, describes, num_rows, sides, subset
from negbank.train.device import choose_device, choose_precision
from negbank.train.encoders.own import fitting
from negbank.train.evaluate import Evaluation
from negbank.train.hooks import Hook
from negbank.train.inference import Inference
from negbank.train.lazy import LazyAdamW
from negbank.train.make import make, type_of
from negbank.train.space import LEFT, MEAN, RIGHT, MeanBank
from negbank.train.towers import Tower, directions, views_of
from negbank.train.trainer import Trainer

GRAPH_EXACT = 100_000
"""Rows up to which the neighbours of all of them are found sooner exactly than by an index that is built for them."""


class Assembly(NamedTuple):
    """Everything a run is made of."""

    config: Any
    splits: Splits
    trainer: Trainer
    inference: list[Inference]
    evaluation: Evaluation
    hooks: dict[str, Hook]
    steps: int
    notes: list[str]
    device: torch.device
    precision: str


def build(
    config: Any, *, encoder: nn.Module | Sequence[nn.Module] | None = None, splits: Splits | None = None
) -> Assembly:
    """Load the data and make every object of a run.

    Args:
        config: checked by `negbank.train.config.load`.
        encoder: your own module instead of `config.encoder`: inputs → unit embeddings; of pairs two, or one for both.
        splits: your own data instead of `config.data`.

    Raises:
        ValueError: for what only the data can tell: a batch or a k larger than the data set, a name with no data; and
            for an index or labels that cannot be read.
    """
    device = choose_device(config.run.device)
    precision = choose_precision(config.run.precision, device)
    splits = load_data(config) if splits is None else splits
    data, count = sides(splits.train), num_rows(splits.train)
    groups = splits.train.groups if isinstance(splits.train, Pairs) else None
    ways = directions(len(data))
    _require_rows(config, count)
    autocast = functools.partial(
        torch.autocast, device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=True
    )
    given: list[Any] = _encoders(config, data, encoder)
    modules = {each: each.to(device, memory_format=torch.channels_last) for each in given}
    notes = list(splits.notes)
    for own in modules if encoder is not None else ():
        modules[own], said = fitting(own, data[given.index(own)], device=device, autocast=autocast)
        notes += [note for note in said if note not in notes]
    encoders = [modules[each] for each in given]
    inference = [Inference(each, device=device, autocast=autocast) for each in encoders]
    hooks = {
        name: make("hook", getattr(config, name, None) or model("hook", name)()) for name in registry.names("hook")
    }
    refreshers: list[Refresher | None] = [None] * len(data)
    supplied = {
        "num_rows": count, "views": views_of(len(data)), "device": device, "seed": config.run.seed,
        "temperature": config.loss.temperature, "loss.temperature": config.loss.temperature,
        "exclude": Exclusions(count, groups=groups) if groups is not None else None,
    }  # fmt: skip

    def embed(position: int, rows: Tensor, *, counted: bool) -> Tensor:
        trainer.encodings += len(rows) if counted else 0
        found = inference[position].embeddings(data[position], rows)
        if trainer.step_number > 0:  # what is wrong before the first step is no divergence
            directions = found / found.norm(dim=1, keepdim=True)
            trainer.descent.require_finite(directions, rows.to(found.device), "embedding")
        return found

    def staleness(position: int) -> dict[str, Any]:
        refresher = refreshers[position]
        return {"probe": None if refresher is None else refresher.probe}

    batches = make(
        "batches", config.batches, **supplied, counter=stream(config, "batches"),
        encode=functools.partial(embed, 0, counted=True), late=functools.partial(staleness, 0),
    )  # fmt: skip
    negatives = [
        make(
            "negatives", config.negatives, **supplied, counter=stream(config, "negatives", way.anchors),
            side=way.anchors, late=functools.partial(staleness, way.keys),
        )
        for way in ways
    ]  # fmt: skip
    own = batches.reads_snapshot or any(each.reads_snapshot for each in negatives)
    studied = any(hook.reads_snapshot for hook in hooks.values())
    planned = _planned(config, len(data)) if batches.reads_snapshot else None
    widths = [each.embeddings(side, torch.arange(2)).shape[1] for each, side in zip(inference, data)]
    banks = [EmbeddingBank(count, width, device=device) for width in widths]

    def refresher(*, batches_alone: bool, **rest: Any) -> Refresher:
        """What refreshes a snapshot; of one that only batches are planned from, without an index where that costs less.

        They ask for the neighbours of all rows at once, if for any: of few rows exact ones, sooner than an index.
        """
        few = config.index.factory == "auto" and count <= GRAPH_EXACT
        unasked = batches_alone and (few or not getattr(batches, "searches", True))
        factory = "exact" if unasked else config.index.factory
        made: Refresher = make(
            "refresh", config.refresh, epoch=len(batches), seed=config.run.seed, factory=factory,
            target_recall=config.index.target_recall, **rest,
        )  # fmt: skip
        return made

    if own or studied:
        require_factory(config.index.factory, count, widths[0])
    asking = config.refresh.mode == "full" and any(each.reads_snapshot for each in negatives)
    for way in ways:  # rows of a tower's snapshot are drawn for the anchors of a direction
        searched = studied or negatives[way.anchors].reads_snapshot
        if not (searched or way.keys == planned or asking):  # full encodes what another index is asked with, too
            continue
        # what a study alone asks for is not counted as the method's
        encode, anchors = (functools.partial(embed, each, counted=own) for each in (way.keys, way.anchors))
        queries = banks[way.anchors] if way.anchors != way.keys else None
        probe = _probe(config, negatives[way.anchors], encode, anchors, queries)
        refreshers[way.keys] = refresher(bank=banks[way.keys], encode=encode, measure=probe, batches_alone=not searched)

    def both(rows: Tensor) -> list[Tensor]:
        return [embed(each, rows, counted=True) for each in (0, 1)]

    def rewrite(rows: Tensor, step: int) -> None:
        for bank, vectors in zip(banks, both(rows)):
            bank.write(rows, vectors, step=step)

    planner = None if planned is None else refreshers[planned] if planned < 2 else refresher(
        bank=MeanBank(*banks), encode=lambda rows: unit_rows(added(*both(rows))), rewrite=rewrite,
        measure=None, batches_alone=True,
    )  # fmt: skip
    names = ("left", "right") if len(data) == 2 else ("",)
    towers = [Tower(*each) for each in zip(encoders, data, banks, negatives, refreshers, names)]
    steps = config.run.steps or config.run.epochs * len(batches)
    cut = optim.warmup_steps(config.optim.warmup, steps)[1]
    trainer = Trainer(
        towers,
        batches=batches,
        optimiser=_optimiser(config, encoders, [tensor for each in negatives for tensor in each.learned]),
        schedule=functools.partial(optim.factor, config.optim, steps=steps),
        temperature=config.loss.temperature,
        counter=Counter.of(config.run.seed),
        device=device,
        autocast=autocast,
        workers=config.data.workers,
        micro_batch=config.run.micro_batch,
        compile=config.run.compile,
        planner=planner,
    )
    evaluation = make("eval", config.eval, inference=inference, splits=splits, temperature=config.loss.temperature)
    notes += [*cut, *getattr(evaluation, "notes", ())]
    return Assembly(config, splits, trainer, inference, evaluation, hooks, steps, notes, device, precision)


def _planned(config: Any, towers: int) -> int:
    """The tower that batches are planned from: 0, 1, or 2 for both as one."""
    return 0 if towers == 1 else (LEFT, RIGHT, MEAN).index(config.batches.space)


def stream(config: Any, name: str, *place: int) -> Counter:
    """The random numbers of one part of a run."""
    return Counter.of(config.run.seed).at(name, *place)


def load_data(config: Any) -> Splits:
    """What `config.data` names, or `config.data.rows` of its training rows, the same for every run seed.

    Raises:
        ValueError: for more rows than there are.
    """
    splits: Splits = make("data", config.data, **{"run.seed": config.run.seed})
    return subset(splits, config.data.rows)


def _encoders(config: Any, sides: Sequence[Data], own: nn.Module | Sequence[nn.Module] | None) -> list[nn.Module]:
    """One module for each side: the caller's, or that of `config.encoder`, initialised from the run's seed alone.

    Raises:
        ValueError: for another number of modules than sides.
    """
    if own is not None:
        found = [own] * len(sides) if isinstance(own, nn.Module) else list(own)
        if len(found) != len(sides):
            raise ValueError(f"encoder: {len(found)} modules for data of {len(sides)} side(s); give one, or one a side")
        return found
    sections = [config.encoder, config.encoder_right or config.encoder][: len(sides)]
    shared = getattr(sections[-1], "type", None) == "left" and len(sides) > 1
    made = [
        build_encoder(section, side, stream(config, "weights", position).key)
        for position, (section, side) in enumerate(zip(sections[:1] if shared else sections, sides))
    ]
    return made * len(sides) if shared else made


def build_encoder(section: Options, data: Data, seed: int) -> nn.Module:
    """The encoder of a section for what the data describes, its weights drawn from a seed.

    Raises:
        ValueError: for an encoder that reads other things than the data has.
    """
    told, name = describes(data), type_of("encoder", section)
    taken = inspect.signature(registry.target("encoder", name)).parameters.values()
    needed = {each.name for each in taken if each.default is each.empty} & registry.SUPPLIED["encoder"]
    if needed - told.keys():
        fits = "static, transformer or pretrained" if "vocabulary" in told else "mlp, or convnet for images"
        raise ValueError(f"encoder.type={name}: reads other things than the data has; take {fits}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: nn.Module = make("encoder", section, **told)
        return made


def _optimiser(config: Any, encoders: Sequence[nn.Module], learned: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimiser that `config.optim` names, over all parameters, and what is learned without weight decay."""
    module = nn.ModuleList(dict.fromkeys(encoders))
    optimiser: torch.optim.Optimizer = make("optim", config.optim, module=module)
    if any(getattr(each, "sparse", False) for each in module.modules()) and not isinstance(optimiser, LazyAdamW):
        raise ValueError(
            f"optim.type={config.optim.type}: would go through the whole token table at every step, whose gradient is "
            f"sparse; take optim.type=adamw"
        )
    if learned:
        optimiser.add_param_group({"params": list(learned), "weight_decay": 0.0})
    return optimiser


def _require_rows(config: Any, count: int) -> None:
    """Raise ValueError for a batch, or a k of a proposal, that is larger than the data set."""
    if not 2 <= config.batches.batch_size <= count:
        raise ValueError(
            f"batches.batch_size={config.batches.batch_size}: data.type={config.data.type} has {count} training rows; "
            f"choose at most that"
        )
    for path, each in _proposals(config):
        k = getattr(each, "k", 1)
        if k >= count:
            raise ValueError(f"{path}.k={k}: there are only {count - 1} other training rows; lower k")


def _proposals(config: Any) -> Iterator[tuple[str, Options]]:
    """Every proposal of a configuration under its path, those of hooks that are asked for among them."""
    for name, section in config:
        used = getattr(section, "draws", 1) != 0 and getattr(section, "every", 1) is not None
        for key, kind in getattr(section, "sections", {}).items() if used else ():
            found = getattr(section, key)
            if kind == "proposal" and isinstance(found, list):
                yield from ((f"{name}.{key}[{i}]", each) for i, each in enumerate(found))
            elif kind == "proposal" and found is not None and not isinstance(found, list):
                yield f"{name}.{key}", found


def _probe(
    config: Any,
    negatives: Any,
    encode: Callable[[Tensor], Tensor],
    anchors: Callable[[Tensor], Tensor],
    queries: EmbeddingBank | None,
) -> Callable[[Snapshot, int], Probe] | None:
    """What the refresher measures for proposals that adapt; None where none does.

    Args:
        negatives: those that draw from the snapshot.
        encode, anchors: rows → fresh embeddings, by the snapshot's tower and by their anchors'.
        queries: the anchors' own bank, where it is another than the snapshot's.
    """
    if not getattr(getattr(config.negatives, "proposal", None), "adapt", False):
        return None
    place = stream(config, "staleness")

    def probe(snapshot: Snapshot, step: int) -> Probe:
        random = place.at(step).generator()
        every = torch.arange(len(snapshot)) if snapshot.rows is None else snapshot.rows.cpu()
        chosen = every[torch.randperm(len(every), generator=random)[: config.refresh.probe_rows // 4]]
        rows = chosen.to(snapshot.vectors.device)
        mine = None if queries is None else queries.read(rows)
        return measure(
            snapshot, rows, encode, temperature=config.loss.temperature, draws=2 * config.refresh.probe_rows,
            fresh_queries=negatives.fresh_queries, generator=random, queries=mine,
            encode_queries=None if mine is None else anchors,
        )  # fmt: skip

    return probe


def require_factory(factory: str, rows: int, width: int) -> None:
    """Raise ValueError for an index that Faiss cannot build over so many rows, here and not at the first refresh."""
    try:
        require_trainable(factory, rows, width)
    except ValueError as error:
        raise ValueError(f"index.{error}") from None
