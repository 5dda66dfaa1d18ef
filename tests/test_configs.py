"""Every YAML that we ship is valid, complete, and says in its header what it is and how to run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from negbank.train.config import load, root_of
from negbank.train.make import make

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))
RUNS = [path for path in CONFIGS if root_of(path) == "train"]


@pytest.fixture
def images(tmp_path):
    """What takes the place of images that a user has: `data.root` is looked for when a configuration is read."""

    def overrides(path):
        text = path.read_text()
        if "path: pairs.tsv" in text:
            (tmp_path / "pairs.tsv").write_text("short\tlong\tsource\na\tb\t1\n")
            return [f"data.{side}.path={tmp_path / 'pairs.tsv'}" for side in ("left", "right")]
        key = "base.data.root" if root_of(path) == "compare" else "data.root"
        return [f"{key}={tmp_path}"] if "root: data/" in text else []

    return overrides


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_it_is_valid_and_its_header_has_the_command(path, images):
    root = root_of(path)
    config, notes = load(path, images(path), root=root)
    assert not notes
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    schema = "negbank.schema.json" if root == "train" else f"negbank.{root}.schema.json"
    assert header[0] == f"# yaml-language-server: $schema=../{schema}"
    assert any(f"negbank {root} configs/{path.name}" in line for line in header)
    assert (config.run.dir if root == "train" else config.out) == f"runs/{path.stem}"


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.name)
def test_its_encoder_can_be_built(path, images):
    config, _ = load(path, images(path))
    channels = 1 if config.data.type in ("mnist5k", "digits", "fashion_mnist") else 3
    told = {"channels": channels, "vocabulary": 32_000, "tokenizer": "wordllama"}
    assert sum(p.numel() for p in make("encoder", config.encoder, **told).parameters()) > 10_000


def test_there_is_an_ablation_for_each_source():
    ablations = [load(path, root="ablate")[0] for path in CONFIGS if root_of(path) == "ablate"]
    assert {config.source.type for config in ablations} == {"npy", "snapshots"}


def test_there_is_one_for_the_quickstart_and_each_published_setting():
    assert {"quickstart", "emc2_stl10", "emc2_imagenet100", "emc2_cifar10"} <= {p.stem for p in CONFIGS}
