"""Every write that has to survive: a file or a folder is there whole, or as it was before.

    write to a temporary name beside it → fsync → rename → fsync of the folder it is in

What is read back is held to a SHA-256: a folder's `manifest.json` names all its files with theirs, and has one of its
own text. A kill leaves a `.tmp` beside the name, which the next write of that name replaces. A folder that replaces
another takes two renames; a kill between them leaves the other as `.old`, which gets its name back when it is next
looked for.
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

MANIFEST, SEAL = "manifest.json", "own_sha256"
DRAFT = ".tmp"
"""What the name of something unfinished ends in."""
ASIDE = ".old"
"""What the name of a folder ends in while another takes its place."""


class DamagedError(ValueError):
    """Files that are missing, changed, or not readable: they must not be used."""


def write(path: Path, content: str | bytes | Callable[[BinaryIO], object], *, shared: bool = False) -> None:
    """Write a file: text (UTF-8), bytes, or what a function writes into the open file.

    Args:
        shared: other processes may write this name at the same time: each its own draft, the last one stays.

    Raises:
        OSError: as the disk says; the file is then as it was, or whole.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}{DRAFT}" if shared else path.name + DRAFT)
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
    _put_back(path)
    if path.exists() and not replace:
        raise FileExistsError(f"folder={path} exists; write under another name")
    draft, aside = (path.with_name(path.name + ending) for ending in (DRAFT, ASIDE))
    above = [parent for parent in path.parents if not parent.exists()]
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        files = sorted(file for file in draft.rglob("*") if file.is_file())
        seal(draft, about, [file.relative_to(draft).as_posix() for file in files])
        for each in (*draft.rglob("*"), draft):
            sync(each)
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
            path.replace(aside)
        draft.replace(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        _put_back(path)
        raise
    for made in (path, *above):
        sync(made.parent)
    shutil.rmtree(aside, ignore_errors=True)


def seal(path: Path, about: dict[str, Any], names: Iterable[str]) -> None:
    """Write the manifest of a folder that was filled in place: what it is, and the checksums of these files in it."""
    write(path / MANIFEST, sealed({**about, "sha256": {name: checksum(path / name) for name in names}}))


def told(path: Path) -> dict[str, Any]:
    """What a folder's manifest says, once it was found to be what was written; its files unseen.

    Raises:
        DamagedError: when it cannot be read, or was changed.
    """
    _put_back(path)
    try:
        text = (path / MANIFEST).read_text()
        found = dict(json.loads(text))
    except (OSError, TypeError, ValueError) as error:
        raise DamagedError(f"{path / MANIFEST}: not readable ({error})") from None
    if found.pop(SEAL, None) is None:
        raise DamagedError(f"{path / MANIFEST}: holds no checksum of itself")
    if sealed(found) != text:
        raise DamagedError(f"{path / MANIFEST}: its checksum differs from what it says")
    return found


def manifest(path: Path) -> dict[str, Any]:
    """What a folder's manifest says, once it and every file in it were found to be what was written.

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


def sealed(about: dict[str, Any]) -> str:
    """JSON that also says the SHA-256 of what it says."""
    digest = hashlib.sha256(json.dumps(about, indent=1).encode()).hexdigest()
    return json.dumps({**about, SEAL: digest}, indent=1)


def _put_back(path: Path) -> None:
    """Undo a replacement that ended between its two renames."""
    aside = path.with_name(path.name + ASIDE)
    if aside.exists() and not path.exists():
        aside.replace(path)


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
