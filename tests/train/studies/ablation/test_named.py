"""What proposals are called, and what they adapt to."""

from __future__ import annotations

import numpy as np

from negbank.train.config import parse
from negbank.train.studies.ablation.named import label


def test_a_proposal_that_adapts_is_fitted_to_the_truth(no_figures, make, npy, tmp_path, clustered, study, table):
    np.save(npy, clustered(300, dim=8, clusters=6).numpy())
    near = {"type": "nearest", "k": 8, "floor": 0.05}
    study(make(source={"path": str(npy), "cosines": [0.6]}, proposals=[near, {**near, "adapt": True}], anchors=200))
    plain, adapted = table(tmp_path / "out")[::2]
    assert (plain["proposal"], adapted["proposal"]) == ("Nearest k=8, floor 0.05", "Nearest k=8, floor 0.05, adapt")
    assert float(adapted["ess"]) > 1.1 * float(plain["ess"])


def test_names_say_k_and_floor_and_what_is_not_the_default():
    options = parse(
        {
            "source": {"path": "x"},
            "proposals": [{"type": "head_tail"}, {"type": "cells", "temperature": 0.2}, {"type": "uniform"}],
        },
        root="ablate",
    )[0].proposals
    assert [label(each) for each in options] == [
        "HeadTail k=64, floor 0.1",
        "Cells temperature 0.2, floor 0.1",
        "Uniform",
    ]
