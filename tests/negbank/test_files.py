"""Writes that survive: whatever a run is stopped at, what is found is the old or the new, whole, and damage is seen."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from negbank.files import DamagedError, folder, manifest, remove, sealed, write

STOPPED = """
import os, pathlib, sys
from negbank import files
what, k, root = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
left = [k]
def counted(call):
    def stopped(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)  # as by a kill: no finally, no except
        return call(*arguments, **options)
    return stopped
for name in ("fsync", "replace", "rename", "mkdir", "rmdir", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
if what == "file":
    files.write(root / "a", lambda file: (file.write(b"ne"), file.flush(), os.mkdir(root / "half"), file.write(b"w")))
else:
    with files.folder(root / "b", {"is": "new"}) as draft:
        (draft / "one").write_bytes(b"new")
        os.mkdir(draft / "within")
        (draft / "within" / "two").write_bytes(b"new")
"""


def found_in(path: Path) -> str:
    """The folder's version, every file of it checked."""
    version = manifest(path)["is"]
    assert (path / "one").read_text() == (path / "within" / "two").read_text() == version
    return version


def fill(path: Path, version: str) -> None:
    with folder(path, {"is": version}) as draft:
        (draft / "within").mkdir()
        for name in ("one", "within/two"):
            (draft / name).write_text(version)


def prepare(what: str, root: Path) -> None:
    root.mkdir()
    if what == "file":
        write(root / "a", "old")


def look(what: str, root: Path) -> str:
    if what == "file":
        return (root / "a").read_text()
    return found_in(root / "b") if (root / "b").exists() else "none"


@pytest.mark.parametrize("what", ["file", "fresh"])
def test_a_kill_at_any_point_leaves_the_old_or_the_new_whole(tmp_path, what):
    seen = []
    for k in itertools.count(1):
        root = tmp_path / str(k)
        prepare(what, root)
        code = subprocess.run([sys.executable, "-c", STOPPED, what, str(k), str(root)]).returncode
        seen.append(look(what, root))
        if what == "file":  # and the next write finds nothing in its way
            write(root / "a", "newest")
            assert [p.name for p in root.iterdir() if p.name != "half"] == ["a"]
        else:
            if (root / "b").exists():
                remove(root / "b")
            fill(root / "b", "newest")
            assert [p.name for p in root.iterdir()] == ["b"]
            assert found_in(root / "b") == "newest"
        if code == 0:
            break
        assert code == 9
    before = {"file": "old", "fresh": "none"}[what]
    assert len(seen) >= {"file": 4, "fresh": 7}[what]
    assert set(seen) == {before, "new"}
    assert sorted(seen, key=(before, "new").index) == seen


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("what", ["file", "fresh"])
def test_an_error_of_the_disk_at_any_point_passes_and_leaves_nothing_behind(tmp_path, monkeypatch, what, code):
    for k in itertools.count(1):
        root, left = tmp_path / str(k), [k]
        prepare(what, root)
        before = look(what, root)

        def failing(call, left=left):
            def one_fails(*arguments, **options):
                left[0] -= 1
                if left[0] == 0:
                    raise OSError(code, os.strerror(code))
                return call(*arguments, **options)

            return one_fails

        failed = None
        with monkeypatch.context() as patch:
            for name in ("fsync", "replace", "rename", "mkdir"):
                patch.setattr(os, name, failing(getattr(os, name)))
            try:
                if what == "file":
                    write(root / "a", "new")
                else:
                    fill(root / "b", "new")
            except OSError as error:
                failed = error.errno
        after = look(what, root)
        if failed is None:
            assert after == "new"
            break
        assert failed == code
        assert after in (before, "new")
        kept = {"a"} if what == "file" else {"b"} if after != "none" else set()
        assert {p.name for p in root.iterdir()} == kept
    assert k >= {"file": 3, "fresh": 7}[what]


def interrupted(path: Path) -> None:
    with folder(path, {}) as draft:
        (draft / "one").write_text("new")
        raise KeyboardInterrupt


def test_what_fails_while_writing_leaves_the_old(tmp_path):
    write(tmp_path / "a", b"old")
    fill(tmp_path / "b", "old")

    def half(file):
        file.write(b"ne")
        raise MemoryError

    with pytest.raises(MemoryError):
        write(tmp_path / "a", half)
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "c")
    assert (tmp_path / "a").read_text() == found_in(tmp_path / "b") == "old"
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


def test_text_bytes_and_functions(tmp_path):
    for content in ("β → π", "β → π".encode(), lambda file: file.write("β → π".encode())):
        write(tmp_path / "a", content)
        assert (tmp_path / "a").read_bytes() == "β → π".encode()


def test_a_folder_is_not_replaced_unasked(tmp_path):
    fill(tmp_path / "new" / "parents" / "b", "old")
    with pytest.raises(FileExistsError, match="write under another name"):
        fill(tmp_path / "new" / "parents" / "b", "new")
    assert found_in(tmp_path / "new" / "parents" / "b") == "old"


def test_about_may_be_filled_inside(tmp_path):
    about = {}
    with folder(tmp_path / "b", about) as draft:
        (draft / "one").write_text("1")
        about.update(rows=3, share=0.1, none=None, names=("a", "b"))
    assert {k: v for k, v in manifest(tmp_path / "b").items() if k != "sha256"} == {
        "rows": 3, "share": 0.1, "none": None, "names": ["a", "b"],
    }  # fmt: skip


def test_every_flipped_byte_and_every_truncation_is_refused(tmp_path):
    fill(tmp_path / "b", "old")
    for path in (p for p in (tmp_path / "b").rglob("*") if p.is_file()):
        whole = path.read_bytes()
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x01]) + whole[at + 1 :])
            with pytest.raises(DamagedError, match=str(path.parent)):
                manifest(tmp_path / "b")
            path.write_bytes(whole[:at])
            with pytest.raises(DamagedError):
                manifest(tmp_path / "b")
        path.unlink()
        with pytest.raises(DamagedError, match=r"missing|not readable"):
            manifest(tmp_path / "b")
        path.write_bytes(whole)
    assert found_in(tmp_path / "b") == "old"


@pytest.mark.parametrize("text", ["[]", "{}", "3", "{", '{"sha256": 3}', '{"sha256": {}}'])
def test_another_files_manifest_is_damage_too(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        manifest(tmp_path)
    with pytest.raises(DamagedError, match="not readable"):
        manifest(tmp_path / "none")


def test_what_is_changed_on_purpose_is_sealed_again(tmp_path):
    fill(tmp_path / "b", "old")
    said = manifest(tmp_path / "b")
    (tmp_path / "b" / "manifest.json").write_text(sealed(said | {"is": "newer"}))
    assert manifest(tmp_path / "b")["is"] == "newer"
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(said))
    with pytest.raises(DamagedError, match="no checksum of itself"):
        manifest(tmp_path / "b")


def test_left_over_drafts_are_replaced(tmp_path):
    (tmp_path / "a.tmp").write_text("half")
    (tmp_path / "b.tmp").mkdir()
    (tmp_path / "b.tmp" / "other").write_text("half")
    write(tmp_path / "a", "new")
    fill(tmp_path / "b", "new")
    assert found_in(tmp_path / "b") == "new"
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["manifest.json", "one", "within"]
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}
