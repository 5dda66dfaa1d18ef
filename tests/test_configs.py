"""Every YAML that we ship is valid, complete, and says in its header what it is and how to run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.build import build_embedder
from train.config import load

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_it_is_valid_and_its_header_has_the_command(path):
    config, notes = load(path)
    assert not notes
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"negbank train configs/{path.name}" in line for line in header)
    assert config.run.dir == f"runs/{path.stem}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_its_encoder_can_be_built(path):
    config, _ = load(path)
    channels = 1 if config.data.type in ("mnist5k", "digits", "fashion_mnist") else 3
    assert sum(p.numel() for p in build_embedder(config, channels=channels).parameters()) > 10_000


def test_there_is_one_for_the_quickstart_and_each_published_setting():
    assert {"quickstart", "emc2_stl10", "emc2_imagenet100", "emc2_cifar10"} <= {p.stem for p in CONFIGS}
