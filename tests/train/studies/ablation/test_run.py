"""`negbank ablate` from a configuration to its report."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from negbank.train.commands import main
from negbank.train.config import ConfigError, load, parse, root_model
from negbank.train.studies.ablation.store import OUTPUTS


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_folder_holds_what_is_promised(make, tmp_path, study, table):
    found = study(make(queries=["bank", "fresh"], temperatures=[0.1, 0.3]))
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


def test_the_report_is_one_file_that_opens_with_the_answer(make, npy, tmp_path, study):
    found = study(make())
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


def test_the_command_line_end_to_end(config_file, tmp_path, capsys):
    code, out, err = run(capsys, "ablate", config_file, "anchors=5")
    assert code == 0, err
    assert re.match(r"For rows <b>&\.npy: .*× the effective draws per ms of .*\nwritten to .*report.html", out)
    assert "2/2" in err  # the progress bar
    assert (run(capsys, "ablate", config_file)[0], run(capsys, "ablate", config_file, "--overwrite")[0]) == (1, 0)
    code, _, err = run(capsys, "ablate", config_file)
    assert code == 0
    assert run(capsys, "validate", config_file)[1] == f"{config_file}: ok\n"
    keys = run(capsys, "list", "ablate")[1]
    assert "budgets = [1, 2, 4, 8, 16, 32, 64]" in keys
    assert "cosines = [0.99, 0.97, 0.9, 0.77]" in run(capsys, "list", "source.npy")[1]
    assert "every = None" in run(capsys, "list", "ablation")[1]


@pytest.mark.parametrize(
    ("rows", "change", "message"),
    [
        (None, "source.path=missing.npy", "missing.npy: no such file"),
        (b"text", "seed=0", "not readable (ValueError"),
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
        (np.eye(30), "source.type=snapshots", "source.bank: is needed: folder of the older snapshot"),
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
            root="ablate",
        )
    expected = {
        "source.cosines[1]": "expected at most 1",
        "source.path": "is needed: the .npy file",
        "proposals[0].type": "did you mean 'nearest'?",
        "proposals[1].kk": "no such key",
        "proposals[1].floor": "expected at most 1",
        "budgets[1]": "expected at least 1",
        "queries[1]": "expected one of bank, fresh",
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
        ({"source": {}}, "source.path: is needed: the .npy file"),
        ({"proposals": "uniform"}, "proposals: 'uniform' is no list"),
        ({"proposals": ["uniform"]}, r"proposals\[0\]: expected a mapping of options, found 'uniform'"),
        ({"out": ""}, "out: needs"),
    ],
)
def test_impossible_ablations(change, message):
    with pytest.raises(ConfigError, match=message):
        parse({"source": {"path": "x"}, **change}, root="ablate")


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
        root="ablate",
    )
    assert (config.source.bank, config.source.truth, config.source.type) == ("a", "b", "snapshots")
    assert [(each.type, each.k, each.floor) for each in config.proposals] == [("head_tail", 9, 0.1)]
    assert "source.type=snapshots: dropped source.path, an option of npy" in notes


def test_every_key_has_a_help():
    assert all(field.description for field in root_model("ablate").model_fields.values())
