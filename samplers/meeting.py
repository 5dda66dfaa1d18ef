"""How the rows of a batch met: what a batch sampler knows of it, and sampled softmax asks (negatives/importance.py)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Meeting(Protocol):
    """Of one batch of rows (B,), whose rows are not uniform draws."""

    @property
    def counts(self) -> Tensor:
        """(B,) float64: how often each row came, and is to count as an anchor."""
        ...

    @property
    def mean(self) -> float:
        """Of `counts`, over the whole batch."""
        ...

    def ratio(self, ids: Tensor, times: Tensor, expected: Tensor) -> Tensor:
        """How often each row is among the step's candidates over how often it was to be expected: (B, n) float64.

        For anchors i counted as often as they came E Σ_j ratio_i(j) f(i, j) = Σ_{j∈D_i} f(i, j).

        Args:
            ids: (n,) distinct rows, those of the batch among them.
            times: (B, n) or (1, n), how often the step has drawn each row by other means, for each anchor or for all.
            expected: the same shape, the density of those draws times their number.
        """
        ...


class Part(NamedTuple):
    """The `Meeting` of some rows, as anchors, of a batch of `size`."""

    whole: Meeting
    size: int
    rows: slice

    @property
    def counts(self) -> Tensor:
        """See `Meeting.counts`."""
        return self.whole.counts[self.rows]

    @property
    def mean(self) -> float:
        """See `Meeting.mean`."""
        return self.whole.mean

    def ratio(self, ids: Tensor, times: Tensor, expected: Tensor) -> Tensor:
        """See `Meeting.ratio`."""
        if len(expected) > 1:  # draws of each anchor's own, of no meaning for the others
            others = expected.new_zeros(self.size, len(ids))
            mine, others[self.rows] = others.clone(), expected
            mine[self.rows] = times
            times, expected = mine, others
        return self.whole.ratio(ids, times, expected)[self.rows]
