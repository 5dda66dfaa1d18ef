"""Several proposals, one of them at random for every draw:

    q_i(j) = Σ_m w_m q_im(j),        w_m > 0, Σ_m w_m = 1

The density is that of the mixture, whichever component a draw came from: it is not the component's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from negbank.counter import uniforms
from negbank.proposals.contract import Anchors, Proposal, ProposalDistribution


class Mixture:
    """A mixture of proposals over the same D_i.

    Args:
        proposals: the components, bound to one snapshot and with the same exclusions.
        weights: one a component, > 0; they are divided by their sum.

    Raises:
        ValueError: for no component, or weights that are not one positive number a component.
    """

    def __init__(self, proposals: Sequence[Proposal], weights: Sequence[float]) -> None:
        if not proposals or len(weights) != len(proposals):
            raise ValueError(
                f"weights: {len(weights)} for {len(proposals)} proposals; give one a proposal, at least one"
            )
        if not all(0 < w < float("inf") for w in weights):
            raise ValueError(
                f"weights={list(weights)}: expected finite values above 0; leave out what is not drawn from"
            )
        self._proposals = list(proposals)
        self._weights = torch.tensor(weights, dtype=torch.float64) / sum(weights)

    def __call__(self, anchors: Anchors) -> MixtureDistribution:
        return MixtureDistribution([proposal(anchors) for proposal in self._proposals], self._weights)


class MixtureDistribution:
    """Σ_m w_m q_im for weights (M,) that sum to 1."""

    def __init__(self, components: Sequence[ProposalDistribution], weights: Tensor) -> None:
        self._components, self._weights = components, weights

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """See `ProposalDistribution.sample`. Draws n from every component and keeps one of them at each place."""
        drawn = torch.stack([component.sample(n, generator=generator) for component in self._components])
        point = uniforms(drawn.shape[1:], generator=generator, device=drawn.device)
        bounds = self._weights.cumsum(0)[:-1].to(drawn.device)
        return drawn.gather(0, torch.searchsorted(bounds, point, right=True)[None])[0]

    def log_prob(self, ids: Tensor) -> Tensor:
        """See `ProposalDistribution.log_prob`."""
        parts = torch.stack([component.log_prob(ids) for component in self._components])
        return torch.logsumexp(parts + self._weights.log().to(parts.device)[:, None, None], 0)

    def __getitem__(self, anchors: slice) -> MixtureDistribution:
        """See `ProposalDistribution.__getitem__`."""
        return MixtureDistribution([component[anchors] for component in self._components], self._weights)
