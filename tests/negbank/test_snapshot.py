from __future__ import annotations

import numpy as np
import pytest
import torch

from negbank import DamagedSnapshotError, Snapshot
from negbank.files import manifest, seal, sealed, told


def build(clustered, **arguments):
    written = torch.arange(500) % 5 != 0
    return Snapshot.build(clustered(500), written=written, step=42, version=3, **arguments)


@pytest.mark.parametrize("factory", ["auto", "exact", "IVF8,Flat", "HNSW8,Flat"])
def test_saved_and_loaded_whole(clustered, tmp_path, factory):
    snapshot = build(clustered, factory=factory, positives=clustered(500, seed=1))
    snapshot.save(tmp_path / "s")
    loaded = Snapshot.load(tmp_path / "s")
    assert (loaded.step, loaded.version, len(loaded)) == (42, 3, 500)
    assert torch.equal(loaded.vectors, snapshot.vectors)
    assert torch.equal(loaded.positives, snapshot.positives)
    assert torch.equal(loaded.rows, snapshot.rows)
    assert loaded.index.report == snapshot.index.report
    for a, b in zip(loaded.index.search(snapshot.vectors[:50], 9), snapshot.index.search(snapshot.vectors[:50], 9)):
        assert torch.equal(a, b)
    if snapshot.index.cells is not None:
        assert all(torch.equal(a, b) for a, b in zip(loaded.index.cells, snapshot.index.cells))
    with pytest.raises(FileExistsError, match="write under another name"):
        snapshot.save(tmp_path / "s")


@pytest.mark.parametrize("name", ["vectors.npy", "rows.npy", "index.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_refused_and_named(clustered, tmp_path, name, damage):
    build(clustered, factory="IVF8,Flat").save(tmp_path / "s")
    path = tmp_path / "s" / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 0x55
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    with pytest.raises(DamagedSnapshotError, match="rebuild it"):
        Snapshot.load(tmp_path / "s")


def test_another_format_is_refused(clustered, tmp_path):
    build(clustered).save(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    path.write_text(sealed(manifest(path.parent) | {"format": 99}))
    with pytest.raises(DamagedSnapshotError, match="format 99"):
        Snapshot.load(tmp_path / "s")


@pytest.mark.parametrize("name", ["index.pt", "vectors.npy", "rows.npy"])
@pytest.mark.parametrize("content", [b"", b"no index", "index of another Faiss", "array"])
def test_whole_files_that_this_version_cannot_read(clustered, tmp_path, name, content):
    """Their checksums fit, so nothing is damaged: what torch, numpy or Faiss raise is said, with the folder."""
    Snapshot.build(clustered(600), factory="IVF4,Flat", written=torch.arange(600) > 2).save(tmp_path / "s")
    path = tmp_path / "s" / name
    if content == "index of another Faiss":
        state = torch.load(tmp_path / "s" / "index.pt", weights_only=True)
        torch.save({**state, "bytes": state["bytes"][:7]}, path)
    elif content == "array":
        np.save(path.open("wb"), np.zeros(3, np.complex64))
    else:
        path.write_bytes(content)
    seal(tmp_path / "s", {k: v for k, v in told(tmp_path / "s").items() if k != "sha256"},
         [each.name for each in (tmp_path / "s").iterdir() if each.name != "manifest.json"])  # fmt: skip
    with pytest.raises(DamagedSnapshotError, match=rf"{tmp_path}.*; rebuild it|vectors are"):
        Snapshot.load(tmp_path / "s")


@pytest.mark.parametrize("key", ["shape", "dtype", "step", "version"])
def test_a_manifest_without_a_key(clustered, tmp_path, key):
    build(clustered).save(tmp_path / "s")
    found = told(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").write_text(sealed({k: v for k, v in found.items() if k != key}))
    with pytest.raises(DamagedSnapshotError, match=f"its manifest has no {key}; rebuild it"):
        Snapshot.load(tmp_path / "s")


def test_it_is_frozen_against_its_source(clustered):
    x = clustered(50)
    snapshot = Snapshot.build(x)
    before = snapshot.vectors.clone()
    x.zero_()
    assert torch.equal(snapshot.vectors, before)


def test_numpy_of_any_float_type_is_normalised(clustered):
    x = (3 * clustered(50)).double().numpy()
    torch.testing.assert_close(Snapshot.build(x).vectors, clustered(50))
    torch.testing.assert_close(Snapshot.build(x.astype(np.float16)).vectors, clustered(50), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("vectors", "arguments", "message"),
    [
        (torch.ones(5), {}, "expected floating point \\(N, D\\)"),
        (torch.ones(5, 2, dtype=torch.int64), {}, "expected floating point"),
        (torch.full((5, 2), torch.nan), {}, "5 row\\(s\\) hold NaN"),
        (torch.zeros(5, 2), {}, "rows \\[0, 1, 2, 3, 4\\] are all zero"),
        (torch.ones(1, 2), {}, "at least two"),
        (torch.ones(5, 2), {"positives": torch.ones(4, 2)}, "positives: shape"),
        (torch.ones(5, 2), {"written": torch.tensor([True, False, False, False, False])}, "at least two"),
    ],
)
def test_bad_input_is_named(vectors, arguments, message):
    with pytest.raises(ValueError, match=message):
        Snapshot.build(vectors, **arguments)
