"""HCL (Robinson et al. 2021): DCL under a law of negatives that prefers the hard ones, q_b ∝ exp(b βs).

The mathematics, shared with DCL, which is b = 0, is in `dcl.py`.
"""

from __future__ import annotations

from negbank.bounds import Annotated, Ge, Lt, Positive, checked
from negbank.exclusions import Exclusions
from negbank.samplers.negatives.contract import EncodedBatch, Info, Negatives, NegativeSampler, Ticket
from negbank.samplers.negatives.dcl import debiased


class Hcl(NegativeSampler):
    """HCL: DCL with harder negatives than those of the batch.

    Args:
        temperature: τ = 1/β.
        tau_plus: τ⁺, probability that a row is of the anchor's class: one over the number of classes or so.
        concentration: b, β of the paper: how much harder; 0 is DCL.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
    """

    @checked
    def __init__(
        self,
        *,
        temperature: Positive,
        tau_plus: Annotated[float, Ge(0), Lt(1)] = 0.1,
        concentration: Annotated[float, Ge(0)] = 1.0,
        exclude: Exclusions | None = None,
    ) -> None:
        self._temperature, self._tau_plus, self._concentration = temperature, tau_plus, concentration
        self._exclude = exclude

    def __call__(self, batch: EncodedBatch, ticket: Ticket | None = None) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`."""
        return debiased(
            batch, self._exclude, temperature=self._temperature, prior=self._tau_plus, b=self._concentration
        )
