"""Random folders and zips of images against what the operating system and `zipfile` say is in them."""

from __future__ import annotations

import io
import os
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from negbank.train.data.images import ImageFiles
from negbank.train.data.images.files import Files
from negbank.train.data.images.folder import image_folder

CASES = 250


def picture(number: int, kind: str = "png") -> bytes:
    """An image of one colour, that of its number."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256 % 256, 7)).save(out, kind)
    return out.getvalue()


PICTURES = [picture(i) for i in range(40)]


def outcome(read) -> tuple[Any, str]:
    """What a reader gives, or None and the message of its ValueError; nothing else may be raised."""
    try:
        return read(), ""
    except ValueError as error:
        return None, str(error)


def everything(path: Path) -> tuple[list[str], torch.Tensor]:
    """The names of a zip's pictures, and their pixels."""
    files = Files(path)
    rows = [name for name in files.names if name.endswith(".png")]
    return rows, ImageFiles(files, rows, size=8).read(torch.arange(len(rows)))


def grown(root: Path, choose: random.Random) -> None:
    """A tree of folders, pictures, and links of every kind among them."""
    folders, files = [root], []
    root.mkdir()
    for i in range(choose.randint(1, 6)):
        folders.append(choose.choice(folders) / f"{choose.choice('abc.')}{i}")
        folders[-1].mkdir()
    for i in range(choose.randint(1, 12)):
        files.append(choose.choice(folders) / f"{choose.choice('abc.')}{i}.{choose.choice(['png', 'heic', 'PNG'])}")
        files[-1].write_bytes(PICTURES[i])
    for i in range(choose.randint(0, 8)):
        name = choose.choice(folders) / f"l{i}{choose.choice(['', '.png'])}"
        kind = choose.randrange(6)
        if kind == 0:
            os.mkfifo(name)
        elif kind == 1:
            name.hardlink_to(choose.choice(files))
        elif kind == 2:
            name.symlink_to(choose.choice(["nowhere", name.name, f"l{choose.randrange(8)}", "/dev/zero"]))
        else:
            target = choose.choice([*files, *folders, *folders])
            name.symlink_to(target if choose.random() < 0.5 else os.path.relpath(target, name.parent))


def reachable(root: Path) -> set[tuple[int, int]]:
    """Inodes of all visible regular files that any path below the root leads to, by resolving every path."""
    found, seen, left = set(), set(), [root]
    while left:
        folder = left.pop()
        if os.path.realpath(folder) in seen:
            continue
        seen.add(os.path.realpath(folder))
        for name in os.listdir(folder):
            path = folder / name
            if name.startswith(".") or not os.path.exists(path):
                continue
            if path.is_dir():
                left.append(path)
            elif path.is_file():
                found.add((path.stat().st_dev, path.stat().st_ino))
    return found


def test_every_file_is_listed_once(tmp_path):
    choose, skipped = random.Random(0), 0
    for case in range(CASES):
        root = tmp_path / str(case)
        grown(root, choose)
        files = Files(root)
        inodes = [((root / name).stat().st_dev, (root / name).stat().st_ino) for name in files.names]
        assert len(set(inodes)) == len(inodes)
        assert set(inodes) == reachable(root)
        own = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and not p.is_symlink()}
        visible = {name for name in own if not any(part.startswith(".") for part in name.split("/"))}
        hard = {name for name in visible if (root / name).stat().st_nlink > 1}
        assert visible - hard <= set(files.names)  # of a file and links to it the file stays
        assert not set(files.names) & set(files.skipped)
        skipped += len(files.skipped)
        shutil.rmtree(root)
    assert skipped > CASES


def test_a_folder_of_images_is_trained_on_or_refused_in_one_sentence(tmp_path):
    """Rows of both splits are distinct pictures of the tree; whatever is no row is in the note, by count."""
    choose, passed = random.Random(1), 0
    for case in range(CASES):
        root = tmp_path / str(case)
        grown(root, choose)
        splits, said = outcome(lambda root=root: image_folder(str(root), size=8, holdout=0.5))
        if splits is None:
            assert str(root) in said
        else:
            pixels = torch.cat([s.images.read(torch.arange(len(s))) for s in (splits.train, splits.test)])
            colours = {tuple(each) for each in pixels[:, :, 0, 0].tolist()}
            assert len(colours) == len(pixels)
            files = Files(root)
            left = len(files.names) + len(files.skipped) - len(pixels)
            assert (f": {left} file(s) are left out: " in "".join(splits.notes)) == (left > 0)
            passed += 1
        shutil.rmtree(root)
    assert passed > 50


