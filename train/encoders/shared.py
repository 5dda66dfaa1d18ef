"""The left side's encoder for the right side, too."""

from __future__ import annotations

from torch import nn


def left() -> nn.Module:
    """The left side's encoder, weights and all; for encoder_right alone.

    Raises:
        ValueError: where it is asked for as anything else, for then there is nothing to share.
    """
    raise ValueError(
        "encoder.type=left: shares the left side's encoder with the right; name an encoder of its own here"
    )
