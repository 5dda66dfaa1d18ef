"""A comparison's cells, budgets and choices, and its folder through interruptions and reruns."""

from __future__ import annotations

import copy
import csv
import json
import math
import re
import statistics
import subprocess
import sys

import pytest
import yaml

from negbank.train.build import build
from negbank.train.commands import main
from negbank.train.config import ConfigError, method_configs, parse, to_dict
from negbank.train.options import Comparison
from negbank.train.run import read_config, resume
from negbank.train.studies.compare import CompareError, from_config
from negbank.train.studies.compare import processes as running
from negbank.train.studies.compare import run as compare_run
from negbank.train.studies.compare.processes import DIVERGENCE, finished
from negbank.train.studies.compare.report import edges, text_table
from negbank.train.studies.compare.results import MEASURES, rows, summarise
from negbank.train.studies.compare.trials import ENCODINGS, STEPS, TUNING, Plan, equal_steps
from negbank.train.studies.memory import held

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
CLOCK = re.compile(r"ms_")
"""Columns that no second run has the same of."""


def comparison(out, **changes):
    return parse({"base": RUN, "methods": METHODS, "seeds": [0], "out": str(out), **changes}, root=Comparison)[0]


def problems(**changes):
    with pytest.raises(ConfigError) as error:
        comparison("out", **changes)
    return error.value.problems


@pytest.fixture
def in_process(monkeypatch):
    """Cells in this process, one after the other; the list of those that were run, at most `limit[0]` of them."""
    ran, limit = [], [math.inf]

    def execute(cells, jobs):
        for cell in cells:
            if len(ran) >= limit[0]:
                raise KeyboardInterrupt
            resume(cell.folder)
            ran.append(str(cell))
            yield cell

    monkeypatch.setattr(compare_run, "execute", execute)
    return ran, limit


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


# --- the configuration ------------------------------------------------------------------------------------------------


def test_a_method_is_base_with_its_changes():
    base = {**RUN, "negatives": {"type": "sogclr", "gamma": 0.3, "decay": 5}, "loss": {"temperature": 0.3}}
    methods = {
        "same": None,
        "isogclr": {"negatives": {"type": "isogclr", "rho": 0.2}},
        "dcl": {"negatives": {"type": "dcl"}, "loss": {"temperature": 0.5}},
        "knn": {"negatives": {"type": "hardest"}, "batches": {"type": "knn", "neighbors": 7}},
    }
    configs = method_configs(comparison("out", base=base, methods=methods))
    assert [config.negatives.type for config in configs.values()] == ["sogclr", "isogclr", "dcl", "hardest"]
    assert configs["isogclr"].negatives.gamma == 0.3  # an option that both types have, as by an override
    assert configs["dcl"].loss.temperature == 0.5
    assert configs["same"].loss.temperature == configs["knn"].loss.temperature == 0.3
    assert (configs["knn"].batches.neighbors, configs["knn"].batches.batch_size) == (7, 8)


