from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from negbank.train.commands import main
from negbank.train.data.images.sources import DownloadError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "data: {type: digits}\nencoder: {width: 16, features: 16, projector: {hidden: 16, dim: 8}}\n"
        f"batches: {{batch_size: 16}}\nnegatives: {{proposal: {{k: 8}}}}\nrun: {{steps: 4, dir: {tmp_path}/run}}\n"
    )
    return path


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_train_prints_the_table_and_eval_the_same_numbers(config_file, tmp_path, capsys):
    code, out, _ = run(capsys, "train", config_file, "run.seed=3")
    assert code == 0
    for name in (
        "kNN accuracy, trained",
        "untrained encoder",
        "raw pixels",
        "linear probe",
        "view retrieval@1",
        "seconds",
    ):
        assert name in out
    trained = next(line for line in out.splitlines() if "trained encoder" in line and "un" not in line)
    code, out, _ = run(capsys, "eval", tmp_path / "run")
    assert code == 0
    assert (
        trained.split()[-1] == next(x for x in out.splitlines() if "trained encoder" in x and "un" not in x).split()[-1]
    )


def test_simclr_by_one_override(config_file, tmp_path, capsys):
    code, out, _ = run(capsys, "train", config_file, "negatives.type=in_batch")
    assert code == 0
    assert "note: negatives.type=in_batch: dropped negatives.proposal" in out
    assert "acceptance" not in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("proposal", ["head_tail", "cells", "stale_softmax", "uniform"])
@pytest.mark.parametrize("negatives", ["emc2", "importance"])
def test_every_proposal_by_its_name(config_file, capsys, negatives, proposal):
    code, out, _ = run(
        capsys, "train", config_file, f"negatives.type={negatives}", f"negatives.proposal.type={proposal}",
        "negatives.draws=2", "refresh.every=2", "refresh.unit=steps",
    )  # fmt: skip
    assert code == 0
    assert "kNN accuracy" in out


def test_validate_reports_every_file(config_file, tmp_path, capsys):
    bad = tmp_path / "bad.yaml"
    bad.write_text("run: {stps: 3}\nnegatives: {type: prosampler}\n")
    code, out, err = run(capsys, "validate", config_file, bad, *sorted((ROOT / "configs").glob("*.yaml")))
    assert code == 2
    absent = len(re.findall(r"configs/\S+: \d problem", err))  # of data that nobody ships: all that is wrong with them
    assert out.count(": ok") + absent == 1 + len(list((ROOT / "configs").glob("*.yaml")))
    said = sum(int(number) for number in re.findall(r"configs/\S+: (\d) problem", err))
    assert err.count("no such file or folder; check the path") == said >= absent
    assert "did you mean 'steps'?" in err
    assert "'prosampler' is unknown" in err


def test_validate_says_what_is_known_before_anything_is_loaded(config_file, capsys, monkeypatch):
    """With overrides; and training with the same file reads no data before it says so."""
    for override, said in (
        ("data.root=/no/such", "data.root: '/no/such': no such file or folder"),
        ("batches.type=prosampler", "negatives.type: emc2 takes the batch's rows for uniform draws"),
        ("run.steps=none", "run.steps: 'none' is no int"),
    ):
        overrides = [override, "data.type=image_folder"] if "root" in override else [override]
        code, out, err = run(capsys, "validate", config_file, *overrides)
        assert (code, out) == (2, "")
        assert said in err
        monkeypatch.setattr("negbank.train.build.load_data", lambda config: pytest.fail("the data were read"))
        code, _, err = run(capsys, "train", config_file, *overrides)
        assert code == 2
        assert said in err
    assert run(capsys, "validate", config_file, "run.steps=5")[0] == 0


def test_an_index_that_cannot_be_trained_is_said_before_the_first_refresh(config_file, tmp_path, capsys):
    for factory in ("IVF9999,Flat", "PQ8x12"):
        code, _, err = run(capsys, "train", config_file, "data.rows=600", f"index.factory={factory}")
        assert code == 2
        assert f"index.factory='{factory}': " in err
        assert not (tmp_path / "run").exists()