def written(path: Path, choose: random.Random) -> None:
    """A zip with names of every kind, now and then damaged, or with a directory that lies."""
    with zipfile.ZipFile(path, "w") as out:
        for i in range(choose.randint(1, 6)):
            top = choose.choice(["cat", "dog", "cat", "dog", "cat/x", "", ".", "..", "cat\\x", "__MACOSX", "/cat"])
            name = f"{top}/{choose.choice('ab')}{choose.choice([i, 0, 1])}.png".removeprefix("/" if top == "" else "\0")
            info = zipfile.ZipInfo(name)
            info.compress_type = choose.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
            info.external_attr = choose.choice([0, 0, 0, 0o100644, 0o100644, 0o120777, 0o010644]) << 16
            out.writestr(info, PICTURES[i])
    if choose.random() < 0.5:
        content = bytearray(path.read_bytes())
        for _ in range(choose.randint(1, 3)):
            place = choose.randrange(len(content))
            kind = choose.randrange(3)
            if kind == 0:
                content[place] ^= 1 << choose.randrange(8)
            elif kind == 1:
                content[place : place + 4] = choose.randbytes(4)
            else:
                del content[place : place + choose.randint(1, 30)]
        path.write_bytes(content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_is_its_members_or_refused_in_one_sentence(tmp_path):
    """Of what is read every picture is one that was written, whole: a flipped bit is never seen."""
    choose, passed, refused = random.Random(2), 0, 0
    for case in range(2 * CASES):
        path = tmp_path / f"{case}.zip"
        written(path, choose)
        found, said = outcome(lambda path=path: everything(path))
        if found is None:
            assert str(path) in said
            refused += 1
            continue
        rows, pixels = found
        with zipfile.ZipFile(path) as known:
            assert all(known.namelist().count(name) == 1 for name in rows)
            expected = [np.asarray(Image.open(io.BytesIO(known.read(name))).convert("RGB")) for name in rows]
        for mine, theirs in zip(pixels, expected):
            assert torch.equal(mine, torch.from_numpy(theirs.copy()).permute(2, 0, 1))
            assert mine[0, 0, 0] < len(PICTURES)
            assert (mine[1:, 0, 0].tolist(), mine.unique().numel() <= 3) == ([0, 7], True)
        passed += 1
    assert passed > 50
    assert refused > 50


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, on EXIF that ends early
def test_any_bytes_are_an_image_or_one_error(tmp_path):
    """Pictures of every format with EXIF, cut and with bytes changed: decoded, or named; nothing else is raised."""
    choose = random.Random(3)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a text"
    kinds = []
    for kind, mode in (("jpeg", "RGB"), ("png", "RGBA"), ("png", "P"), ("webp", "RGB"), ("bmp", "L")):
        out = io.BytesIO()
        Image.effect_noise((16, 12), 60).convert(mode).save(out, kind, **({} if kind == "bmp" else {"exif": exif}))
        kinds.append((kind.replace("jpeg", "jpg"), out.getvalue()))
    failed = 0
    for case in range(CASES):
        ending, content = choose.choice(kinds)
        changed = bytearray(content[: choose.randint(1, len(content))] if choose.random() < 0.3 else content)
        for _ in range(choose.randint(0, 4)):
            changed[choose.randrange(min(len(changed), 120))] = choose.randrange(256)
        (tmp_path / f"{case}.{ending}").write_bytes(changed)
        store = ImageFiles(Files(tmp_path), [f"{case}.{ending}"], size=8)
        pixels, said = outcome(lambda store=store: store.read(torch.tensor([0])))
        assert f"{case}.{ending}" in said if pixels is None else pixels.shape == (1, 3, 8, 8)
        failed += pixels is None
        (tmp_path / f"{case}.{ending}").unlink()
    assert CASES / 5 < failed < CASES