def test_mistakes_are_all_named_before_anything_runs():
    found = problems(
        base={**RUN, "loss": {"temprature": 1}, "optim": {"lr": 0.1}},
        methods={"a": {"negatives": {"type": "emc3"}}, "b": {"loss": {"temperature": -1}, "run": {"seed": 1}}},
        reference="c",
        lr=[0.1, 0.2],
    )
    expected = ["base.loss.temprature: no such key", "base.optim.lr: set by lr", "methods.a.negatives.type: 'emc3'",
                "methods.b.loss.temperature: -1.0, expected more than 0", "methods.b.run: is the same for all",
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
        ({"gradient_error": {"steps": [7]}}, "gradient_error.steps: [7], more than base.run.steps=6"),
        ({"gradient_error": {"steps": [4]}, "equal": ["encodings"]}, "gradient_error.steps: measured in runs at equal"),
        ({"seeds": [1, 1]}, "seeds[1]: the same as seeds[0]"),
        ({"equal": ["time"]}, "equal: ['time'], expected each one of steps, encodings"),
        ({"base": {**RUN, "run": {"epochs": 1}}}, "base.run.steps: set it"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, message):
    assert any(problem.startswith(message) for problem in problems(**changes))


def test_an_override_changes_a_method(tmp_path):
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump({"base": RUN, "methods": METHODS}))
    assert main(["validate", str(path)]) == 0
    data = yaml.safe_load(path.read_text())
    config, notes = parse(data, ["methods.moco.negatives.type=dcl", "seeds=[4]"], root=Comparison)
    assert method_configs(config)["moco"].negatives.type == "dcl"
    assert notes == ["methods.moco.negatives.type=dcl: dropped methods.moco.negatives.queue, an option of moco"]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"negatives": {"type": "importance", "query": "fresh"}}, "query='fresh' encodes drawn rows"),
        ({"negatives": {"type": "emc2"}, "batches": {"type": "knn", "neighbors": 5}}, "need uniform batches"),
        ({"negatives": {"type": "hardest", "k": 400}}, "k=400: expected 1..299"),
        ({"negatives": {"type": "in_batch"}, "batches": {"type": "knn", "neighbors": 400}}, "neighbors=400"),
        ({"negatives": {"type": "in_batch"}, "batches": {"type": "ordered", "pool": 2, "keep": 3}}, "keep=3"),
        ({"negatives": {"type": "isogclr", "lowest": 0.2}}, "lowest=0.2, highest=0.7"),
        ({**METHODS["logq"], "index": {"factory": "bogus"}}, "index.factory='bogus': Faiss refuses"),
        ({"batches": {"type": "knn", "neighbors": 5, "groups": "none.npy"}}, "batches.groups=none.npy: not readable"),
    ],
)
def test_what_does_not_fit_the_data_is_said_before_anything_runs(method, message, tmp_path, in_process):
    ran, _ = in_process
    with pytest.raises(ConfigError) as error:
        from_config(comparison(tmp_path / "out", methods={"simclr": METHODS["simclr"], "bad": method}))
    (problem,) = error.value.problems
    assert problem.startswith("methods.bad: ")
    assert message in problem
    assert not ran
    assert not (tmp_path / "out").exists()


# --- cells and budgets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curve", "budget", "expected"),
    [
        ([(1500, 6400)], 6400, 1500),
        ([(750, 6400), (1500, 12800)], 6400, 750),
        ([(1000, 9600)], 6400, 667),
        ([(3, 100)], 1, 1),
        ([(10, 20)], 30, 15),
        ([(100, 100), (200, 400)], 250, 150),  # the rate rises
    ],
)
def test_steps_of_equal_encodings(curve, budget, expected):
    assert equal_steps([(0, 0), *curve], budget) == expected


def test_cells_and_their_folders(tmp_path):
    config = comparison(tmp_path, seeds=[3, 1], lr=[0.1, 0.01], tune_seed=7, reference="moco")
    cells = Plan(config, method_configs(config))
    tuning = cells.tuning()
    assert [(c.method, c.lr, c.seed) for c in tuning][:3] == [("simclr", 0.1, 7), ("simclr", 0.01, 7), ("moco", 0.1, 7)]
    rates = {"simclr": 0.1, "moco": 0.01, "logq": 0.1}
    steps = cells.steps(rates)
    assert [(c.method, c.seed, c.lr) for c in steps] == [(m, s, rates[m]) for s in (3, 1) for m in METHODS]
    assert str(steps[1].folder) == f"{tmp_path}/moco/steps/lr0.01/seed3"
    assert (steps[1].config.optim.lr, steps[1].config.run.seed, steps[1].config.run.steps) == (0.01, 3, 6)
    equal = cells.encodings(rates, {"simclr": [(0, 0), (6, 50)], "moco": [(0, 0), (6, 100)]})
    assert [(c.method, c.config.run.steps) for c in equal] == [("simclr", 12), ("moco", 6)] * 2
    assert equal[1].folder == steps[1].folder
    assert str(equal[0].folder) == f"{tmp_path}/simclr/encodings/lr0.1/seed3"


