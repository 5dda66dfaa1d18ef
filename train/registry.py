"""The names that YAML knows, and what each stands for: a new method is one file and one line here.

    kind → name → "module:class or function", imported when it is used and not before

The signature behind a name is the schema of its options (`negbank.train.config`), the docstring their help. The first
name of a kind is its default. Another package adds names by an entry point,

    [project.entry-points."negbank.negatives"]
    mine = "my_package.sampler:Mine"

and a script by `register("negatives", "mine", Mine)`. A YAML file can name these, and import nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

REGISTRY: dict[str, dict[str, str | Callable[..., Any]]] = {
    "data": {
        "mnist5k": "negbank.train.data.images.sources:mnist5k",
        "digits": "negbank.train.data.images.sources:digits",
        "cifar10": "negbank.train.data.images.sources:cifar10",
        "cifar100": "negbank.train.data.images.sources:cifar100",
        "stl10": "negbank.train.data.images.sources:stl10",
        "fashion_mnist": "negbank.train.data.images.sources:fashion_mnist",
        "image_folder": "negbank.train.data.images.folder:image_folder",
        "tensors": "negbank.train.data.tensors:tensors",
        "text": "negbank.train.data.text.files:text",
        "pairs": "negbank.train.data.pairs:pairs",
        "python_code": "negbank.train.data.text.code:python_code",
        "own": "negbank.train.fit:own",
    },
    "augment": {"views": "negbank.train.data.images.augment:Augment"},
    "encoder": {
        "convnet": "negbank.train.encoders.convnet:convnet",
        "resnet18": "negbank.train.encoders.resnet:resnet18",
        "resnet50": "negbank.train.encoders.resnet:resnet50",
        "mlp": "negbank.train.encoders.perceptron:mlp",
        "static": "negbank.train.encoders.static:static",
        "transformer": "negbank.train.encoders.transformer:transformer",
        "pretrained": "negbank.train.encoders.pretrained:pretrained",
        "left": "negbank.train.encoders.shared:left",
        "own": "negbank.train.fit:own",
    },
    "projector": {"mlp": "negbank.train.encoders.projector:Projector"},
    "batches": {
        "uniform": "negbank.samplers.batches.uniform:UniformBatches",
        "knn": "negbank.samplers.batches.knn:Knn",
        "prosampler": "negbank.samplers.batches.prosampler:ProSampler",
        "spectral": "negbank.samplers.batches.spectral:Spectral",
        "ordered": "negbank.samplers.batches.ordered:Ordered",
        "drawn": "negbank.samplers.batches.drawn:Drawn",
        "communities": "negbank.samplers.batches.communities:Communities",
        "clusters": "negbank.samplers.batches.clusters:Clusters",
    },
    "negatives": {
        "emc2": "negbank.samplers.negatives.emc2:Emc2",
        "importance": "negbank.samplers.negatives.importance:Importance",
        "in_batch": "negbank.samplers.negatives.in_batch:InBatch",
        "sogclr": "negbank.samplers.negatives.sogclr:SogClr",
        "isogclr": "negbank.samplers.negatives.isogclr:ISogClr",
        "dcl": "negbank.samplers.negatives.dcl:Dcl",
        "hcl": "negbank.samplers.negatives.hcl:Hcl",
        "moco": "negbank.samplers.negatives.moco:Moco",
        "hardest": "negbank.samplers.negatives.hardest:Hardest",
        "mined": "negbank.samplers.negatives.mined:Mined",
        "negative_cache": "negbank.samplers.negatives.negative_cache:NegativeCache",
    },
    "proposal": {
        "head_tail": "negbank.proposals.head_tail:HeadTail",
        "nearest": "negbank.proposals.nearest:Nearest",
        "cells": "negbank.proposals.cells:Cells",
        "stale_softmax": "negbank.proposals.stale_softmax:StaleSoftmax",
        "uniform": "negbank.proposals.uniform:Uniform",
    },
    "index": {"index": "negbank.index.faiss:FaissIndex"},
    "refresh": {"refresh": "negbank.refresh:Refresher"},
    "optim": {
        "adamw": "negbank.train.optim:adamw",
        "adam": "negbank.train.optim:adam",
        "sgd": "negbank.train.optim:sgd",
        "lars": "negbank.train.lars:lars",
    },
    "eval": {
        "features": "negbank.train.evaluate.features:Features",
        "retrieval": "negbank.train.evaluate.retrieval:Retrieval",
        "sts": "negbank.train.evaluate.sts:Sts",
    },
    "hook": {
        "meetings": "negbank.train.studies.meetings:Meetings",
        "memory": "negbank.train.studies.memory:Memory",
        "ablation": "negbank.train.studies.ablation.live:Live",
        "gradient_error": "negbank.train.studies.gradient_error:GradientError",
    },
    "source": {
        "npy": "negbank.train.studies.ablation.sources:npy",
        "snapshots": "negbank.train.studies.ablation.sources:snapshots",
    },
}
SUPPLIED: dict[str, frozenset[str]] = {
    "data": frozenset(),
    "augment": frozenset({"channels", "size"}),
    "encoder": frozenset({"channels", "shape", "vocabulary", "tokenizer"}),
    "projector": frozenset({"features"}),
    "batches": frozenset({"num_rows", "counter", "exclude", "encode"}),
    "negatives": frozenset({"num_rows", "views", "temperature", "exclude", "counter", "device", "side"}),
    "proposal": frozenset({"snapshot", "exclude", "probe"}),
    "index": frozenset({"vectors", "rows", "recall_at", "warm", "seed"}),
    "refresh": frozenset({"bank", "encode", "rewrite", "measure", "epoch", "factory", "target_recall", "seed"}),
    "optim": frozenset({"module"}),
    "eval": frozenset({"inference", "splits", "temperature", "device"}),
    "hook": frozenset(),
    "source": frozenset({"seed", "device"}),
}
"""Arguments that the run gives by their name (`negbank.train.build`), and so no options of YAML."""
ALIASES: dict[str, dict[str, str]] = {
    "negatives": {"simclr": "in_batch", "clip": "in_batch", "infonce": "in_batch", "ance": "hardest"},
    "batches": {"batchsampler": "prosampler"},
}
"""Other names that people type."""
ROOTS: dict[str, str] = {
    "ablate": "negbank.train.studies.ablation.run:run",
    "compare": "negbank.train.studies.compare.run:run",
}
"""Commands whose YAML has the arguments of a function; that of `train` has the sections of a run."""
CHECKED: dict[str, str] = {
    "ablate": "negbank.train.studies.checks:ablate",
    "compare": "negbank.train.studies.compare.methods:impossible",
    "ablation": "negbank.train.studies.checks:ablation",
    "gradient_error": "negbank.train.studies.checks:gradient_error",
}
"""What is impossible across the keys of these, and what the section of a hook adds to that in a run."""


def register(kind: str, name: str, target: str | Callable[..., Any]) -> None:
    """Let YAML know a class or function of yours by a name.

    Args:
        kind: "data", "encoder", "batches", "negatives", "proposal", "optim", "eval", "hook", …
        name: what YAML's `type` calls it.
        target: the class or function, or "module:attribute".

    Raises:
        ValueError: for an unknown kind, or a name that stands for something else.
    """
    if kind not in REGISTRY:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(REGISTRY)}")
    if REGISTRY[kind].get(name, target) != target:
        raise ValueError(f"name={name!r}: {kind} has {REGISTRY[kind][name]} under it; choose another name")
    REGISTRY[kind][name] = target
    for forget in CACHES:
        forget()


CACHES: list[Callable[[], None]] = []
"""What has to be forgotten when a name is added."""


@functools.cache
def names(kind: str) -> Mapping[str, str | Callable[..., Any]]:
    """Name → target of a kind, those of installed packages among them; the default first."""
    found = dict(REGISTRY[kind])
    for each in entry_points(group=f"negbank.{kind}"):
        found.setdefault(each.name, each.value)
    return found


CACHES.append(names.cache_clear)


def target_check(name: str) -> Callable[[Mapping[str, Any]], list[str]]:
    """The function that knows what is impossible across the keys of a command's file, or with a hook's section."""
    module, _, attribute = CHECKED[name].partition(":")
    found: Callable[[Mapping[str, Any]], list[str]] = getattr(import_module(module), attribute)
    return found


def target(kind: str, name: str) -> Any:
    """The class or function behind a name.

    Raises:
        ImportError: naming the extra to install, where a package is missing.
    """
    found = names(kind)[name]
    if not isinstance(found, str):
        return found
    module, _, attribute = found.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{kind}.type={name}: needs the package {error.name}, which is not installed; pip install 'negbank[all]'"
        ) from error
