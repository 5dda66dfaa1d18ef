"""An ablation's folder through kills, reruns, other settings and damage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from negbank.train.studies.ablation import run as running
from negbank.train.studies.ablation.measurement import Key
from negbank.train.studies.ablation.store import AblationError, Store

PROPOSALS = [{"type": "uniform"}, {"type": "head_tail", "k": 4}]


@pytest.fixture
def counted(monkeypatch):
    """The keys of the cells that are measured."""
    keys, original = [], running.measured

    def measured(bank, truth, rows, binds, left, **options):
        for found in original(bank, truth, rows, binds, left, **options):
            keys.append(found.key)
            yield found

    monkeypatch.setattr(running, "measured", measured)
    return keys


@pytest.mark.parametrize("cut", ["mid line", "mid cell", "before the newline", "nothing", "all"])
def test_a_rerun_goes_on_from_the_last_whole_made(cut, no_figures, make, counted, tmp_path, study, table):
    config = make()
    study(config)
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
    study(config)
    assert counted == again
    assert table(tmp_path / "out") == whole
    assert len(path.read_bytes().splitlines()) == len(lines)


def test_other_settings_are_refused_and_overwrite_replaces(no_figures, make, counted, npy, tmp_path, study, table):
    study(make())
    kept = tmp_path / "out" / "mine.txt"
    kept.write_text("mine")
    counted.clear()
    with pytest.raises(AblationError, match=r"anchors: 6 there, 5 now.*--overwrite"):
        study(make(anchors=5))
    with pytest.raises(AblationError, match=r"proposals\[1\]\.k: 4 there, 5 now"):
        study(make(proposals=[PROPOSALS[0], {"type": "head_tail", "k": 5}]))
    np.save(npy, np.load(npy)[::-1])
    with pytest.raises(AblationError, match=r"inputs\..*npy: "):
        study(make())
    assert counted == []
    study(make(anchors=5), overwrite=True)
    assert {row["anchors"] for row in table(tmp_path / "out")} == {"5"}
    assert kept.read_text() == "mine"


def test_damage_in_the_middle_is_said(no_figures, make, tmp_path, study):
    study(make())
    path = tmp_path / "out" / "ablation.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for bad in (b"{\n", b"{}\n", lines[20]):
        path.write_bytes(b"".join([*lines[:5], bad, *lines[6:]]))
        with pytest.raises(AblationError, match=r"ablation.jsonl, line \d+: damaged .*--overwrite"):
            study(make())
    (tmp_path / "out" / "settings.json").unlink()
    with pytest.raises(AblationError, match="without settings"):
        study(make())


def test_a_store_forgets_from_a_cell_on(tmp_path, made):
    store = Store(tmp_path / "s", {})
    for level in ("step 1", "step 2", "step 3"):
        store.add(made("p", torch.rand(3), level=level))
    store.cut(Key("p", 0.1, "step 2", "bank"))
    assert [key.level for key in Store(tmp_path / "s", {}).done] == [key.level for key in store.done] == ["step 1"]
    store.cut(Key("p", 0.1, "step 1", "bank"))
    assert Store(tmp_path / "s", {}).done == {}