def test_warmup_is_the_same_share_of_every_run(tmp_path):
    base = {**RUN, "optim": {"warmup": 5}}
    config = comparison(tmp_path, base=base, methods={name: METHODS[name] for name in ("simclr", "moco")})
    rates = {"simclr": 0.1, "moco": 0.1}
    made = [(0, 0), (6, 96)]
    for encodings, expected in ((96, (6, 5)), (192, (3, 2)), (5000, (1, 0)), (48, (12, 10))):
        cells = Plan(config, method_configs(config)).encodings(
            rates, {"simclr": made, "moco": [(0, 0), (6, encodings)]}
        )
        moco = cells[1].config
        assert (moco.run.steps, moco.optim.warmup) == expected
        parse(to_dict(moco))  # a run may have it


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_comparison_and_its_results(tmp_path, in_process):
    table = from_config(comparison(tmp_path, seeds=[0, 1], gradient_error={"steps": [4], "draws": 2}))
    ran, _ = in_process
    assert len(ran) == 3 * 2 + 2 * 2  # the reference's equal steps are its equal encodings
    found = read(tmp_path / "results.csv")
    assert len(found) == 2 * 3 * 2
    by = {(row["method"], row["budget"], row["seed"]): row for row in found}
    moco = by["moco", ENCODINGS, "0"]
    assert (moco["steps"], moco["encodings"]) == ("3", by["simclr", STEPS, "0"]["encodings"])  # keys cost as much again
    assert {k: v for k, v in by["simclr", STEPS, "1"].items() if k != "budget"} == {
        k: v for k, v in by["simclr", ENCODINGS, "1"].items() if k != "budget"
    }
    assert float(by["simclr", STEPS, "0"]["encodings"]) == 6 * 2 * 8
    summary = json.loads((tmp_path / "logq" / "steps" / "lr0.001" / "seed0" / "summary.json").read_text())
    assert float(by["logq", STEPS, "0"]["knn_accuracy"]) == pytest.approx(summary["knn_accuracy"])
    assert float(by["logq", STEPS, "0"]["extra_bytes"]) == sum(summary["bytes"].values())
    assert (by["logq", STEPS, "0"]["device"], by["logq", STEPS, "0"]["precision"]) == (
        summary["device"],
        summary["precision"],
    )
    means = {(row["method"], row["budget"]): row for row in read(tmp_path / "summary.csv")}
    values = [float(by["moco", STEPS, seed]["linear_probe_accuracy"]) for seed in "01"]
    assert float(means["moco", STEPS]["linear_probe_accuracy"]) == pytest.approx(statistics.fmean(values))
    assert float(means["moco", STEPS]["linear_probe_accuracy_sd"]) == pytest.approx(statistics.stdev(values), abs=1e-7)
    assert means["moco", STEPS]["count"] == "2"
    assert [(row["method"], row["seed"], row["step"]) for row in read(tmp_path / "gradient.csv")] == [
        (name, "0", "4") for name in METHODS
    ]
    page = (tmp_path / "report.html").read_text()
    for text in ("At equal steps, the two highest of 3", "At equal encodings", "Error of the gradient",
                 "data:image/png;base64", "momentum encoder",
                 "methods.logq.negatives.draws", "<summary>12 runs</summary>"):  # fmt: skip
        assert text in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert all(method in table for method in METHODS)


def test_an_interrupted_comparison_goes_on_to_the_same_results(tmp_path, in_process):
    ran, limit = in_process
    from_config(comparison(tmp_path / "whole"))
    whole, ran[:], limit[0] = len(ran), [], 1
    with pytest.raises(KeyboardInterrupt):
        from_config(comparison(tmp_path / "cut"))
    assert len(read(tmp_path / "cut" / "results.csv")) == 1
    limit[0] = math.inf
    from_config(comparison(tmp_path / "cut"))
    assert len(ran) == len(set(ran)) == whole  # none of them twice
    first, second = (read(tmp_path / name / "results.csv") for name in ("whole", "cut"))
    for row in (*first, *second):
        for key in [key for key in row if key == "folder" or CLOCK.match(key)]:
            del row[key]
    assert first == second
    text = (tmp_path / "cut" / "results.csv").read_text()
    (tmp_path / "cut" / "results.csv").unlink()
    from_config(comparison(tmp_path / "cut"))  # nothing left to run: the same files again
    assert len(ran) == whole
    assert (tmp_path / "cut" / "results.csv").read_text() == text


