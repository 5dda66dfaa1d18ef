"""Normalisation layers by name.

Batch norm makes the embedding of a row depend on the rows beside it. Where rows are encoded in several passes (an
anchor with its batch, then its negatives; a large batch in parts) the passes would see different statistics: use group
norm there, which knows only the row itself, has no running statistics and does the same in training and evaluation.
Groups have 16 channels (Wu & He 2018, Group Normalization, arXiv:1803.08494, table 3).
"""

from torch import nn

CHANNELS_PER_GROUP = 16


def norm2d(norm: str, channels: int) -> nn.Module:
    """The layer that normalises feature maps (B, channels, H, W).

    Args:
        norm: "batch", "group" or "none" (the identity).
        channels: of the feature maps; for "group" a multiple of 16.

    Raises:
        ValueError: for another name, or channels that do not divide into groups.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        if channels % CHANNELS_PER_GROUP:
            raise ValueError(
                f"norm='group' has groups of {CHANNELS_PER_GROUP} channels, but a layer has {channels}: "
                f"choose widths that are multiples of {CHANNELS_PER_GROUP}, or norm='batch'"
            )
        return nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)
    if norm == "none":
        return nn.Identity()
    raise ValueError(f"norm={norm!r} is unknown: choose 'batch', 'group' or 'none'")
