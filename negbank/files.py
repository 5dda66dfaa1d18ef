"""Every write that has to survive: a file or a folder is there whole, or as it was before.

    write to a temporary name beside it → fsync → rename → fsync of the folder it is in

What is read back is held to a SHA-256 that stands in another file: a folder's `manifest.json` names all its files with
theirs. A kill leaves a `.tmp` beside the name, which the next write of that name replaces.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

MANIFEST = "manifest.json"
DRAFT = ".tmp"
"""What the name of something unfinished ends in."""


class DamagedError(ValueError):
    """Files that are missing, changed, or not readable: they must not be used."""


def write(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file: text (UTF-8), bytes, or what a function writes into the open file.

    Raises:
        OSError: as the disk says; the file is then as it was.
    """
    draft = path.with_name(path.name + DRAFT)
    try:
        with draft.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def folder(path: Path, about: dict[str, Any], *, replace: bool = False) -> Iterator[Path]:
    """A folder to be filled inside of a `with`, which gets its name when that ends: all of it, or nothing.

    Args:
        path: its name; parents are made.
        about: what its manifest says beside the checksums of its files; read at the end, so it may be filled inside.
        replace: whether a folder of that name gives way.

    Raises:
        FileExistsError: when there is one and `replace` is not set.
        OSError, RuntimeError: as the disk, or torch's zip writer, says; nothing is then left behind.
    """
    if path.exists() and not replace:
        raise FileExistsError(f"folder={path} exists; write under another name")
    draft = path.with_name(path.name + DRAFT)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        files = sorted(file for file in draft.rglob("*") if file.is_file())
        seal(draft, about, [file.relative_to(draft).as_posix() for file in files])
        for each in (*draft.rglob("*"), draft):
            sync(each)
        if path.exists():
            shutil.rmtree(path)
        draft.replace(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync(path.parent)


def seal(path: Path, about: dict[str, Any], names: Iterable[str]) -> None:
    """Write the manifest of a folder that was filled in place: what it is, and the checksums of these files in it."""
    write(path / MANIFEST, json.dumps({**about, "sha256": {name: checksum(path / name) for name in names}}, indent=1))


def told(path: Path) -> dict[str, Any]:
    """What a folder's manifest says, its files unseen.

    Raises:
        DamagedError: when it cannot be read.
    """
    try:
        return dict(json.loads((path / MANIFEST).read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise DamagedError(f"{path / MANIFEST}: not readable ({error})") from None


def manifest(path: Path) -> dict[str, Any]:
    """What a folder's manifest says, once every file in it was found to be what was written.

    Raises:
        DamagedError: naming the file that is missing or changed.
    """
    found = told(path)
    digests = found.get("sha256")
    if not isinstance(digests, dict):
        raise DamagedError(f"{path / MANIFEST}: holds no checksums")
    for name, digest in digests.items():
        if not (path / name).is_file():
            raise DamagedError(f"{path / name}: missing")
        if checksum(path / name) != digest:
            raise DamagedError(f"{path / name}: its checksum differs from the manifest")
    return found


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Have the disk hold the file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