def test_each_method_has_the_rate_of_its_best_tuning_run(tmp_path, in_process, monkeypatch):
    two = {name: METHODS[name] for name in ("simclr", "moco")}
    config = comparison(tmp_path, methods=two, lr=[0.01, 0.001, 0.1], tune_seed=9, equal=["steps"])
    accuracy = {("simclr", 0.01): 0.5, ("simclr", 0.001): 0.5, ("simclr", 0.1): 0.4,
                ("moco", 0.01): 0.2, ("moco", 0.001): 0.1, ("moco", 0.1): 0.3}  # fmt: skip

    def scripted(cells):
        return [{**row, "knn_accuracy": accuracy[row["method"], row["lr"]]} for row in rows(cells)]

    monkeypatch.setattr(compare_run, "rows", scripted)
    from_config(config)
    chosen = {row["method"]: row["lr"] for row in read(tmp_path / "results.csv") if row["budget"] == STEPS}
    assert chosen == {"simclr": "0.001", "moco": "0.1"}
    assert {row["seed"] for row in read(tmp_path / "results.csv") if row["budget"] == TUNING} == {"9"}
    assert len(read(tmp_path / "summary.csv")) == 2
    assert "Choice of the learning rate" in (tmp_path / "report.html").read_text()


def test_a_cell_of_another_configuration_is_refused(tmp_path, in_process):
    ran, _ = in_process
    one = {"methods": {"simclr": METHODS["simclr"]}, "equal": ["steps"]}
    from_config(comparison(tmp_path, **one))
    base = {**RUN, "loss": {"temperature": 0.3}}
    with pytest.raises(CompareError, match=r"loss\.temperature: 0\.1 there, 0\.3 now.*choose another out"):
        from_config(comparison(tmp_path, **one, base=base))
    assert len(ran) == 1


def test_a_method_whose_cells_have_not_begun_may_be_edited(tmp_path, in_process):
    ran, limit = in_process
    limit[0] = 1
    methods = {name: METHODS[name] for name in ("simclr", "moco")}
    with pytest.raises(KeyboardInterrupt):
        from_config(comparison(tmp_path, methods=methods, equal=["steps"]))
    limit[0] = math.inf
    edited = {"negatives": {"type": "moco", "queue": 32}}
    from_config(comparison(tmp_path, methods={**methods, "moco": edited}, equal=["steps"]))
    assert len(ran) == 2
    folder = tmp_path / "moco" / "steps" / "lr0.001" / "seed0"
    assert read_config(folder).negatives.queue == 32
    (folder / "summary.json").unlink()  # begun, though not finished
    with pytest.raises(CompareError, match=r"negatives\.queue: 32 there, 16 now"):
        from_config(comparison(tmp_path, methods=methods, equal=["steps"]))
    moved = {**RUN, "run": {**RUN["run"], "checkpoint_every": 3}}  # of what may differ, the new value is used
    from_config(comparison(tmp_path, base=moved, methods={**methods, "moco": edited}, equal=["steps"]))
    assert read_config(folder).run.checkpoint_every == 3


def diverge(out, method, budget, lr, seed):
    folder = out / method / budget / f"lr{lr:g}" / f"seed{seed}"
    folder.mkdir(parents=True)
    (folder / DIVERGENCE).write_text("step 3: the loss of rows [1] is not finite\n")


def test_encodings_are_those_of_a_seed_that_did_not_diverge(tmp_path, in_process):
    for method, seed in (("simclr", 0), ("moco", 0), ("logq", 0), ("logq", 1)):
        diverge(tmp_path, method, STEPS, 0.001, seed)
    table = from_config(comparison(tmp_path, seeds=[0, 1]))
    means = {(row["method"], row["budget"]): row for row in read(tmp_path / "summary.csv")}
    assert means["moco", ENCODINGS]["steps"] == "3"  # as many as the reference's other seed made
    for budget in (STEPS, ENCODINGS):
        assert (means["logq", budget]["count"], means["logq", budget]["diverged"]) == ("0", "2")
        assert re.search(rf"{budget} +logq +0.001 +0, 2 diverged", table)
    assert "logq, encodings, lr 0.001, seed 1" in (tmp_path / "report.html").read_text()
    diverge(tmp_path / "none", "simclr", STEPS, 0.001, 0)
    with pytest.raises(CompareError, match="simclr: the reference diverged with every seed"):
        from_config(comparison(tmp_path / "none", equal=["encodings"]))


