"""What a run can be told: one dataclass a section, with the default, the meaning and the bounds of every key.

A section with a `type` has one dataclass of options a type; `TYPES` says which. How a file is read into these is
`train/config.py`; what the names stand for is `train/build.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
) -> Any:
    """A field with its help text and the values it may take: choices, low ≤ x ≤ high, x > above."""
    rules = {"help": help, "choices": choices, "low": low, "high": high, "above": above}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=rules)
    return field(default=default, metadata=rules)


# --- data -------------------------------------------------------------------------------------------------------------


@dataclass
class Augment:
    preset: str = option("auto", "two-view augmentation", choices=("auto", "digits", "small_images", "natural"))
    scale: list[float] | None = option(None, "area of a crop as a share of the image, [min, max]")
    flip: float | None = option(None, "probability of a horizontal flip", low=0, high=1)
    rotate: float | None = option(None, "largest rotation in degrees", low=0, high=180)
    jitter: list[float] | None = option(None, "strength of [brightness, contrast, saturation, hue]")
    jitter_prob: float | None = option(None, "probability of colour jitter", low=0, high=1)
    grey: float | None = option(None, "probability of greyscale", low=0, high=1)
    blur: float | None = option(None, "probability of Gaussian blur", low=0, high=1)


ROWS_HELP = "train on so many rows, a fixed random subset; None: all"


@dataclass
class BundledData:
    """Images that a dependency ships: nothing to download."""

    type: str = "mnist5k"
    size: int | None = option(None, "side of the images in pixels; None: as they are", low=8)
    rows: int | None = option(None, ROWS_HELP, low=2)
    augment: Augment = field(default_factory=Augment)


@dataclass
class TorchvisionData:
    """A torchvision data set, downloaded to `root` when it is not there."""

    type: str = "cifar10"
    root: str = option("data", "folder of downloaded data sets")
    size: int | None = option(None, "side of the images in pixels; None: as they are", low=8)
    memory_gb: float = option(4.0, "decoded images are kept in memory up to this many GiB", above=0)
    rows: int | None = option(None, ROWS_HELP, low=2)
    augment: Augment = field(default_factory=Augment)


@dataclass
class FolderData:
    """Class folders of images, as a directory or a zip; with train/ and test/ on top, or held out at random."""

    type: str = "image_folder"
    root: str = option("", "the directory or the .zip file")
    size: int | None = option(64, "images are scaled and centre-cropped to this side in pixels", low=8)
    memory_gb: float = option(4.0, "decoded images are kept in memory up to this many GiB", above=0)
    holdout: float = option(0.2, "share held out of each class where there is no test/ folder", above=0, high=0.9)
    rows: int | None = option(None, ROWS_HELP, low=2)
    augment: Augment = field(default_factory=Augment)


# --- encoder ----------------------------------------------------------------------------------------------------------


@dataclass
class Projection:
    hidden: int = option(256, "width of the projector's hidden layers", low=1)
    dim: int = option(128, "width of an embedding, D", low=2)
    layers: int = option(2, "linear layers of the projector", low=1)
    norm: str = option("batch", "norm of the projector's hidden layers", choices=("batch", "none"))


@dataclass
class ConvNetEncoder:
    type: str = "convnet"
    width: int = option(32, "channels of the first layer", low=4)
    features: int = option(256, "width of the features that are evaluated", low=8)
    norm: str = option("batch", "norm layers; group has no batch statistics", choices=("batch", "group", "none"))
    projector: Projection = field(default_factory=Projection)


@dataclass
class ResNetEncoder:
    type: str = "resnet18"
    small_images: bool = option(True, "3×3 stem without max-pool, for images up to about 96 pixels")
    norm: str = option("batch", "norm layers; group has no batch statistics", choices=("batch", "group"))
    projector: Projection = field(default_factory=lambda: Projection(hidden=2048))


# --- which rows meet, which negatives ---------------------------------------------------------------------------------


GROUPS_HELP = ".npy file of integer labels (N,), negative for none, of which few may meet in a batch"
MAX_PER_GROUP_HELP = "rows of one label that may meet in a batch; with groups"


@dataclass
class UniformBatches:
    type: str = "uniform"
    batch_size: int = option(64, "rows a batch, B; each is seen under two views", low=2)


@dataclass
class KnnBatches:
    """A row and its nearest rows that are still left of the epoch."""

    type: str = "knn"
    batch_size: int = option(64, "rows a batch, B; each is seen under two views", low=2)
    neighbors: int = option(100, "K, neighbours of a row in the graph", low=1)
    groups: str | None = option(None, GROUPS_HELP)
    max_per_group: int | None = option(None, MAX_PER_GROUP_HELP, low=1)


@dataclass
class ProSamplerBatches:
    """Random walks with restart on the graph of each row's neighbours among random candidates."""

    type: str = "prosampler"
    batch_size: int = option(64, "rows a batch, B; each is seen under two views", low=2)
    candidates: int | None = option(
        1000, "M, random rows the neighbours are chosen from; None: all, by the index", low=2
    )
    neighbors: int = option(100, "K, neighbours of a row in the graph", low=1)
    restart: float = option(0.2, "α₀, probability to go back to the walk's first row", low=0, high=1)
    restart_decay: float = option(0.02, "what α falls by with every epoch", low=0, high=1)
    restart_min: float = option(0.05, "below which α does not fall", low=0, high=1)
    cover: str = option("epoch", "epoch: every row once; walk: as published", choices=("epoch", "walk"))
    groups: str | None = option(None, GROUPS_HELP)
    max_per_group: int | None = option(None, MAX_PER_GROUP_HELP, low=1)


