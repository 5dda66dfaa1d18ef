"""A module of your own: called once before a run, on a few rows, and told in one sentence what does not fit.

A run takes any module from inputs to embeddings (n, D). Rows that are not of norm 1 in float32, as under autocast or
without normalisation, are scaled to it (`Unit`); features for evaluation are those of its `backbone` where it has one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from negbank.train.data.contract import Data

ROWS = 4
"""Rows that it is tried on, at most."""
CLOSE = 1e-4
"""How far a norm may be from 1."""


class Unit(nn.Module):
    """A module with its embeddings scaled to norm 1, in float32 or float64.

    Attributes:
        module: inputs → embeddings (n, D) of any norm.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @property
    def backbone(self) -> Callable[..., Tensor]:
        """What gives features: the module's own backbone, or the module, before its rows are scaled."""
        found: Callable[..., Tensor] = getattr(self.module, "backbone", self.module)
        return found

    def forward(self, inputs: Any) -> Tensor:
        """Embeddings (n, D) of norm 1."""
        found: Tensor = self.module(inputs)
        return F.normalize(found.to(torch.promote_types(found.dtype, torch.float32)), dim=1)


def fitting(
    module: nn.Module, data: Data, *, device: torch.device, autocast: Callable[[], Any]
) -> tuple[nn.Module, list[str]]:
    """The module as a run takes it, and notes on what was done to it or is missing.

    Args:
        module: yours, on the device.
        data: what it will read.
        autocast: a context factory of the run's precision.

    Raises:
        ValueError: for weights that cannot be trained, a call that fails, or what are no embeddings (n, D).
    """
    _require_weights(module)
    rows = torch.arange(min(ROWS, len(data)))
    inputs = data.read(rows, None).to(device)
    found = _called(module, module, inputs, autocast, "encoder: ")
    if found.ndim != 2 or len(found) != len(rows):
        raise ValueError(
            f"encoder: gave shape {tuple(found.shape)} for {len(rows)} inputs; have it give embeddings (n, D), one row "
            f"an input"
        )
    if found.shape[1] < 2:
        raise ValueError(f"encoder: gives embeddings of width {found.shape[1]}; unit rows need at least 2")
    norms = found.to(torch.promote_types(found.dtype, torch.float32)).norm(dim=1)
    if not bool((torch.isfinite(norms) & (norms > 0)).all()):
        raise ValueError(
            f"encoder: gives rows of norms {norms.tolist()}, and one that is zero or not finite has no direction; look "
            f"at its weights, and at what the data gives it"
        )
    notes = []
    whole = found.dtype in (torch.float32, torch.float64) and bool((norms - 1).abs().max() < CLOSE)
    if not whole:
        notes.append("encoder: its embeddings are not of norm 1 in float32, and are scaled to it")
    taken = module if whole else Unit(module)
    if hasattr(module, "backbone"):
        features = _called(module, module.backbone, inputs, autocast, "encoder: its `backbone` ")
        if features.ndim != 2 or len(features) != len(rows):
            raise ValueError(
                f"encoder: its `backbone` gave shape {tuple(features.shape)} for {len(rows)} inputs; have it give "
                f"features (n, F), or call it another name"
            )
    else:
        notes.append("encoder: has no `backbone`, so the features that are evaluated are what it gives itself")
    return taken, notes


def _require_weights(module: nn.Module) -> None:
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not trained:
        raise ValueError("encoder: no parameter of it requires a gradient, so nothing would be learned; unfreeze some")
    half = next((name for name, p in trained if p.dtype not in (torch.float32, torch.float64)), None)
    if half is not None:
        raise ValueError(
            f"encoder: its parameter {half} is {dict(trained)[half].dtype}, in which small steps are lost; give "
            f"encoder.float(), and run.precision=bf16 for speed"
        )


@torch.no_grad()
def _called(module: nn.Module, function: Any, inputs: Any, autocast: Callable[[], Any], what: str) -> Tensor:
    """What a function of the module gives in evaluation mode, a floating tensor."""
    training = module.training
    module.eval()
    try:
        with autocast():
            found = function(inputs)
    except Exception as error:  # a module may raise anything; all of it means that the two do not fit
        shown = f"{tuple(inputs.shape)} {inputs.dtype}" if isinstance(inputs, Tensor) else type(inputs).__name__
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{what}fails on inputs {shown} ({reason}); have it take what the data gives") from error
    finally:
        module.train(training)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        kind = str(found.dtype) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{what}gives a {kind}; have it give a floating tensor (n, D)")
    return found
