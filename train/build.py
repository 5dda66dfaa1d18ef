"""The composition root: a configuration's names become objects here, and configuration goes no further.

A section becomes the call of what it names: its options as they are, and of what the run supplies whatever the
signature asks for by name. A section inside of it becomes a factory that is called with the rest, as a proposal is with
its snapshot.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from negbank.bank import EmbeddingBank
from negbank.counter import Counter
from negbank.exclusions import Exclusions
from negbank.index.factory import require_trainable
from negbank.proposals import Probe, measure
from negbank.refresh import Refresher
from negbank.snapshot import Snapshot
from negbank.train import optim, registry
from negbank.train.config.schema import described, model
from negbank.train.config.sections import COMMON, Options
from negbank.train.data.arrays import read_labels
from negbank.train.data.contract import Data, Pairs, Splits, describes, num_rows, sides, subset
from negbank.train.device import choose_device, choose_precision
from negbank.train.encoders.own import fitting
from negbank.train.evaluate import Evaluation
from negbank.train.hooks import Hook
from negbank.train.inference import Inference
from negbank.train.towers import Tower, directions, views_of
from negbank.train.trainer import Trainer


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


def make(kind: str, section: Options, **supplied: Any) -> Any:
    """The object of a section.

    Args:
        kind: of its registry.
        section: its options.
        supplied: arguments of the run; the target takes those that it has parameters for. "loss.temperature" and other
            keys that an option follows are given under their name.
    """
    name = getattr(section, "type", None) or next(iter(registry.names(kind)))
    target = registry.target(kind, name)
    shared = COMMON[kind].model_fields if kind in COMMON else ()
    options = {key: getattr(section, key) for key in type(section).model_fields if key != "type" and key not in shared}
    for option in described(kind, name).options:
        if option.follows is not None and options[option.name] is None:
            options[option.name] = supplied[option.follows]
        if option.labels and options[option.name] is not None:
            options[option.name] = read_labels(options[option.name], f"{kind}.{option.name}")
        if option.section is not None and options[option.name] is not None:
            options[option.name] = _factory(option.section.kind, options[option.name], supplied)
    taken = inspect.signature(target).parameters
    return target(**options, **{key: value for key, value in supplied.items() if key in taken and key not in options})


class Factory(NamedTuple):
    """What makes the object of an inner section once the rest is known, such as a proposal with its snapshot."""

    kind: str
    section: Options
    supplied: Mapping[str, Any]

    def __call__(self, *first: Any, **rest: Any) -> Any:
        names = inspect.signature(registry.target(self.kind, _name(self.kind, self.section))).parameters
        late = self.supplied.get("late", dict)()
        return make(self.kind, self.section, **{**self.supplied, **late, **dict(zip(names, first)), **rest})


def _factory(kind: str, section: Any, supplied: Mapping[str, Any]) -> Any:
    """That of an inner section, or of each of a list of them."""
    return (
        [Factory(kind, each, supplied) for each in section]
        if isinstance(section, list)
        else Factory(kind, section, supplied)
    )


def _name(kind: str, section: Options) -> str:
    return getattr(section, "type", None) or next(iter(registry.names(kind)))


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
    widths = [each.embeddings(side, torch.arange(2)).shape[1] for each, side in zip(inference, data)]
    banks = [EmbeddingBank(count, width, device=device) for width in widths]
    studied = any(hook.reads_snapshot for hook in hooks.values())
    if own or studied:
        require_factory(config.index.factory, count, widths[0])
        for way in ways:  # rows of a tower's snapshot are drawn for the anchors of a direction
            unasked = not (studied or batches.reads_snapshot or negatives[way.anchors].reads_snapshot)
            if unasked and config.refresh.mode == "rolling":  # full encodes what another index is asked with, too
                continue
            # what a study alone asks for is not counted as the method's
            encode, anchors = (functools.partial(embed, each, counted=own) for each in (way.keys, way.anchors))
            queries = banks[way.anchors] if way.anchors != way.keys else None
            probe = _probe(config, negatives[way.anchors], encode, anchors, queries)
            refreshers[way.keys] = make(
                "refresh", config.refresh, bank=banks[way.keys], encode=encode, measure=probe, epoch=len(batches),
                seed=config.run.seed, factory=config.index.factory, target_recall=config.index.target_recall,
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
    )
    evaluation = make("eval", config.eval, inference=inference, splits=splits, temperature=config.loss.temperature)
    notes += [*cut, *getattr(evaluation, "notes", ())]
    return Assembly(config, splits, trainer, inference, evaluation, hooks, steps, notes, device, precision)


def stream(config: Any, name: str, *place: int) -> Counter:
    """The random numbers of one part of a run."""
    return Counter.of(config.run.seed).at(name, *place)


def load_data(config: Any) -> Splits:
    """What `config.data` names, or `config.data.rows` of its training rows, the same for every run seed.

    Raises:
        ValueError: for more rows than there are.
    """
    splits: Splits = make("data", config.data)
    return subset(splits, config.data.rows)


def _encoders(config: Any, sides: Sequence[Data], own: nn.Module | Sequence[nn.Module] | None) -> list[nn.Module]:
    """One module for each side: the caller's, or that of `config.encoder`, initialised from the run's seed alone."""
    if own is not None:
        found = [own] * len(sides) if isinstance(own, nn.Module) else list(own)
        if len(found) != len(sides):
            raise ValueError(f"encoder: {len(found)} modules for data of {len(sides)} side(s); give one, or one a side")
        return found
    sections = [config.encoder, config.encoder_right or config.encoder][: len(sides)]
    return [
        build_encoder(section, side, stream(config, "weights", position).key)
        for position, (section, side) in enumerate(zip(sections, sides))
    ]


def build_encoder(section: Options, data: Data, seed: int) -> nn.Module:
    """The encoder of a section for what the data describes, its weights drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: nn.Module = make("encoder", section, **describes(data))
        return made


def _optimiser(config: Any, encoders: Sequence[nn.Module], learned: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimiser that `config.optim` names, over all parameters, and what is learned without weight decay."""
    module = nn.ModuleList(dict.fromkeys(encoders))
    optimiser: torch.optim.Optimizer = make("optim", config.optim, module=module)
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