@dataclass
class SpectralBatches:
    """Spectral clusters of exactly B rows."""

    type: str = "spectral"
    batch_size: int = option(64, "rows a batch, B; each is seen under two views", low=2)
    temperature: float | None = option(None, "of the affinity; None: loss.temperature", above=0)
    scope: str = option(
        "groups", "groups: random groups of group·B rows, as published; global: all rows", choices=("groups", "global")
    )
    group: int = option(40, "batches a group", low=1)
    restarts: int = option(10, "runs of k-means a group", low=1)
    groups: str | None = option(None, GROUPS_HELP)
    max_per_group: int | None = option(None, MAX_PER_GROUP_HELP, low=1)


@dataclass
class OrderedBatches:
    """OSGD: of `pool` random batches the `keep` of highest loss."""

    type: str = "ordered"
    batch_size: int = option(64, "rows a batch, B; each is seen under two views", low=2)
    temperature: float | None = option(None, "of the loss they are ordered by; None: loss.temperature", above=0)
    pool: int = option(1500, "k, random batches that are scored together", low=1)
    keep: int = option(150, "q, how many of them are trained on", low=1)
    score: str = option("bank", "bank: no forward pass; fresh: all rows are encoded", choices=("bank", "fresh"))
    groups: str | None = option(None, GROUPS_HELP)
    max_per_group: int | None = option(None, MAX_PER_GROUP_HELP, low=1)


@dataclass
class DrawnBatches:
    """Groups of a random row and rows that the index drew for it, with a known probability that two meet."""

    type: str = "drawn"
    batch_size: int = option(64, "rows a batch, B; each is seen under two views", low=2)
    group: int = option(4, "rows of a group, a divisor of batch_size; for negatives: {type: importance}", low=1)
    proposal: Any = field(default_factory=lambda: HeadTailProposal())


@dataclass
class InBatchNegatives:
    """SimCLR: the other views of the batch."""

    type: str = "in_batch"
    learn: bool = option(False, "τ is learned, from loss.temperature on")
    lowest: float = option(0.01, "smallest τ that is learned", above=0)


GAMMA_HELP = "γ, share of the newest batch in the average u"
DECAY_HELP = "steps over which γ falls from 1 to gamma by a half cosine; 0: constant; published: half the run"
PER_VIEW_HELP = "each view of a row has its own u; false: one a row, as published"
RELATIVE_HELP = "u averages exp(β(s − s⁺)) instead of exp(βs)"


@dataclass
class SogClrNegatives:
    """SogCLR: the other views of the batch, weighed against a moving average of each anchor's normaliser."""

    type: str = "sogclr"
    gamma: float = option(0.9, GAMMA_HELP, above=0, high=1)
    decay: int = option(0, DECAY_HELP, low=0)
    per_view: bool = option(True, PER_VIEW_HELP)
    relative: bool = option(False, RELATIVE_HELP)