def test_list_and_schema(capsys):
    code, out, _ = run(capsys, "list", "train")
    assert code == 0
    assert "refresh.every = 1" in out
    code, out, _ = run(capsys, "schema")
    assert code == 0
    assert "negatives" in json.loads(out)["properties"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "needs a CONFIG"),
        (["train", "missing.yaml"], "no such file"),
        (["train", "CONFIG", "--resume", "x"], "give no CONFIG"),
        (["train", "CONFIG", "negatives.type=emc"], "did you mean 'emc2'?"),
        (["train", "CONFIG", "batches.batch_size=9999"], "batches.batch_size=9999"),
        (["train", "CONFIG", "negatives.proposal.k=9999"], "negatives.proposal.k=9999"),
        (["train", "CONFIG", "negatives.type=[emc2]"], "negatives.type: ['emc2'] is unknown"),
        (["train", "CONFIG", "run.dir=[a"], "'run.dir=[a': not readable as YAML"),
        (["train", "CONFIG", "run=5"], "run: expected a mapping of options, found 5"),
        (["ablate", "ABLATION", "proposals=[{type: uniform]"], "'proposals=[{type: uniform]': not readable as YAML"),
        (["compare", "COMPARISON", "base.run.steps=4k"], "base.run.steps: '4k' is no int"),
        (["compare", "COMPARISON", "base.run=5"], "base.run: expected a mapping of options, found 5"),
        (["train", "CONFIG", "index.factory=bogus"], "index.factory='bogus': Faiss refuses"),
        (["train", "CONFIG", "run.dir=${oc.env:HOME}"], "asks a resolver"),
        (["train", "CONFIG", "data.type=image_folder", "data.root=nowhere"], "nowhere"),
    ],
)
def test_bad_input_ends_with_one_message_and_code_2(config_file, arguments, message, capsys):
    files = {"CONFIG": config_file, "ABLATION": ROOT / "configs" / "ablate_npy.yaml",
             "COMPARISON": ROOT / "configs" / "compare_mnist5k.yaml"}  # fmt: skip
    code, _, err = run(capsys, *[files.get(a, a) for a in arguments])
    assert code == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("content", [None, b"cat,dog", b"", b"PK\x03\x04", "archive", "strings", "floats"])
def test_labels_that_are_no_npy_file_of_integers(content, config_file, tmp_path, capsys):
    path = tmp_path / "labels.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "archive":
        with path.open("wb") as file:
            np.savez(file, labels=np.zeros(3, np.int64))
    elif content is not None:
        np.save(path, np.array(["cat", "dog"]) if content == "strings" else np.zeros(3))
    code, _, err = run(capsys, "train", config_file, "negatives.type=in_batch", "batches.type=knn",
                       f"batches.groups={path}", "batches.max_per_group=2")  # fmt: skip
    assert code == 2
    if content is None:
        assert f"batches.groups: '{path}': no such file or folder; check the path" in err
    else:
        assert f"batches.groups={path}: " in err
        assert "give an .npy file of integer labels" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [(DownloadError("cifar10 is not complete"), 1), (PermissionError(13, "denied"), 1), (KeyboardInterrupt(), 130)],
)
def test_data_that_cannot_be_read_end_with_one_line(error, code, config_file, tmp_path, capsys, monkeypatch):
    assert run(capsys, "train", config_file)[0] == 0
    comparison = tmp_path / "compare.yaml"
    comparison.write_text(
        f"base: {{data: {{type: digits}}, run: {{steps: 2}}}}\nmethods: {{a: }}\nout: {tmp_path}/out\n"
    )

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("negbank.train.data.images.sources.digits", fail)
    for command in (["eval", tmp_path / "run"], ["train", config_file, f"run.dir={tmp_path}/other"],
                    ["train", "--resume", tmp_path / "run"], ["compare", comparison]):  # fmt: skip
        found, _, err = run(capsys, *command)
        assert found == code
        assert len(err.splitlines()) == 1


def test_images_that_cannot_be_used_are_named_before_training(config_file, tmp_path, capsys):
    flat = tmp_path / "flat.zip"
    with zipfile.ZipFile(flat, "w") as archive:
        archive.writestr("a.png", b"")
        archive.writestr("b.png", b"")
    code, _, err = run(capsys, "train", config_file, "data.type=image_folder", f"data.root={flat}")
    assert code == 2
    assert "2 unreadable file(s)" in err
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    broken = tmp_path / "images" / "dog" / "7.png"
    broken.write_bytes(broken.read_bytes()[:100])
    code, _, err = run(capsys, "train", config_file, "data.type=image_folder", f"data.root={tmp_path / 'images'}")
    assert code == 2
    assert "7.png" in err
    assert not (tmp_path / "run").exists()


def test_unknown_words_are_refused(config_file):
    with pytest.raises(SystemExit):
        main(["eval", "x", "run.seed=1"])
    with pytest.raises(SystemExit):
        main(["train", str(config_file), "--fast"])


def test_a_package_that_is_missing_is_named_with_what_brings_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic", None)
    for name in [name for name in sys.modules if name.startswith("negbank.train.config")]:
        monkeypatch.delitem(sys.modules, name)
    code, _, err = run(capsys, "list", "batches")
    assert code == 1
    assert "pydantic" in err
    assert "pip install 'negbank[train]'" in err
