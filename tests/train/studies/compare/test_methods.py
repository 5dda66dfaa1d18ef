"""A method is base with its changes; all mistakes are named before anything runs."""

from __future__ import annotations

import pytest
import yaml

from negbank.train.commands import main
from negbank.train.config import ConfigError, parse

RUN = {
    "data": {"type": "digits", "rows": 300},
    "encoder": {"width": 8, "features": 16, "projector": {"hidden": 16, "dim": 8}},
    "batches": {"batch_size": 8},
    "refresh": {"every": 2, "unit": "steps"},
    "eval": {"every": 2, "max_rows": 100, "global_rows": 50},
    "run": {"steps": 6, "log_every": 2},
}


METHODS = {
    "simclr": {"negatives": {"type": "in_batch"}},
    "moco": {"negatives": {"type": "moco", "queue": 16}},
    "logq": {"negatives": {"type": "importance", "draws": 4, "proposal": {"type": "nearest", "k": 4}}},
}


@pytest.fixture
def problems(comparison):
    """What is wrong with a comparison."""

    def found(**changes):
        with pytest.raises(ConfigError) as error:
            comparison("out", **changes)
        return error.value.problems

    return found


def test_a_method_is_base_with_its_changes(comparison, configs_of):
    base = {**RUN, "negatives": {"type": "sogclr", "gamma": 0.3, "decay": 5}, "loss": {"temperature": 0.3}}
    methods = {
        "same": None,
        "isogclr": {"negatives": {"type": "isogclr", "rho": 0.2}},
        "dcl": {"negatives": {"type": "dcl"}, "loss": {"temperature": 0.5}},
        "knn": {"negatives": {"type": "hardest"}, "batches": {"type": "knn", "neighbors": 7}},
    }
    configs = configs_of(comparison("out", base=base, methods=methods))
    assert [config.negatives.type for config in configs.values()] == ["sogclr", "isogclr", "dcl", "hardest"]
    assert configs["isogclr"].negatives.gamma == 0.3  # an option that both types have, as by an override
    assert configs["dcl"].loss.temperature == 0.5
    assert configs["same"].loss.temperature == configs["knn"].loss.temperature == 0.3
    assert (configs["knn"].batches.neighbors, configs["knn"].batches.batch_size) == (7, 8)


def test_mistakes_are_all_named_before_anything_runs(problems):
    found = problems(
        base={**RUN, "loss": {"temprature": 1}, "optim": {"lr": 0.1}},
        methods={"a": {"negatives": {"type": "emc3"}}, "b": {"loss": {"temperature": -1}, "run": {"seed": 1}}},
        reference="c",
        lr=[0.1, 0.2],
    )
    expected = ["base.loss.temprature: no such key", "base.optim.lr: set by lr", "methods.a.negatives.type: 'emc3'",
                "methods.b.loss.temperature: -1, expected more than 0", "methods.b.run: is the same for all",
                "methods.b.run.seed: set by seeds", "reference: 'c' is none of methods", 
                "tune_seed: several lr"]  # fmt: skip
    assert [sum(problem.startswith(start) for problem in found) for start in expected] == [1] * len(expected)
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune_seed": 0}, "tune_seed: 0 is among seeds"),
        ({"methods": {}}, "methods: is empty"),
        ({"methods": {"a/b": {}}}, "methods.a/b: is the name of a folder"),
        ({"methods": {"a": 3}}, "methods.a: 3, expected what differs"),
        ({"gradient_error": {"steps": [7]}}, "gradient_error.steps: [7] of run.steps=6 steps"),
        ({"gradient_error": {"steps": [4]}, "equal": ["encodings"]}, "gradient_error.steps: measured in runs at equal"),
        ({"seeds": [1, 1]}, "seeds[1]: the same as seeds[0]"),
        ({"equal": ["time"]}, "equal[0]: 'time', expected one of steps, encodings"),
        ({"base": {**RUN, "run": {"epochs": 1}}}, "base.run.steps: set it"),
    ],
)
def test_what_cannot_be_compared_is_refused(problems, changes, message):
    assert any(problem.startswith(message) for problem in problems(**changes))


def test_an_override_changes_a_method(tmp_path, configs_of):
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump({"base": RUN, "methods": METHODS}))
    assert main(["validate", str(path)]) == 0
    data = yaml.safe_load(path.read_text())
    config, notes = parse(data, ["methods.moco.negatives.type=dcl", "seeds=[4]"], root="compare")
    assert configs_of(config)["moco"].negatives.type == "dcl"
    assert notes == ["methods.moco.negatives.type=dcl: dropped methods.moco.negatives.queue, an option of moco"]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"negatives": {"type": "importance", "query": "fresh"}}, "negatives.query: fresh encodes drawn rows"),
        (
            {"negatives": {"type": "emc2"}, "batches": {"type": "knn", "neighbors": 5}},
            "takes the batch's rows for uniform draws",
        ),
        ({"negatives": {"type": "hardest", "k": 400}}, "k=400: expected 1..299"),
        ({"negatives": {"type": "in_batch"}, "batches": {"type": "knn", "neighbors": 400}}, "neighbors=400"),
        ({"negatives": {"type": "in_batch"}, "batches": {"type": "ordered", "pool": 2, "keep": 3}}, "keep=3"),
        ({"negatives": {"type": "isogclr", "lowest": 0.2}}, "lowest=0.2, highest=0.7"),
        ({**METHODS["logq"], "index": {"factory": "bogus"}}, "index.factory='bogus': Faiss refuses"),
        (
            {"negatives": {"type": "in_batch"}, "batches": {"type": "knn", "neighbors": 5, "groups": "none.npy"}},
            "batches.groups=none.npy: no such file or folder",
        ),
    ],
)
def test_what_does_not_fit_the_data_is_said_before_anything_runs(
    method, message, tmp_path, in_process, study, comparison
):
    ran, _ = in_process
    with pytest.raises(ConfigError) as error:
        study(comparison(tmp_path / "out", methods={"simclr": METHODS["simclr"], "bad": method}))
    (problem,) = error.value.problems
    assert problem.startswith(("methods.bad: ", "methods.bad."))
    assert message in problem
    assert not ran
    assert not (tmp_path / "out").exists()