@dataclass
class ISogClrNegatives:
    """iSogCLR: SogCLR with a temperature for every row, learned from loss.temperature on."""

    type: str = "isogclr"
    gamma: float = option(0.9, GAMMA_HELP, above=0, high=1)
    decay: int = option(0, DECAY_HELP, low=0)
    per_view: bool = option(True, PER_VIEW_HELP)
    relative: bool = option(True, RELATIVE_HELP)
    rho: float = option(0.3, "ρ, bound on the divergence of the negatives' weights from uniform", low=0)
    lowest: float = option(0.05, "smallest temperature of a row", above=0)
    highest: float = option(0.7, "largest temperature of a row", above=0)
    rate: float = option(0.01, "η, step size of the temperatures", above=0)
    newest: float = option(0.9, "share of the newest gradient in a temperature's step; 1: no momentum", above=0, high=1)


@dataclass
class DclNegatives:
    """DCL, debiased contrast: the batch's sum of negatives less the share that are positives."""

    type: str = "dcl"
    tau_plus: float = option(0.1, "τ⁺, probability that a row is of the anchor's class", low=0, high=0.999)


@dataclass
class HclNegatives:
    """HCL: DCL with harder negatives than those of the batch."""

    type: str = "hcl"
    tau_plus: float = option(0.1, "τ⁺, probability that a row is of the anchor's class", low=0, high=0.999)
    concentration: float = option(1.0, "how much harder; β of the paper, 0 is DCL", low=0)


@dataclass
class MocoNegatives:
    """MoCo: keys of a momentum encoder, from a queue (v2) or of the batch (v3)."""

    type: str = "moco"
    queue: int = option(4096, "keys kept; 0: the batch's own, as MoCo v3", low=0)
    momentum: float = option(0.99, "m of the momentum encoder", low=0, high=0.99999)


@dataclass
class HardestNegatives:
    """The index's nearest rows, as ANCE."""

    type: str = "hardest"
    k: int = option(4, "rows retrieved for each row of the batch", low=1)
    draws: int | None = option(None, "how many of them are taken, at random; None: all", low=1)
    weights: str = option("softmax", "what they weigh", choices=("softmax", "pairwise", "uniform"))
    positive: bool = option(True, "the positive is in the softmax's denominator, as in InfoNCE")
    query: str = option(
        "bank", "what the index is asked with; fresh: a second pass, no batch norm", choices=("bank", "fresh")
    )


@dataclass
class NegativeCacheNegatives:
    """Negative Cache: Gumbel-max draws from the softmax over cached embeddings."""

    type: str = "negative_cache"
    draws: int = option(1, "rows drawn for each row of the batch", low=1)
    search: str = option(
        "exact", "exact: over a cache of its own; index: over the snapshot, in less than N", choices=("exact", "index")
    )
    refresh: float = option(0.0, "ρ, share of the cache that is encoded anew each step; with exact", low=0, high=1)
    k: int | None = option(None, "rows retrieved from the index; None: √N", low=1)
    slack: float = option(0.0, "by how much in cosine the index may miss a row and draws stay exact", low=0)
    positive: bool = option(True, "the positive is in the softmax's denominator, as in InfoNCE")
    query: str = option(
        "bank", "what rows are drawn for; fresh, as published: a second pass, no batch norm", choices=("bank", "fresh")
    )


@dataclass
class UniformProposal:
    type: str = "uniform"


@dataclass
class NearestProposal:
    """Top-k softmax over the index with a uniform floor."""

    type: str = "nearest"
    k: int = option(64, "bank rows retrieved an anchor", low=1)
    temperature: float | None = option(None, "of the proposal's softmax; None: loss.temperature", above=0)
    floor: float = option(0.3, "share of uniform draws, which every row needs to be reachable", above=0, high=1)
    adapt: bool = option(False, "temperature and floor from measured staleness, every refresh.check_every steps")


@dataclass
class CellsProposal:
    """k-means cells of the bank by the mean of their rows, with a uniform floor."""

    type: str = "cells"
    temperature: float | None = option(None, "of the proposal's softmax; None: loss.temperature", above=0)
    floor: float = option(0.1, "share of uniform draws, which every row needs to be reachable", above=0, high=1)
    adapt: bool = option(False, "temperature and floor from measured staleness, every refresh.check_every steps")


