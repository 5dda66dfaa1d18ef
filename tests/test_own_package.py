"""A package of one's own is known to YAML by its entry point alone: nothing of ours is edited."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder of packages that has the example's."""
    folder = tmp_path_factory.mktemp("packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, str(ROOT / "examples" / "own_sampler")], check=True)
    return folder


def negbank(*arguments, packages=None):
    environment = {**os.environ, **({} if packages is None else {"PYTHONPATH": str(packages)})}
    command = [sys.executable, "-m", "negbank", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_it_is_listed_checked_and_trained(installed, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "data: {type: digits}\nencoder: {width: 16, features: 16, projector: {hidden: 16, dim: 8}}\n"
        f"negatives: {{type: harder_half, share: 0.25}}\nrun: {{steps: 3, log_every: 1, dir: {tmp_path}/run}}\n"
    )
    unknown = negbank("validate", config)
    assert unknown.returncode == 2
    assert "'harder_half' is unknown" in unknown.stderr
    listed = negbank("list", "negatives", packages=installed)
    assert "InfoNCE against the harder part of the batch" in listed.stdout
    wrong = negbank("train", config, "negatives.share=2", packages=installed)
    assert wrong.returncode == 2
    assert "negatives.share: 2, expected at most 1" in wrong.stderr
    trained = negbank("train", config, packages=installed)
    assert trained.returncode == 0, trained.stderr
    assert '"kept"' in (tmp_path / "run" / "metrics.jsonl").read_text()
