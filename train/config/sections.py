"""The options that belong to a run and not to a method: its loss, its own, and what all types of a section have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from negbank.train.config.reading import Typed
from negbank.train.config.scalars import Flag, Number, Text, Whole, settled, steps

Count = Annotated[Whole, Field(ge=1)]
Steps = Annotated[int | float, BeforeValidator(steps)]


class Options(BaseModel):
    """One section: no key but its own."""

    sections: ClassVar[Mapping[str, str]] = {}
    """Key → kind, of the options that are sections themselves."""
    model_config = ConfigDict(extra="forbid", validate_default=True, validate_assignment=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _as_typed(cls, data: Any) -> Any:
        """Plain scalars of YAML as the type of their key wants them."""
        return {key: cls._settled(key, value) for key, value in data.items()} if isinstance(data, Mapping) else data

    @classmethod
    def _settled(cls, key: Any, value: Any) -> Any:
        if key in cls.sections:
            return value.value if isinstance(value, Typed) else value
        return settled(value, cls.model_fields[key].annotation if key in cls.model_fields else Any)


def option(default: Any, help: str) -> Any:
    """A field with its default and its help."""
    return Field(default, description=help)


class Loss(Options):
    """The contrastive loss."""

    temperature: Annotated[Number, Field(gt=0)] = option(0.1, "τ = 1/β of the loss and of targets")


class Run(Options):
    """A run: where it writes, how long it is, and on what it runs."""

    dir: Text = option("runs/run", "where everything of the run is written")
    seed: Annotated[Whole, Field(ge=0, lt=2**62)] = option(0, "of weights, batches, views and draws")
    steps: Count | None = option(None, "optimiser steps; comes before run.epochs")
    epochs: Count | None = option(None, "passes over the data set")
    micro_batch: Count | None = option(None, "inputs encoded at once, by gradient caching; None: all; no batch norm")
    checkpoint_every: Count = option(500, "steps between checkpoints")
    keep_best: Text | None = option(
        None, "measure of eval by which the best checkpoint is kept, too, such as mrr@10; with a - before it the lowest"
    )
    patience: Count | None = option(None, "evaluations without a better keep_best after which a run ends; None: never")
    log_every: Count = option(20, "steps between rows of metrics.jsonl")
    device: Text = option("auto", "auto, cpu, cuda, cuda:1, ...")
    precision: Literal["auto", "float32", "bf16"] = option("auto", "auto: bf16 where the machine is fast at it")
    compile: Flag = option(False, "torch.compile the encoder")


class Data(Options):
    rows: Annotated[Whole, Field(ge=2)] | None = option(None, "train on so many rows, a fixed random subset; None: all")
    workers: Annotated[Whole, Field(ge=0)] = option(0, "processes that read batches ahead of the step; 0: in the step")


class Batches(Options):
    space: Literal["left", "right", "mean"] = option(
        "mean", "of pairs: whose bank batches are planned from: left, right, or the mean of both"
    )


class Optim(Options):
    schedule: Literal["cosine", "constant"] = option("cosine", "of the learning rate after the warm-up")
    warmup: Annotated[Steps, Field(ge=0)] = option(0, "steps of linear warm-up; below 1: a share of the run")


class Eval(Options):
    every: Count = option(500, "steps between evaluations during the run")


COMMON: dict[str, type[Options]] = {"data": Data, "batches": Batches, "optim": Optim, "eval": Eval}
"""What every type of a kind has, too."""