@dataclass
class HeadTailProposal:
    """The top k by their own score, all other rows by their cell's, with a uniform floor."""

    type: str = "head_tail"
    k: int = option(64, "bank rows retrieved an anchor", low=1)
    temperature: float | None = option(None, "of the proposal's softmax; None: loss.temperature", above=0)
    floor: float = option(0.1, "share of uniform draws, which every row needs to be reachable", above=0, high=1)
    tail: float = option(1.0, "weight of the tail against the head", above=0)
    adapt: bool = option(False, "temperature, floor and tail from measured staleness, every refresh.check_every steps")


@dataclass
class StaleSoftmaxProposal:
    """The softmax over the whole bank, at a cost of N an anchor: the reference."""

    type: str = "stale_softmax"
    temperature: float | None = option(None, "of the proposal's softmax; None: loss.temperature", above=0)
    floor: float = option(0.1, "share of uniform draws, which every row needs to be reachable", above=0, high=1)


@dataclass
class Emc2Negatives:
    """EMC²: Metropolis–Hastings chains with in-batch and index proposals."""

    type: str = "emc2"
    proposals: str = option(
        "both", "what chains are offered: the batch's rows, index draws, or both", choices=("in_batch", "index", "both")
    )
    proposal: Any = field(default_factory=HeadTailProposal)
    draws: int = option(2, "index draws a visit: of each row, with pool of the whole batch", low=1)
    pool: bool = option(False, "all anchors are offered one pool of draws")
    query: str = option(
        "bank", "what the index is asked with; fresh: a second pass, no batch norm", choices=("bank", "fresh")
    )
    start: str = option("persistent", "fresh: no state is carried or encoded", choices=("persistent", "fresh"))
    burn_in: float = option(0.5, "share of a visit's steps whose states are not kept", low=0, high=0.999)
    batch_views: str = option(
        "one", "in-batch proposals of a row; all: as published, with a bias (docs/emc2.md)", choices=("one", "all")
    )
    score: str = option(
        "fresh",
        "bank: cheaper, but a stale target; delayed: bank scores and one exact correction a chain",
        choices=("fresh", "bank", "delayed"),
    )


@dataclass
class ImportanceNegatives:
    """Sampled softmax with logQ correction: index draws weighed against how often they were to be expected."""

    type: str = "importance"
    proposal: Any = field(default_factory=HeadTailProposal)
    draws: int = option(64, "index draws: of the whole batch with pool, else of each row; 0: none", low=0)
    pool: bool = option(True, "all anchors share one pool of draws")
    query: str = option(
        "bank", "what the index is asked with; fresh: a second pass, no batch norm", choices=("bank", "fresh")
    )
    batch: bool = option(True, "the batch's other rows are candidates, too")
    positive: bool = option(True, "the positive is in the softmax's denominator, as in InfoNCE")


# --- the rest ---------------------------------------------------------------------------------------------------------


@dataclass
class Loss:
    temperature: float = option(0.1, "τ = 1/β of the loss and of the chains' target", above=0)


@dataclass
class IndexOptions:
    factory: str = option("auto", "auto, exact, or a Faiss factory string such as IVF1024,Flat")
    target_recall: float = option(0.95, "recall that an approximate index is tuned to", above=0, high=1)


@dataclass
class Refresh:
    every: int = option(1, "how often the index is rebuilt", low=1)
    unit: str = option("epochs", "of refresh.every", choices=("steps", "epochs"))
    mode: str = option("rolling", "rolling: rows as trained; full: re-encode all", choices=("rolling", "full"))
    max_drift: float | None = option(
        None, "also rebuild when 1 − mean cosine on the probe passes this", above=0, high=2
    )
    check_every: int = option(50, "steps between drift checks", low=1)
    probe_rows: int = option(256, "rows of the fixed random probe that drift is measured on", low=1)


@dataclass
class SgdOptim:
    type: str = "sgd"
    lr: float = option(0.06, "peak learning rate", above=0)
    weight_decay: float = option(5e-4, "of weights, not of biases and norms", low=0)
    momentum: float = option(0.9, "momentum", low=0, high=0.999)
    warmup: int = option(0, "steps of linear warm-up", low=0)


