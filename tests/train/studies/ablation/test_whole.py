"""Measures against dense matrices and autograd, and an ablation's folder through kills, reruns and bad input."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from negbank.samplers.metropolis import acceptance
from negbank.train.build import chosen
from negbank.train.commands import main
from negbank.train.config import ConfigError, describe, load, parse
from negbank.train.options import Ablation, HeadTailProposal
from negbank.train.run import RunError, evaluate, resume, start
from negbank.train.studies.ablation import AblationError, ablate, results
from negbank.train.studies.ablation import measurement as measures
from negbank.train.studies.ablation import run as ablation_run
from negbank.train.studies.ablation.answer import answer
from negbank.train.studies.ablation.average import average, resampled
from negbank.train.studies.ablation.measurement import MEASURES, Key, Measurement, measure
from negbank.train.studies.ablation.named import label
from negbank.train.studies.ablation.run import from_config
from negbank.train.studies.ablation.sources import moved, noise_size
from negbank.train.studies.ablation.store import OUTPUTS, VALUES, Store

from negbank import Exclusions, Snapshot
from negbank.proposals import Anchors, Cells, HeadTail, Nearest, StaleSoftmax, Uniform

BUDGETS = [1, 3, 8]


@pytest.fixture
def world(clustered):
    truth = torch.nn.functional.normalize(clustered(40, dim=6, clusters=4, seed=1).double(), dim=1)
    return truth, Snapshot.build(moved(truth, 0.9, seed=3), factory="exact")


# --- the mathematics --------------------------------------------------------------------------------------------------


def direction(z_i, z):
    """∂ cos(x, z_j)/∂x at x = z_i for every row: (N, D), by autograd."""
    x = z_i.clone().requires_grad_()
    return torch.stack([torch.autograd.grad(torch.cosine_similarity(x, z_j, dim=0), x)[0] for z_j in z])


def by_hand(truth, i, allowed, log_q, temperature, budget):
    """Every exact measure of one anchor from the dense transition matrix, loops and autograd."""
    rows = allowed.nonzero().flatten()
    z, q = truth[rows], log_q[rows].exp()
    pi = torch.softmax(z @ truth[i] / temperature, 0)
    w = (pi / q).log()
    moves = q * acceptance(w.expand(len(w), -1), w[:, None].expand(-1, len(w)))
    matrix = moves.clone().fill_diagonal_(0.0)
    matrix += torch.diag(1 - matrix.sum(1))
    law = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64) @ torch.linalg.matrix_power(matrix, budget)
    gradients = direction(truth[i], z)
    mu, mean = pi @ gradients, law @ gradients
    return {
        "tv": float((law - pi).abs().sum() / 2),
        "bias": float((mean - mu).norm() / mu.norm()),
        "variance": float(law @ (gradients - mean).square().sum(1) / mu.square().sum()),
        "ess": 1 / sum(float(p) ** 2 / float(x) for p, x in zip(pi, q)),
        "sup": max(float(p) / float(x) for p, x in zip(pi, q)),
        "acceptance": float(pi @ moves.sum(1)),
        "encodings": sum(1 - (1 - float(x)) ** budget for x in q),
    }


@pytest.mark.parametrize("query", ["bank", "fresh"])
@pytest.mark.parametrize("build", [Uniform, lambda s, **k: Nearest(s, 5, 0.2, **k), lambda s, **k: HeadTail(s, 5, **k)])
@pytest.mark.parametrize("grouped", [False, True])
def test_every_exact_measure_is_that_of_the_dense_matrix(world, build, query, grouped):
    truth, bank = world
    exclude = Exclusions(40, groups=torch.arange(40) // 5) if grouped else bank.exclude_self
    proposal, anchors = build(bank, exclude=exclude), torch.tensor([0, 13, 39])
    cell = measure(bank, truth, anchors, proposal, Key("p", 0.15, "bank", query), budgets=BUDGETS, exclude=exclude)
    queries = bank.vectors if query == "bank" else truth.float()
    every = torch.arange(40).expand(3, -1)
    log_q = proposal(Anchors(anchors, queries[anchors])).log_prob(every)
    allowed = exclude.allowed(anchors, every)
    assert int(allowed[0].sum()) == (35 if grouped else 39)
    for a, i in enumerate(anchors.tolist()):
        for k, budget in enumerate(BUDGETS):
            for name, expected in by_hand(truth, i, allowed[a], log_q[a], 0.15, budget).items():
                got = float(cell.values[name][a, k])
                assert got == pytest.approx(expected, rel=1e-9, abs=1e-12), (name, i, budget)
    assert cell.staleness == pytest.approx(0.1, abs=1e-3)
    assert (cell.values["ms"] > 0).all()
    assert torch.allclose(cell.values["ess_per_ms"], torch.tensor(BUDGETS) * cell.values["ess"] / cell.values["ms"])


def test_uniform_has_its_closed_forms(world):
    truth, bank = world
    pi = torch.softmax((truth @ truth.T / 0.3).fill_diagonal_(-torch.inf), 1)
    rows = ablate(bank, truth, {"u": Uniform}, temperatures=0.3, budgets=BUDGETS, anchors=40)
    assert [row["budget"] for row in rows] == BUDGETS
    for row in rows:
        assert row["ess"] == pytest.approx(float((1 / (39 * pi.square().sum(1))).mean()))
        assert row["sup"] == pytest.approx(float((39 * pi.amax(1)).mean()))
        assert row["encodings"] == pytest.approx(39 * (1 - (1 - 1 / 39) ** row["budget"]))
        assert row["ess_per_encoding"] == pytest.approx(row["budget"] * row["ess"] / row["encodings"])


def test_a_perfect_proposal_has_no_bias_and_accepts_all(world):
    truth, _ = world
    bank = Snapshot.build(truth, factory="exact")
    rows = ablate(bank, truth, {"p": lambda s: StaleSoftmax(s, 0.5, 1e-9)}, temperatures=0.5, budgets=[1], anchors=40)
    assert rows[0]["tv"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["bias"] == pytest.approx(0, abs=1e-6)
    assert (rows[0]["ess"], rows[0]["acceptance"]) == pytest.approx((1, 1), abs=1e-6)
    assert rows[0]["variance"] > 0.1


def test_more_staleness_is_more_bias_and_more_draws_less(world):
    truth, _ = world
    found = [
        ablate(
            Snapshot.build(moved(truth, cosine, seed=0), factory="exact"),
            truth,
            {"n": lambda s: Nearest(s, 8)},
            budgets=[1, 32],
        )
        for cosine in (0.99, 0.6)
    ]
    assert found[0][0]["bias"] < found[1][0]["bias"]
    assert all(rows[1]["bias"] < rows[0]["bias"] and rows[1]["tv"] < rows[0]["tv"] for rows in found)


def test_blocks_of_anchors_change_nothing(world, monkeypatch):
    truth, bank = world
    whole = ablate(bank, truth, {"c": Cells}, budgets=BUDGETS, anchors=30)
    sizes = []
    exact = measures._exact
    monkeypatch.setattr(measures, "BLOCK", 7 * 40)
    monkeypatch.setattr(
        measures, "_exact", lambda truth, rows, *rest: sizes.append(len(rows)) or exact(truth, rows, *rest)
    )
    parts = ablate(bank, truth, {"c": Cells}, budgets=BUDGETS, anchors=30)
    assert sizes == [7, 7, 7, 7, 2]
    for a, b in zip(whole, parts, strict=True):
        for name in MEASURES:
            if "ms" not in name:
                assert a[name] == pytest.approx(b[name], rel=1e-12)


def test_rows_that_all_lie_on_the_anchor_have_no_direction_and_no_bias():
    same = torch.tensor([[1.0, 0.0]]).expand(8, -1)
    (row,) = ablate(Snapshot.build(same, factory="exact"), same, {"u": Uniform}, budgets=[2])
    assert math.isnan(row["bias"])
    assert math.isnan(row["variance"])
    assert row["tv"] == pytest.approx(0, abs=1e-12)


def test_a_bank_that_is_half_written_is_measured_where_it_is(world):
    truth, _ = world
    written = torch.arange(40) < 20
    bank = Snapshot.build(moved(truth, 0.9, seed=3), factory="exact", written=written)
    rows = ablate(bank, truth, {"n": lambda s: Nearest(s, 5)}, budgets=[1], anchors=40)
    assert rows[0]["anchors"] == 20
    assert rows[0]["staleness"] == pytest.approx(0.1, abs=0.05)


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


@pytest.mark.parametrize("cosine", [1.0, 0.97, 0.5, 0.05])
def test_moved_rows_are_at_the_cosine_asked_for(cosine, clustered):
    z = clustered(500, dim=8).double()
    z = torch.nn.functional.normalize(z, dim=1)
    assert float(torch.cosine_similarity(z, moved(z, cosine, seed=5), dim=1).mean()) == pytest.approx(cosine, abs=1e-6)


def test_a_cosine_out_of_reach_is_said():
    z = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"cosine=0.2: noise moves these rows to 0.9\d* at most"):
        noise_size(z, torch.tensor([[3.0, 1.0]], dtype=torch.float64), 0.2)


# --- averages and the answer ------------------------------------------------------------------------------------------


def cell(proposal, ess, *, ms=1.0, spread=1.0, budgets=(1, 64), level="bank"):
    """A cell of anchors with the given ESS; total variation 1 − ESS."""
    values = {name: ess[:, None].expand(-1, len(budgets)).double() for name in VALUES}
    clock = torch.full_like(values["ess"], ms)
    encodings = torch.tensor(budgets).double().expand_as(clock)
    values |= {"tv": 1 - values["ess"], "ms": clock, "ms_low": clock / spread, "ms_high": clock * spread}
    values |= {"encodings": encodings, "ess_per_encoding": values["ess"]}
    values["ess_per_ms"] = encodings * values["ess"] / ms
    return Measurement(Key(proposal, 0.1, level, "bank"), 0.1, torch.arange(len(ess)), tuple(budgets), values)


def test_intervals_are_about_those_of_the_normal_law_and_skip_the_undefined():
    ess = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    error = 1.96 * float(ess.std()) / math.sqrt(200)
    found = average(cell("p", ess), "ess")[0]
    assert found.mean == pytest.approx(float(ess.mean()))
    assert (found.mean - found.low, found.high - found.mean) == pytest.approx((error, error), rel=0.12)
    holes = torch.cat((ess, torch.full((200,), math.nan, dtype=torch.float64)))
    assert average(cell("p", holes), "ess")[0].mean == pytest.approx(float(ess.mean()))
    assert all(map(math.isnan, average(cell("p", holes[200:]), "ess")[0]))


def test_the_clock_widens_the_intervals_that_rest_on_it():
    ess = torch.full((50,), 0.5)
    exact, noisy = (average(cell("p", ess, spread=spread), "ess_per_ms")[0] for spread in (1.0, 2.0))
    assert exact == pytest.approx((0.5, 0.5, 0.5))
    assert (noisy.low, noisy.high) == pytest.approx((0.25, 1.0), rel=0.2)
    assert resampled(cell("p", ess, spread=2.0), "ess").std() == 0


def test_the_answer_names_who_wins_and_what_is_no_difference():
    few, many = torch.full((50,), 0.01), torch.full((50,), 0.48)
    found = answer([cell("Uniform", few), cell("Nearest k=4", many, ms=4.0), cell("Slow", many + 0.1, ms=400.0)], "x")
    assert str(found).startswith("For x: Nearest k=4: 12× the effective draws per ms of Uniform (12–12), of drawing")
    assert "Slow: 58× the effective draws per encoder forward pass of Uniform (58–58)" in str(found)
    assert "Least total variation after 64 proposals: Slow (0.42)." in str(found)
    found = answer([cell("Uniform", few), cell("Nearest k=4", few, ms=0.99, spread=1.5)], "x")
    assert found.overall.per_ms.proposal == "Nearest k=4"
    assert "no clear difference" in str(found)
    found = answer([cell("A", few), cell("B", many)], "x")
    assert "B: 48× the effective draws per ms of A" in str(found)
    assert str(answer([cell("A", many)], "x")).startswith("For x: A: 30.7 effective draws per ms, of drawing alone.")


def test_the_answer_over_settings_is_the_geometric_mean():
    one, two = torch.full((9,), 0.1), torch.full((9,), 0.4)
    cells = [cell("Uniform", one, level="a"), cell("P", two, level="a"), cell("Uniform", one, level="b")]
    found = answer([*cells, cell("P", two, level="b", ms=4.0)], "x")
    assert found.overall.per_ms.times.mean == pytest.approx(2.0)
    assert {s[1]: b.per_ms.times.mean for s, b in found.by_setting.items()} == pytest.approx({"a": 4.0, "b": 1.0})
    assert "geometric means of 2 settings" in str(found)


# --- a configuration and its folder -----------------------------------------------------------------------------------

PROPOSALS = [{"type": "uniform"}, {"type": "head_tail", "k": 4}]


@pytest.fixture
def npy(tmp_path, clustered):
    path = tmp_path / "rows <b>&.npy"
    np.save(path, 3 * clustered(30, dim=5, clusters=3).numpy())
    return path


@pytest.fixture
def make(npy, tmp_path):
    def config(**changes):
        data = {
            "source": {"type": "npy", "path": str(npy), "cosines": [0.97, 0.8]},
            "proposals": PROPOSALS,
            "temperatures": [0.1],
            "budgets": [4, 1],
            "anchors": 6,
            "out": str(tmp_path / "out"),
        }
        return parse({**data, **changes}, root=Ablation)[0]

    return config


def table(folder):
    """The rows of ablation.csv without what the clock decides."""
    with (Path(folder) / "ablation.csv").open() as file:
        return [
            {k: v for k, v in row.items() if not k.startswith(("ms", "ess_per_ms"))} for row in csv.DictReader(file)
        ]


@pytest.fixture
def counted(monkeypatch):
    """The keys of the cells that are measured."""
    keys, original = [], ablation_run.measured

    def measured(bank, truth, rows, binds, left, **options):
        for found in original(bank, truth, rows, binds, left, **options):
            keys.append(found.key)
            yield found

    monkeypatch.setattr(ablation_run, "measured", measured)
    return keys


@pytest.fixture
def no_figures(monkeypatch):
    """No figures, for tests of all the rest."""
    for name in ("draw_tv", "draw_bias"):
        monkeypatch.setattr(results, name, lambda rows, path: path.write_bytes(b"\x89PNG"))


def test_the_folder_holds_what_is_promised(make, tmp_path):
    found = from_config(make(queries=["bank", "fresh"], temperatures=[0.1, 0.3]))
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == set(OUTPUTS)
    rows = table(out)
    columns = ["proposal", "temperature", "level", "staleness", "query", "budget"]
    assert len(rows) == len({tuple(row[c] for c in columns) for row in rows}) == 2 * 2 * 2 * 2 * 2
    assert {row["proposal"] for row in rows} == {"Uniform", "HeadTail k=4, floor 0.1"}
    assert {row["level"] for row in rows} == {"cosine 0.97", "cosine 0.8"}
    assert [row["budget"] for row in rows[:2]] == ["1", "4"]
    for row in rows:
        assert float(row["staleness"]) == pytest.approx(1 - float(row["level"].split()[1]), abs=1e-5)
        for name in ("tv", "bias", "variance", "ess", "sup", "acceptance", "encodings"):
            assert float(row[f"{name}_low"]) <= float(row[name]) + 1e-9
            assert float(row[name]) <= float(row[f"{name}_high"]) + 1e-9
    lines = [json.loads(line) for line in (out / "ablation.jsonl").read_text().splitlines()]
    assert len(lines) == 6 * len(rows)
    first = [x for x in lines if all(str(x[c]) == rows[0][c] for c in ("proposal", "level", "query", "temperature"))]
    mine = [x["tv"] for x in first if x["budget"] == 1]
    assert sum(mine) / 6 == pytest.approx(float(rows[0]["tv"]), rel=1e-6)
    assert "geometric means of 8 settings" in str(found)
    for name in ("tv.png", "bias.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_a_proposal_that_adapts_is_fitted_to_the_truth(no_figures, make, npy, tmp_path, clustered):
    np.save(npy, clustered(300, dim=8, clusters=6).numpy())
    near = {"type": "nearest", "k": 8, "floor": 0.05}
    from_config(
        make(source={"path": str(npy), "cosines": [0.6]}, proposals=[near, {**near, "adapt": True}], anchors=200)
    )
    plain, adapted = table(tmp_path / "out")[::2]
    assert (plain["proposal"], adapted["proposal"]) == ("Nearest k=8, floor 0.05", "Nearest k=8, floor 0.05, adapt")
    assert float(adapted["ess"]) > 1.1 * float(plain["ess"])


def test_names_say_k_and_floor_and_what_is_not_the_default():
    options = parse(
        {
            "source": {"path": "x"},
            "proposals": [{"type": "head_tail"}, {"type": "cells", "temperature": 0.2}, {"type": "uniform"}],
        },
        root=Ablation,
    )[0].proposals
    assert [label(chosen(each)) for each in options] == [
        "HeadTail k=64, floor 0.1",
        "Cells temperature 0.2, floor 0.1",
        "Uniform",
    ]


def test_the_report_is_one_file_that_opens_with_the_answer(make, npy, tmp_path):
    found = from_config(make())
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"https?:|//|<script|<link|@import|url\(", re.sub(r"base64,[^\"]*", "", page))
    assert re.findall(r'src="([^"]{0,22})', page) == ["data:image/png;base64,"] * 2
    body = page.split("<body>")[1]
    assert re.sub("<[^>]*>", "", body).strip().startswith("For rows &lt;b&gt;&amp;.npy: ")
    assert str(found).startswith(f"For {npy.name}: ")
    assert "<b>&" not in page
    assert "Uniform" in page.split("<h2>")[0]
    for name in ("total variation", "sup π/q", "acceptance", "encodings", "cosine 0.8"):
        assert name in body


@pytest.mark.parametrize("cut", ["mid line", "mid cell", "before the newline", "nothing", "all"])
def test_a_rerun_goes_on_from_the_last_whole_cell(cut, no_figures, make, counted, tmp_path):
    config = make()
    from_config(config)
    path, whole = tmp_path / "out" / "ablation.jsonl", table(tmp_path / "out")
    lines, order = path.read_bytes().splitlines(keepends=True), list(counted)
    assert len(lines) == 4 * 12
    content, again = {
        "mid line": (b"".join(lines[:30]) + lines[30][:40], order[2:]),
        "mid cell": (b"".join(lines[:30]), order[2:]),
        "before the newline": (b"".join(lines[:24])[:-1], order[1:]),
        "nothing": (b"".join(lines), []),
        "all": (b"", order),
    }[cut]
    path.write_bytes(content)
    (tmp_path / "out" / "ablation.csv").unlink()
    counted.clear()
    from_config(config)
    assert counted == again
    assert table(tmp_path / "out") == whole
    assert len(path.read_bytes().splitlines()) == len(lines)


def test_other_settings_are_refused_and_overwrite_replaces(no_figures, make, counted, npy, tmp_path):
    from_config(make())
    kept = tmp_path / "out" / "mine.txt"
    kept.write_text("mine")
    counted.clear()
    with pytest.raises(AblationError, match=r"anchors: 6 there, 5 now.*--overwrite"):
        from_config(make(anchors=5))
    with pytest.raises(AblationError, match=r"proposals\[1\]\.k: 4 there, 5 now"):
        from_config(make(proposals=[PROPOSALS[0], {"type": "head_tail", "k": 5}]))
    np.save(npy, np.load(npy)[::-1])
    with pytest.raises(AblationError, match=r"inputs\..*npy: "):
        from_config(make())
    assert counted == []
    from_config(make(anchors=5), overwrite=True)
    assert {row["anchors"] for row in table(tmp_path / "out")} == {"5"}
    assert kept.read_text() == "mine"


def test_damage_in_the_middle_is_said(no_figures, make, tmp_path):
    from_config(make())
    path = tmp_path / "out" / "ablation.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for bad in (b"{\n", b"{}\n", lines[20]):
        path.write_bytes(b"".join([*lines[:5], bad, *lines[6:]]))
        with pytest.raises(AblationError, match=r"ablation.jsonl, line \d+: damaged .*--overwrite"):
            from_config(make())
    (tmp_path / "out" / "settings.json").unlink()
    with pytest.raises(AblationError, match="without settings"):
        from_config(make())


def test_a_store_forgets_from_a_cell_on(tmp_path):
    store = Store(tmp_path / "s", {})
    for level in ("step 1", "step 2", "step 3"):
        store.add(cell("p", torch.rand(3), level=level))
    store.cut(Key("p", 0.1, "step 2", "bank"))
    assert [key.level for key in Store(tmp_path / "s", {}).done] == [key.level for key in store.done] == ["step 1"]
    store.cut(Key("p", 0.1, "step 1", "bank"))
    assert Store(tmp_path / "s", {}).done == {}


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def config_file(npy, tmp_path):
    path = tmp_path / "ablate.yaml"
    path.write_text(
        json.dumps(
            {
                "source": {"type": "npy", "path": str(npy), "cosines": [0.9]},
                "proposals": PROPOSALS,
                "budgets": [1, 2],
                "anchors": 4,
                "out": str(tmp_path / "out"),
            }
        )
    )
    return path


def test_the_command_line_end_to_end(config_file, tmp_path, capsys):
    code, out, err = run(capsys, "ablate", config_file, "anchors=5")
    assert code == 0, err
    assert re.match(r"For rows <b>&\.npy: .*× the effective draws per ms of .*\nwritten to .*report.html", out)
    assert "2/2" in err  # the progress bar
    assert (run(capsys, "ablate", config_file)[0], run(capsys, "ablate", config_file, "--overwrite")[0]) == (1, 0)
    code, _, err = run(capsys, "ablate", config_file)
    assert code == 0
    assert run(capsys, "validate", config_file)[1] == f"{config_file}: ok\n"
    keys = run(capsys, "keys", "ablate")[1]
    assert "source.cosines = [0.99, 0.97, 0.9, 0.77]" in keys
    assert "proposals = [uniform, nearest, head_tail, cells, stale_softmax]" in keys
    assert "ablation.every = None" in run(capsys, "keys")[1]


@pytest.mark.parametrize(
    ("rows", "change", "message"),
    [
        (None, "source.path=missing.npy", "missing.npy: no such file"),
        (b"text", "seed=0", "not readable as .npy"),
        (np.ones(30), "seed=0", "float64 of shape (30,), expected floating point (N, D)"),
        (np.ones((30, 2, 2)), "seed=0", "expected floating point (N, D)"),
        (np.ones((30, 4), dtype=int), "seed=0", "int64 of shape (30, 4)"),
        (np.ones((7, 4)), "seed=0", "N ≥ 8"),
        (np.ones((30, 1)), "seed=0", "D ≥ 2"),
        (
            np.where(np.arange(30)[:, None] == 7, np.nan, np.ones((30, 4))),
            "seed=0",
            "NaN or infinity, the first at [7]",
        ),
        (np.where(np.arange(30)[:, None] == 9, 0, np.ones((30, 4))), "seed=0", "are all zero, the first at [9]"),
        (
            np.eye(30),
            "proposals=[{type: uniform}, {type: nearest, k: 30}]",
            "proposals[1].k=30: there are only 29 other",
        ),
        (np.eye(30), "source.type=snapshots", "source.bank: source.type=snapshots needs the path of a saved snapshot"),
    ],
)
def test_bad_input_ends_with_one_message_before_any_work(rows, change, message, config_file, npy, tmp_path, capsys):
    if isinstance(rows, bytes):
        npy.write_bytes(rows)
    elif rows is not None:
        np.save(npy, rows)
    code, _, err = run(capsys, "ablate", config_file, change)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_everything_wrong_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        parse(
            {
                "source": {"cosines": [0.9, 1.5]},
                "temperatures": [],
                "proposals": [{"type": "nearst"}, {"type": "nearest", "kk": 3, "floor": 2}],
                "budgets": [1, 0],
                "queries": ["bank", "stale"],
                "anchors": 1,
                "sed": 1,
            },
            root=Ablation,
        )
    expected = {
        "source.cosines": "expected each at most 1",
        "proposals[0].type": "did you mean 'nearest'?",
        "proposals[1].kk": "no such key",
        "proposals[1].floor": "expected at most 1",
        "budgets": "expected each at least 1",
        "queries": "expected each one of bank, fresh",
        "anchors": "expected at least 2",
        "sed": "did you mean 'seed'?",
    }
    assert len(caught.value.problems) == len(expected)
    for key, remedy in expected.items():
        assert any(line.startswith(f"{key}: ") and remedy in line for line in caught.value.problems), key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperatures": []}, "temperatures: is empty"),
        ({"budgets": [1, 2, 1]}, r"budgets\[2\]: the same as budgets\[0\]"),
        (
            {"proposals": [{"type": "nearest"}, {"type": "nearest", "k": 64}]},
            r"proposals\[1\]: the same as proposals\[0\]",
        ),
        ({"source": {"path": "x", "cosines": [0.9, 0.9]}}, r"source.cosines\[1\]: the same"),
        ({"source": {}}, "source.path: source.type=npy needs the path of an .npy file"),
        ({"proposals": "uniform"}, "proposals: 'uniform', expected a list of mappings"),
        ({"proposals": ["uniform"]}, "expected a list of mappings"),
        ({"out": ""}, "out: needs"),
    ],
)
def test_impossible_ablations(change, message):
    with pytest.raises(ConfigError, match=message):
        parse({"source": {"path": "x"}, **change}, root=Ablation)


def test_each_command_knows_the_other_ones_files(config_file, tmp_path, capsys):
    code, _, err = run(capsys, "train", config_file)
    assert code == 2
    assert "these are keys of `negbank ablate`, not of `negbank train`" in err
    path = tmp_path / "run.yaml"
    path.write_text("run: {steps: 3}\nloss: {temperature: 0.1}\n")
    assert "not of `negbank ablate`" in run(capsys, "ablate", path)[2]


def test_overrides_reach_an_ablation(config_file):
    config, notes = load(
        config_file,
        ["source.type=snapshots", "source.bank=a", "source.truth=b", "proposals=[{type: head_tail, k: 9}]"],
        root=Ablation,
    )
    assert (config.source.bank, config.source.truth, config.source.type) == ("a", "b", "snapshots")
    assert config.proposals == [HeadTailProposal(k=9)]
    assert "source.type=snapshots: dropped source.path, an option of npy" in notes


def test_the_keys_of_an_ablation_are_described():
    keys = describe(Ablation)
    assert all(text for _, _, text in keys)
    promised = (
        "source.type source.path source.bank temperatures proposals proposals[].k budgets anchors queries out seed"
    )
    assert set(promised.split()) <= {key for key, _, _ in keys}


# --- snapshots --------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path, clustered):
    """Saves rows as a snapshot; their folder."""
    rows = clustered(30, dim=5, clusters=3)

    def save(name, step, vectors=rows, **options):
        Snapshot.build(vectors, step=step, factory="exact", **options).save(tmp_path / name)
        return str(tmp_path / name)

    return save, rows


def from_snapshots(make, bank, truth, **changes):
    return from_config(make(source={"type": "snapshots", "bank": bank, "truth": truth}, **changes))


def test_two_snapshots_are_bank_and_truth(no_figures, make, saved, tmp_path):
    save, rows = saved
    fresh = moved(torch.nn.functional.normalize(rows, dim=1), 0.9, seed=2)
    bank, truth = save("old", 10), save("new", 25, fresh)
    found = from_snapshots(make, bank, truth, anchors=30, budgets=[1, 4])
    assert str(found).startswith("For this run: ")
    rows = table(tmp_path / "out")
    assert {row["level"] for row in rows} == {"step 10 seen from 25"}
    assert float(rows[0]["staleness"]) == pytest.approx(0.1, abs=1e-4)
    direct = ablate(
        Snapshot.load(bank), fresh, {"HeadTail": lambda s: HeadTail(s, 4, 0.1)},
        temperatures=0.1, budgets=[1, 4], anchors=30,
    )  # fmt: skip
    mine = [row for row in rows if row["proposal"].startswith("HeadTail")]
    assert [float(row["bias"]) for row in mine] == pytest.approx([row["bias"] for row in direct], rel=1e-5)


def test_snapshots_that_do_not_fit_are_refused(make, saved, tmp_path, clustered):
    save, rows = saved
    old, new = save("old", 10), save("new", 20)
    small, half = save("small", 30, rows[:20]), save("half", 40, written=torch.arange(30) < 20)
    few = save("few", 5, rows[:7]), save("fewer", 6, rows[:7])
    for bank, truth, message in (
        (new, old, "of step 10, not newer than .* of step 20"),
        (old, old, "not newer"),
        (old, small, r"of shape \(20, 5\)"),
        (old, half, "only 20 of its 30 rows were ever written"),
        (*few, "N ≥ 8"),
        (str(tmp_path / "none"), new, "no such folder"),
    ):
        with pytest.raises(ValueError, match=message):
            from_snapshots(make, bank, truth)
    assert not (tmp_path / "out").exists()


def test_a_damaged_snapshot_ends_with_code_1(config_file, saved, tmp_path, capsys):
    save, _ = saved
    old, new = save("old", 10), save("new", 20)
    (tmp_path / "new" / "vectors.npy").write_bytes(b"x")
    code, _, err = run(
        capsys, "ablate", config_file, "source.type=snapshots", f"source.bank={old}", f"source.truth={new}"
    )
    assert code == 1
    assert "checksum differs" in err


# --- inside of a run --------------------------------------------------------------------------------------------------

RUN = {
    "data": {"type": "digits"},
    "encoder": {"width": 16, "features": 32, "projector": {"hidden": 32, "dim": 16}},
    "batches": {"batch_size": 16},
    "negatives": {"type": "emc2", "proposal": {"k": 8}, "draws": 1},
    "refresh": {"every": 4, "unit": "steps", "mode": "full", "probe_rows": 32},
    "eval": {"every": 50, "global_rows": 100},
}
LIVE = {"every": 3, "anchors": 5, "budgets": [1, 4], "proposals": PROPOSALS}


def a_run(tmp_path, name="run", negatives=None, **changes):
    data = {**RUN, "negatives": negatives or RUN["negatives"], **changes}
    return parse({**data, "run": {"steps": 12, "checkpoint_every": 5, "log_every": 2, "dir": str(tmp_path / name)}})[0]


def test_a_run_measures_itself_before_its_refreshes_and_stays_as_it_is(tmp_path):
    start(a_run(tmp_path, "plain"))
    start(a_run(tmp_path, ablation=LIVE))
    plain, ablated = tmp_path / "plain", tmp_path / "run"
    assert (plain / "metrics.jsonl").read_bytes() == (ablated / "metrics.jsonl").read_bytes()
    assert not (plain / "ablation").exists()
    assert {p.name for p in (ablated / "ablation").iterdir()} == set(OUTPUTS)
    rows = table(ablated / "ablation")
    assert list(dict.fromkeys(row["level"] for row in rows)) == ["step 3", "step 6", "step 9", "step 12"]
    staleness = {row["level"]: float(row["staleness"]) for row in rows}
    assert staleness["step 12"] > 1e-4  # refreshes are at 4 and 8: at step 12 the bank is four steps old, not none
    assert {float(row["temperature"]) for row in rows} == {0.1}
    assert "For this run: " in (ablated / "ablation" / "report.html").read_text()


def test_a_resumed_run_has_the_same_ablation(no_figures, tmp_path):
    start(a_run(tmp_path, ablation=LIVE))
    folder = tmp_path / "run"
    whole = table(folder / "ablation")
    (folder / "checkpoints" / "step_00000012").rename(tmp_path / "gone")
    with (folder / "ablation" / "ablation.jsonl").open("r+b") as file:  # killed while it wrote the cells of step 12
        file.truncate(file.seek(0, 2) - 700)
    half = (folder / "ablation" / "ablation.jsonl").read_bytes()
    evaluate(folder)
    assert (folder / "ablation" / "ablation.jsonl").read_bytes() == half
    resume(folder)
    assert table(folder / "ablation") == whole
    with pytest.raises(RunError, match="holds a run already"):
        start(a_run(tmp_path, ablation=LIVE))
    start(a_run(tmp_path, ablation={**LIVE, "every": 12}), overwrite=True)
    assert {row["level"] for row in table(folder / "ablation")} == {"step 12"}


def test_a_run_without_index_negatives_can_be_ablated_too(no_figures, tmp_path):
    start(a_run(tmp_path, negatives={"type": "in_batch"}, ablation={**LIVE, "queries": ["bank", "fresh"]}))
    assert {row["query"] for row in table(tmp_path / "run" / "ablation")} == {"bank", "fresh"}
    start(a_run(tmp_path, "plain", negatives={"type": "in_batch"}))
    ablated, plain = ([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
                      for name in ("run", "plain"))  # fmt: skip
    assert [row for row in ablated if row["event"] != "refresh"] == plain  # encodings, too: refreshes are not its own


def test_a_live_ablation_that_cannot_be_is_said_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"ablation.proposals\[0\].k=5000: there are only \d+ other rows"):
        start(a_run(tmp_path, ablation={**LIVE, "proposals": [{"type": "nearest", "k": 5000}]}))
    with pytest.raises(ConfigError, match=r"ablation\.budgets: is empty"):
        a_run(tmp_path, ablation={**LIVE, "budgets": []})
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
