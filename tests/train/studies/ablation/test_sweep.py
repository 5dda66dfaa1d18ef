"""What `ablate` refuses."""

from __future__ import annotations

import math

import pytest
import torch

from negbank import Exclusions
from negbank.proposals import Uniform
from negbank.train.studies.ablation.sweep import ablate


def test_a_proposal_over_other_rows_is_refused(world):
    truth, bank = world
    grouped = Exclusions(40, groups=torch.arange(40) // 5)
    with pytest.raises(ValueError, match=r"'u' is no density over D_i for anchors .* bind it with the same `exclude`"):
        ablate(bank, truth, {"u": lambda s: Uniform(s, exclude=grouped)})
    assert ablate(bank, truth, {"u": lambda s: Uniform(s, exclude=grouped)}, exclude=grouped, budgets=[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truth": torch.ones(39, 6)}, r"truth: shape \(39, 6\)"),
        ({"truth": torch.full((40, 6), math.nan)}, "truth: 40 row"),
        ({"temperatures": [0.1, -1]}, "temperatures"),
        ({"budgets": [0, 2]}, "budgets"),
        ({"queries": ["stale"]}, "queries"),
        ({"anchors": 1}, "anchors=1"),
        ({"proposals": {}}, "proposals"),
    ],
)
def test_bad_arguments_are_named(world, change, message):
    truth, bank = world
    arguments = {"bank": bank, "truth": truth, "proposals": {"u": Uniform}, **change}
    with pytest.raises(ValueError, match=message):
        ablate(**arguments)