@dataclass
class AdamOptim:
    type: str = "adamw"
    lr: float = option(1e-3, "peak learning rate", above=0)
    weight_decay: float = option(1e-4, "of weights, not of biases and norms", low=0)
    betas: list[float] = option([0.9, 0.999], "decay of the two moments")
    warmup: int = option(0, "steps of linear warm-up", low=0)


@dataclass
class Evaluation:
    every: int = option(500, "steps between kNN evaluations during the run", low=1)
    knn_k: int = option(20, "neighbours of the weighted kNN", low=1)
    max_rows: int = option(50_000, "training rows used for kNN and the linear probe, a fixed random subset", low=2)
    global_rows: int = option(10_000, "training rows of the global loss and view retrieval", low=6)


@dataclass
class Run:
    dir: str = option("runs/run", "where everything of the run is written")
    seed: int = option(0, "of initial weights, batches, views and chains", low=0)
    steps: int | None = option(None, "optimiser steps; comes before run.epochs", low=1)
    epochs: int | None = option(None, "passes over the data set", low=1)
    checkpoint_every: int = option(500, "steps between checkpoints", low=1)
    log_every: int = option(20, "steps between rows of metrics.jsonl", low=1)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")
    precision: str = option("auto", "auto: bf16 where the machine is fast at it", choices=("auto", "float32", "bf16"))
    compile: bool = option(False, "torch.compile the encoder")


# --- ablation of proposals --------------------------------------------------------------------------------------------


def _all_proposals() -> list[Any]:
    return [UniformProposal(), NearestProposal(), HeadTailProposal(), CellsProposal(), StaleSoftmaxProposal()]


PROPOSALS_HELP = "the proposals to compare, a list such as [{type: uniform}, {type: nearest, k: 32}]"
BUDGETS, BUDGETS_HELP = [1, 2, 4, 8, 16, 32, 64], "draws R an anchor that everything is reported for"
ANCHORS_HELP = "anchors measured, a fixed random subset; all rows where there are fewer"
QUERIES_HELP = "what is searched with: the anchor's bank row, known before the forward pass, or its fresh embedding"


@dataclass
class LiveAblation:
    every: int | None = option(None, "steps between ablations inside the run; None: never", low=1)
    temperatures: list[float] | None = option(None, "τ of the targets; None: loss.temperature", above=0)
    proposals: list[Any] = field(default_factory=_all_proposals, metadata={"help": PROPOSALS_HELP})
    budgets: list[int] = option(BUDGETS, BUDGETS_HELP, low=1)
    anchors: int = option(256, ANCHORS_HELP, low=2)
    queries: list[str] = option(["bank"], QUERIES_HELP, choices=("bank", "fresh"))


@dataclass
class GradientError:
    """The method's gradient against the exact one of the global loss, inside a run (train/gradient.py)."""

    steps: list[int] = option([], "optimiser steps after which it is measured; small data only: O(N²) scores", low=1)
    draws: int = option(32, "gradients, each of one batch", low=2)


@dataclass
class NpySource:
    """An .npy file of embeddings as the truth; the bank is a copy of it, moved by Gaussian noise."""

    type: str = "npy"
    path: str = option("", "the .npy file, floating point (N, D); rows are normalised")
    cosines: list[float] = option([0.99, 0.97, 0.9, 0.77], "mean cosines of the banks to the truth", above=0, high=1)
    factory: str = option("auto", "of the banks' index: auto, exact, or a Faiss factory string such as IVF1024,Flat")
    target_recall: float = option(0.95, "recall that an approximate index is tuned to", above=0, high=1)


@dataclass
class SnapshotsSource:
    """Two snapshots of one run: the older as the bank, the newer as the truth."""

    type: str = "snapshots"
    bank: str = option("", "folder of the older snapshot, such as RUN_DIR/checkpoints/step_00000500/snapshot")
    truth: str = option("", "folder of the newer snapshot, which has every row written")


