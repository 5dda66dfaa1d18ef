"""Every write that has to survive: a file or a folder is there whole, or as it was before.

    write to a temporary name beside it → fsync → rename → fsync of the folder it is in

What is read back is held to a SHA-256 that is kept elsewhere: in the `manifest.json` of its folder, which has one of
its own text, or in its name. That something exists says nothing. A kill leaves a `.tmp` beside the name, which the next
write of that name replaces, and `owner.sweep` removes. Two processes cannot write one name at once (owner.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from negbank.owner import LOCK, TURNS, OwnedError, draft, owned, sweep

MANIFEST, SEAL = "manifest.json", "own_sha256"
DRAFT = ".tmp"
"""What the name of something unfinished ends in."""
Content = str | bytes | Callable[[BinaryIO], object]
"""Text (UTF-8), bytes, or what a function writes into an open file."""


class DamagedError(ValueError):
    """Files that are missing, changed, or not readable: they must not be used."""


def write(path: Path, content: Content) -> None:
    """Write a file.

    Raises:
        OwnedError: when somebody else is writing it.
        OSError: as the disk says; the file is then as it was, or whole.
    """
    _write(path.with_name(path.name + DRAFT), content, lambda written: path)


def keep(path: Path, content: Content) -> Path:
    """Write a file whose name also says its SHA-256, for `kept`; its path. Several may keep the same at a time."""
    own = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{DRAFT}")
    for _ in range(TURNS):
        with suppress(OwnedError):  # a sweep has found it before it was locked, and removes it: again
            return _write(own, content, lambda written: path.with_name(f"{path.stem}.{checksum(written)}{path.suffix}"))
    raise OwnedError(f"{own}: swept away all the time; stop what does")


def kept(path: Path, among: Iterable[Path] | None = None) -> Path | None:
    """Where `keep(path, ...)` put a file that is still what was written, or None; those that are not are removed.

    Args:
        among: the files of that folder that it may be, where they are known.
    """
    for found in sorted(path.parent.glob(f"{path.stem}.*{path.suffix}")) if among is None else among:
        digest = found.name.removeprefix(f"{path.stem}.").removesuffix(path.suffix)
        if len(digest) == 64:
            if checksum(found) == digest:
                return found
            found.unlink(missing_ok=True)
    return None


def _write(unfinished: Path, content: Content, name: Callable[[Path], Path]) -> Path:
    with draft(unfinished) as handle:
        try:
            with os.fdopen(handle, "wb", closefd=False) as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(handle)
            path = name(unfinished)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    sync(path.parent)
    return path


@contextmanager
def folder(path: Path, about: dict[str, Any]) -> Iterator[Path]:
    """A folder to be filled inside of a `with`, which gets its name when that ends: all of it, or nothing.

    Args:
        path: its name; parents are made.
        about: what its manifest says beside the checksums of its files; read at the end, so it may be filled inside.

    Raises:
        FileExistsError: when there is one.
        OwnedError: when somebody else is making it.
        OSError, RuntimeError: as the disk, or torch's zip writer, says; nothing is then left behind.
    """
    unfinished = path.with_name(path.name + DRAFT)
    above = [parent for parent in path.parents if not parent.exists()]
    with owned(unfinished):
        try:
            if path.exists():
                raise FileExistsError(f"folder={path} exists; write under another name")
            for left in (each for each in unfinished.iterdir() if each.name != LOCK):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield unfinished
            files = sorted(file.relative_to(unfinished).as_posix() for file in unfinished.rglob("*") if file.is_file())
            seal(unfinished, about, [name for name in files if name != LOCK])
            for each in (*unfinished.rglob("*"), unfinished):
                sync(each)
            unfinished.replace(path)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        (path / LOCK).unlink()  # only now: as long as it had another name, somebody else could have taken it
    for made in (path, *above):
        sync(made.parent)


def remove(path: Path) -> None:
    """Remove a folder: it loses its name first, so that no half of it is ever found under it."""
    sweep(path.parent, path.name + DRAFT)
    shutil.rmtree(path.replace(path.with_name(path.name + DRAFT)))


def seal(path: Path, about: dict[str, Any], names: Iterable[str]) -> None:
    """Write the manifest of a folder that was filled in place: what it is, and the checksums of these files in it."""
    write(path / MANIFEST, sealed({**about, "sha256": {name: checksum(path / name) for name in names}}))


def add(path: Path, name: str, content: Content) -> None:
    """Write a file that a sealed folder did not have, and its checksum into the manifest."""
    write(path / name, content)
    about = told(path)
    write(path / MANIFEST, sealed({**about, "sha256": {**about["sha256"], name: checksum(path / name)}}))


def told(path: Path) -> dict[str, Any]:
    """What a folder's manifest says, once it was found to be what was written; its files unseen.

    Raises:
        DamagedError: when it is missing or was changed.
        OSError: when it may not be read.
    """
    return read(path / MANIFEST)


def read(path: Path) -> dict[str, Any]:
    """What the JSON in a file of `sealed` text says.

    Raises:
        DamagedError: when it is missing or was changed.
        OSError: when it may not be read.
    """
    try:
        return unsealed(path.read_bytes().decode())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedError(f"{path}: not readable ({error.strerror})") from None
    except (DamagedError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path}: {error}") from None


def manifest(path: Path) -> dict[str, Any]:
    """What a folder's manifest says, once it and every file in it were found to be what was written.

    Raises:
        DamagedError: naming the file that is missing or changed.
        OSError: when one may not be read.
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


def unsealed(text: str) -> dict[str, Any]:
    """What `sealed` was given.

    Raises:
        DamagedError: when the text was changed since.
    """
    try:
        found = dict(json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise DamagedError(f"not readable ({error})") from None
    if found.pop(SEAL, None) is None:
        raise DamagedError("holds no checksum of itself")
    if sealed(found) != text:
        raise DamagedError("its checksum differs from what it says")
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
