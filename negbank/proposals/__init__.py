"""Proposal distributions q_i over the allowed rows D_i of an anchor i, with exact densities.

A proposal is bound to one snapshot. Called with anchors it gives their distributions, in the conventions of
`torch.distributions`, batched over anchors: `sample(n)` never leaves D_i, `log_prob(ids)` is exact and normalised over
D_i, and −∞ outside of it. Every proposal has full support on D_i, or the chain that uses it could not reach some rows.
"""

from negbank.proposals.contract import Anchors, Proposal, ProposalDistribution
from negbank.proposals.nearest import Nearest
from negbank.proposals.uniform import Uniform

__all__ = ["Anchors", "Nearest", "Proposal", "ProposalDistribution", "Uniform"]