@dataclass
class Ablation:
    """What `negbank ablate` can be told."""

    source: Any = field(default_factory=NpySource)
    temperatures: list[float] = option([0.07], "τ of the targets, and of proposals without one of their own", above=0)
    proposals: list[Any] = field(default_factory=_all_proposals, metadata={"help": PROPOSALS_HELP})
    budgets: list[int] = option(BUDGETS, BUDGETS_HELP, low=1)
    anchors: int = option(256, ANCHORS_HELP, low=2)
    queries: list[str] = option(["bank"], QUERIES_HELP, choices=("bank", "fresh"))
    out: str = option("ablation", "folder of the results")
    seed: int = option(0, "of the anchors, the noise and the index", low=0)


# --- comparison of methods --------------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """What `negbank compare` can be told."""

    base: dict[str, Any] = option({}, "a run's configuration with run.steps: what all methods have in common")
    methods: dict[str, Any] = option(
        {}, "name: what differs from base, such as {simclr: {negatives: {type: in_batch}}}"
    )
    reference: str | None = option(
        None, "the method whose encodings are the budget of equal encodings; None: the first"
    )
    seeds: list[int] = option([0, 1, 2], "run.seed of the repetitions", low=0)
    lr: list[float] = option([1e-3], "optim.lr, for all methods alike; of several each has its best", above=0)
    tune_seed: int | None = option(None, "run.seed of the runs that choose among several lr; none of seeds", low=0)
    equal: list[str] = option(["steps", "encodings"], "what is equal between methods", choices=("steps", "encodings"))
    gradient_error: GradientError = field(default_factory=GradientError)
    out: str = option("runs/compare", "folder of the runs and the results")
    jobs: int = option(1, "runs at once, each with its share of the cores; timings can be compared with 1 only", low=1)


BUNDLED = ("mnist5k", "digits")
DOWNLOADED = ("cifar10", "cifar100", "stl10", "fashion_mnist")
TYPES: dict[str, dict[str, type]] = {
    "data": {
        **dict.fromkeys(BUNDLED, BundledData),
        **dict.fromkeys(DOWNLOADED, TorchvisionData),
        "image_folder": FolderData,
    },
    "encoder": {"convnet": ConvNetEncoder, "resnet18": ResNetEncoder, "resnet50": ResNetEncoder},
    "batches": {
        "uniform": UniformBatches,
        "knn": KnnBatches,
        "prosampler": ProSamplerBatches,
        "spectral": SpectralBatches,
        "ordered": OrderedBatches,
        "drawn": DrawnBatches,
    },
    "negatives": {
        "emc2": Emc2Negatives,
        "importance": ImportanceNegatives,
        "in_batch": InBatchNegatives,
        "sogclr": SogClrNegatives,
        "isogclr": ISogClrNegatives,
        "dcl": DclNegatives,
        "hcl": HclNegatives,
        "moco": MocoNegatives,
        "hardest": HardestNegatives,
        "negative_cache": NegativeCacheNegatives,
    },
    "negatives.proposal": {
        "head_tail": HeadTailProposal,
        "nearest": NearestProposal,
        "cells": CellsProposal,
        "stale_softmax": StaleSoftmaxProposal,
        "uniform": UniformProposal,
    },
    "optim": {"adamw": AdamOptim, "adam": AdamOptim, "sgd": SgdOptim, "lars": SgdOptim},
    "source": {"npy": NpySource, "snapshots": SnapshotsSource},
}
TYPES["proposals"] = TYPES["ablation.proposals"] = TYPES["batches.proposal"] = TYPES["negatives.proposal"]
"""Keys whose `type` picks their dataclass of options, of one value or of each in a list. The first is the default."""


@dataclass
class Config:
    data: Any = field(default_factory=BundledData)
    encoder: Any = field(default_factory=ConvNetEncoder)
    batches: Any = field(default_factory=UniformBatches)
    negatives: Any = field(default_factory=Emc2Negatives)
    loss: Loss = field(default_factory=Loss)
    index: IndexOptions = field(default_factory=IndexOptions)
    refresh: Refresh = field(default_factory=Refresh)
    optim: Any = field(default_factory=AdamOptim)
    eval: Evaluation = field(default_factory=Evaluation)
    ablation: LiveAblation = field(default_factory=LiveAblation)
    gradient_error: GradientError = field(default_factory=GradientError)
    run: Run = field(default_factory=Run)
