"""Train from Python: your own data and your own module, everything else by the names and options of YAML.

found = negbank.fit(data, encoder, negatives="sogclr", run={"steps": 1000, "dir": "runs/mine"})
vectors = found.encoder(inputs)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.data import TensorDataset

from negbank.train.config import parse
from negbank.train.data.contract import Data, Pairs, Splits
from negbank.train.data.dataset import FromDataset
from negbank.train.data.tensors import TensorData
from negbank.train.lengthen import LENGTH
from negbank.train.run import resume as resume_run
from negbank.train.run import start

OWN = "was given from Python: call negbank.fit again with resume=True"


class Fitted(NamedTuple):
    """The trained module (of pairs one for each side) in evaluation mode, and what the run's summary.json says."""

    encoder: Any
    summary: dict[str, Any]


def fit(
    data: Any,
    encoder: nn.Module | Sequence[nn.Module] | None = None,
    *,
    test: Any = None,
    overwrite: bool = False,
    resume: bool = False,
    **sections: str | Mapping[str, Any],
) -> Fitted:
    """Pre-train a module on data of your own.

    Args:
        data: a `Data`, a map-style torch `Dataset`, a tensor (N, ...), a pair of two of these, `Pairs` or `Splits`.
        encoder: inputs → embeddings (n, D), which are normalised if they are not; of pairs two, or one for both. None:
            the one that the section `encoder` names.
        test: held-out data of the same kind, for evaluation.
        overwrite: whether a run that run.dir holds already is replaced.
        resume: whether that run goes on instead, for run["steps"] steps in all.
        sections: the sections of YAML by name, each a mapping of its options or the name of its type alone.

    Returns:
        The module and the summary.

    Raises:
        ConfigError, ValueError: for options or data that do not fit.
        RunError: when run.dir holds a run already.
    """
    given: dict[str, Any] = {k: {"type": v} if isinstance(v, str) else dict(v) for k, v in sections.items()}
    given["data"] = {"type": "own", **given.get("data", {})}
    if encoder is not None:
        given["encoder"] = {"type": "own"}
    config, _ = parse(given, source="fit")
    splits = data if isinstance(data, Splits) else Splits(as_data(data), None if test is None else as_data(test), ())
    kept: list[nn.Module] = []
    if resume:
        length = {key: value for key, value in given.get("run", {}).items() if key in LENGTH and value is not None}
        changed = [f"run.{key}={value}" for key, value in length.items()]
        summary = resume_run(Path(config.run.dir), changed, encoder=encoder, splits=splits, keep=kept)
    else:
        summary = start(config, overwrite=overwrite, encoder=encoder, splits=splits, keep=kept)
    trained = [module.eval() for module in kept]
    return Fitted(trained[0] if len(trained) == 1 else trained, summary)


def as_data(data: Any) -> Data | Pairs:
    """What people have as `Data`: a tensor, a torch `Dataset`, a pair of two of these.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(data, Pairs):
        return data
    if isinstance(data, tuple) and len(data) == 2:
        left, right = (as_data(side) for side in data)
        if not isinstance(left, Pairs) and not isinstance(right, Pairs):
            return Pairs(left, right, None)
    if isinstance(data, Tensor | TensorDataset):
        return TensorData(data)
    if hasattr(data, "read") and hasattr(data, "__len__"):
        found: Data = data
        return found
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return FromDataset(data)
    raise TypeError(
        f"data: {type(data).__name__}, expected a tensor, a torch Dataset with a length, a pair of two of these, or an "
        f"object with __len__, read(rows, seeds) and labels (negbank.train.data.contract.Data)"
    )


def own() -> Any:
    """Data or a module that a script gave; such a run is resumed by the script.

    Raises:
        ValueError: always: YAML cannot make it.
    """
    raise ValueError(f"type=own: {OWN}")


__all__ = ["Fitted", "as_data", "fit", "own"]