def test_a_method_that_diverges_at_every_rate_is_left_out(tmp_path, in_process, capsys):
    two = {name: METHODS[name] for name in ("simclr", "moco")}
    for lr in (0.01, 0.1):
        diverge(tmp_path, "moco", TUNING, lr, 9)
    diverge(tmp_path, "simclr", TUNING, 0.1, 9)
    config = comparison(tmp_path, methods=two, lr=[0.01, 0.1], tune_seed=9)
    table = from_config(config)
    assert "moco: left out, it diverged at every lr of 0.01, 0.1" in capsys.readouterr().out
    assert {row["budget"] for row in read(tmp_path / "results.csv") if row["method"] == "moco"} == {TUNING}
    lost = [row for row in read(tmp_path / "summary.csv") if row["method"] == "moco"]
    assert [(row["budget"], row["count"], row["diverged"]) for row in lost] == [
        (STEPS, "0", "2"),
        (ENCODINGS, "0", "2"),
    ]
    assert re.search(r"steps +moco +– +0, 2 diverged", table)
    assert "others may be better: simclr 0.01." in table
    assert "one choice of 2" in (tmp_path / "report.html").read_text()
    (tmp_path / "simclr" / TUNING / "lr0.01" / "seed9").rename(tmp_path / "gone")
    diverge(tmp_path, "simclr", TUNING, 0.01, 9)
    with pytest.raises(CompareError, match="every method diverged"):
        from_config(config)


def test_a_run_that_diverged_is_in_no_mean(tmp_path, in_process, monkeypatch):
    config = comparison(tmp_path, seeds=[0, 1], methods={"simclr": METHODS["simclr"]}, equal=["steps"])
    diverge(tmp_path, "simclr", STEPS, 0.001, 1)
    from_config(config)
    (mean,) = read(tmp_path / "summary.csv")
    assert (mean["count"], mean["diverged"]) == ("1", "1")
    assert float(mean["steps"]) == 6
    assert "Diverged, and in no mean: simclr, steps, lr 0.001, seed 1" in (tmp_path / "report.html").read_text()


ROW = {"budget": STEPS, "method": "a", "lr": 0.1, "seed": 0, "diverged": False, **dict.fromkeys(MEASURES, math.nan)}


def test_means_and_deviations():
    (mean,) = summarise([{**ROW, "steps": 2}, {**ROW, "steps": 4}, {**ROW, "steps": 9}, {**ROW, "diverged": True},
                         {**ROW, "budget": TUNING}], "a")  # fmt: skip
    assert (mean["count"], mean["diverged"], mean["steps"]) == (3, 1, 5)
    assert mean["steps_sd"] == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert math.isnan(mean["loss"])


def test_differences_to_the_reference_are_of_equal_seeds():
    accuracy = {"a": {0: 0.5, 1: 0.9, 3: 0.4}, "b": {0: 0.6, 1: 0.7, 2: 0.1}}
    found = [
        {**ROW, "method": m, "seed": s, "knn_accuracy": v} for m, each in accuracy.items() for s, v in each.items()
    ]
    found += [{**row, "budget": ENCODINGS, "knn_accuracy": 0.0} for row in found]
    a, b, *_ = summarise(found, "a")
    assert math.isnan(a["knn_over_reference"])
    assert b["knn_over_reference"] == pytest.approx((0.1 - 0.2) / 2)
    assert b["knn_over_reference_sd"] == pytest.approx(0.3 / math.sqrt(2))


def test_the_table_says_what_diverged_and_how_far_runs_are_apart():
    (mean,) = summarise([{**ROW, "knn_accuracy": 0.5, "steps": 10}, {**ROW, "knn_accuracy": 0.5002, "steps": 10},
                         {**ROW, "diverged": True}], "a")  # fmt: skip
    _, line = text_table([mean]).splitlines()
    assert "2, 1 diverged" in line
    assert "0.5001 ± 0.0001" in line
    assert "10 ±" not in line


