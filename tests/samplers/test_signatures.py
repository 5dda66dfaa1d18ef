"""Constructors are the schema of YAML: a sampler says its options, bounds and help in its own signature."""

from __future__ import annotations

import inspect
import re

import pytest

from negbank.samplers import batches, negatives

NEGATIVES = ["Dcl", "Emc2", "Hardest", "Hcl", "ISogClr", "Importance", "InBatch", "Mined", "Moco", "NegativeCache",
             "SogClr"]  # fmt: skip
BATCHES = ["Drawn", "Knn", "Ordered", "ProSampler", "Spectral", "UniformBatches"]
SAMPLERS = [getattr(negatives, name) for name in NEGATIVES] + [getattr(batches, name) for name in BATCHES]
LITERALS = (int, float, str, bool, type(None))
SUPPLIED = {"counter"}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.__name__)
def test_every_argument_is_annotated_and_explained_and_defaults_are_literals(sampler):
    assert "__init__" in vars(sampler)
    signature = inspect.signature(sampler.__init__)
    explained = re.findall(r"^        (\w+): \S", inspect.getdoc(sampler).replace("\n", "\n    "), re.MULTILINE)
    for name, parameter in list(signature.parameters.items())[1:]:
        assert parameter.annotation is not inspect.Parameter.empty
        assert name in explained, name
        if parameter.default is not inspect.Parameter.empty and name not in SUPPLIED:
            assert isinstance(parameter.default, LITERALS)


@pytest.mark.parametrize("sampler", SAMPLERS[: len(NEGATIVES)], ids=lambda sampler: sampler.__name__)
def test_negatives_declare_what_they_need(sampler):
    sizes = {"num_rows": 20} if "num_rows" in inspect.signature(sampler).parameters else {}
    made = sampler(temperature=0.2, **sizes, **({"draws": 0} if sampler is negatives.Importance else {}),
                   **({"proposals": "in_batch"} if sampler is negatives.Emc2 else {}))  # fmt: skip
    assert made.requires in ("uniform", "known", "any")
    assert made.reads_snapshot == (sampler in (negatives.Hardest, negatives.Mined))
    assert made.fresh_queries is False
    assert (made.momentum is not None) == (sampler is negatives.Moco)
    assert made.learned == ()


def test_what_reads_a_snapshot_depends_on_options():
    bind = lambda snapshot: None  # noqa: E731
    assert negatives.NegativeCache(20, temperature=0.2, search="index").reads_snapshot
    assert negatives.Importance(20, temperature=0.2, proposal=bind).reads_snapshot
    assert negatives.Emc2(20, temperature=0.2, proposal=bind).reads_snapshot
    assert negatives.Emc2(20, temperature=0.2, proposals="in_batch", score="delayed").reads_snapshot