def test_a_rate_at_the_edge_of_those_tried_is_named():
    tried = [{**ROW, "budget": TUNING, "lr": lr} for lr in (0.1, 0.3, 0.2)]
    averages = [{"method": m, "lr": lr} for m, lr in (("low", 0.1), ("inner", 0.2), ("high", 0.3), ("low", 0.1))]
    (line,) = edges(tried, averages)
    assert line.endswith("better: low 0.1, high 0.3.")
    assert edges(tried, averages[1:2]) == edges(tried[:1], averages) == []


# --- processes --------------------------------------------------------------------------------------------------------


def test_two_processes_at_once_and_one_that_fails(tmp_path):
    config = comparison(tmp_path, methods={k: METHODS[k] for k in ("simclr", "moco")}, equal=["steps"], jobs=2)
    from_config(config)
    assert len(read(tmp_path / "results.csv")) == 2
    assert "written to" in (tmp_path / "moco" / "steps" / "lr0.001" / "seed0" / "log.txt").read_text()
    taken = tmp_path / "bad" / "a" / "steps" / "lr0.001" / "seed0" / "tensorboard"
    taken.parent.mkdir(parents=True)
    taken.write_text("no folder")
    with pytest.raises(CompareError, match=r"a, equal steps, lr 0.001, seed 0: its run ended with 1: .*tensorboard"):
        from_config(comparison(tmp_path / "bad", methods={"a": None}, equal=["steps"]))


def test_files_of_the_working_directory_are_not_run(tmp_path, monkeypatch):
    for name in ("train.py", "samplers.py", "yaml.py"):
        (tmp_path / name).write_text("raise SystemExit('mine')")
    monkeypatch.chdir(tmp_path)
    (cell,) = Plan(c := comparison("out", methods={"a": None}), method_configs(c)).steps({"a": 0.001})
    running.prepare([cell])
    assert list(running.execute([cell], 1)) == [cell]
    assert finished(cell)


def test_a_run_that_diverges_is_told_from_one_that_fails(tmp_path, monkeypatch):
    (cell,) = Plan(c := comparison(tmp_path, methods={"a": None}), method_configs(c)).steps({"a": 0.1})
    running.prepare([cell])
    assert not finished(cell)
    script = "import sys; print('negbank: step 2: not finite', file=sys.stderr); sys.exit(3)"
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: popen([sys.executable, "-c", script], **options)
    )
    assert list(running.execute([cell], 1)) == [cell]
    assert finished(cell)
    assert running.diverged(cell) == "step 2: not finite"


def test_a_run_that_is_still_going_on_is_not_started_again(tmp_path, monkeypatch):
    (cell,) = Plan(c := comparison(tmp_path, methods={"a": None}), method_configs(c)).steps({"a": 0.1})
    running.prepare([cell])
    popen = subprocess.Popen
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: popen(sleeper, **options))
    first = running._launch(cell.folder, 1)
    try:
        for again in (running.prepare, lambda cells: list(running.execute(cells, 1))):
            with pytest.raises(CompareError, match="still going on"):
                again([cell])
    finally:
        first.kill()
        first.wait()


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_is_what_is_held():
    def bytes_of(negatives):
        trainer = build(parse({**copy.deepcopy(RUN), "negatives": negatives})[0]).trainer
        for _ in range(3):
            trainer.refresh()
            trainer.step()
        return trainer, held(trainer)

    _, simclr = bytes_of({"type": "in_batch"})
    assert sum(simclr.values()) < 16
    trainer, moco = bytes_of({"type": "moco", "queue": 64})
    assert moco["negatives"] >= 64 * (8 * 4 + 8)  # keys and ids
    parts = (*trainer.momentum_encoder.parameters(), *trainer.momentum_encoder.buffers())
    assert moco["momentum_encoder"] == sum(p.nbytes for p in parts)
    _, sogclr = bytes_of({"type": "sogclr"})
    assert sogclr["negatives"] == 300 * 2 * 4
    assert (sogclr["bank"], sogclr["snapshot"]) == (0, 0)
    trainer, logq = bytes_of({"type": "importance", "draws": 4, "proposal": {"type": "nearest", "k": 4}})
    assert logq["bank"] == 300 * (8 * 4 + trainer.bank.written_at.element_size())
    assert logq["snapshot"] >= 300 * 8 * 4
