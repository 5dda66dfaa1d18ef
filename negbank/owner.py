"""Who writes: one process at a time in a folder, or at a file that is being made.

The lock is the kernel's (`fcntl.flock`), on a file `.lock` in the folder or on the file itself. It ends with the
process, however that ends, so that nothing has to be removed after a kill; children that were forked meanwhile keep it
as long as they live, spawned ones never have it. A second writer, be it another process or another thread, is refused
at once. Between machines it holds where the file system has such locks (NFS has). Where it has none, that is warned of,
and nothing but care keeps two writers apart. (`lockf` would end when any descriptor of the file is closed, and numpy
closes one after every array that it writes.)
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""The file that stands for a folder: it says who writes there, and is left behind by a kill alone."""
ABSENT = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What a file system without locks says."""
TURNS = 1000
"""Looks at a name that others make and remove in the meantime."""


class OwnedError(OSError):
    """A folder or a file that somebody else is writing."""


_held: set[tuple[int, str]] = set()  # (process, path): a lock that this process has, so that it can say so
_threads = threading.Lock()


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Nobody but this `with` writes in the folder, which is made where there is none, and removed if it stays empty.

    Raises:
        OwnedError: naming the process that does.
        OSError: when it cannot be made or written.
    """
    owner, above = os.getpid(), [each for each in (folder, *folder.parents) if not each.exists()]
    with _locked(folder / LOCK, parents=True) as handle:
        try:
            os.ftruncate(handle, 0)
            os.write(handle, f"process {owner} on {socket.gethostname()}\n".encode())
            yield
        finally:
            if os.getpid() == owner:  # and not a child that was forked in between
                for leave in ((folder / LOCK).unlink, *(made.rmdir for made in above)):
                    with suppress(OSError):  # it was renamed or removed, or is not empty
                        leave()


@contextmanager
def draft(path: Path) -> Iterator[int]:
    """An empty file at `path` that nobody else can open so, as a descriptor, until the end of the `with`.

    Raises:
        OwnedError: when somebody else writes it.
        OSError: as the disk says.
    """
    with _locked(path) as handle:
        os.ftruncate(handle, 0)
        yield handle


def sweep(folder: Path, pattern: str) -> None:
    """Remove the drafts in a folder, files and folders, that nobody is writing: what kills have left."""
    for left in sorted(folder.glob(pattern)):
        with suppress(OwnedError):
            if left.is_dir():
                with owned(left):
                    shutil.rmtree(left)
            else:
                with draft(left):
                    left.unlink()


@contextmanager
def _locked(path: Path, *, parents: bool = False) -> Iterator[int]:
    key = (os.getpid(), os.path.join(os.path.realpath(path.parent), path.name))
    with _threads:
        if key in _held:
            raise _refusal(path, f"this process ({os.getpid()})")
        _held.add(key)
    try:
        handle = _open(path, parents)
        try:
            yield handle
        finally:
            os.close(handle)
    finally:
        _held.discard(key)


def _open(path: Path, parents: bool) -> int:
    for _ in range(TURNS):
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        elif not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent))
        with suppress(FileNotFoundError):  # its last owner has just removed or renamed it: again
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            mine = False
            try:
                _require(handle, path)
                mine = os.path.samestat(os.fstat(handle), path.stat())
            finally:
                if not mine:
                    os.close(handle)
            if mine:
                return handle
    raise OwnedError(f"{path}: other processes write it all the time; give each a name of its own")


def _require(handle: int, path: Path) -> None:
    """Lock an open file, or say who has."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "this system has no fcntl")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise _refusal(
                path, os.pread(handle, 200, 0).decode(errors="replace") if path.name == LOCK else ""
            ) from None
        if error.errno not in ABSENT:
            raise
        warnings.warn(
            f"{path.parent}: its file system has no locks ({error.strerror}), so that two processes that write here at "
            f"once are not told apart; start one only",
            stacklevel=2,
        )


def _refusal(path: Path, who: str) -> OwnedError:
    what, verb = (path.parent, "writing here") if path.name == LOCK else (path, "writing it")
    return OwnedError(
        f"{what}: {who.strip() or 'another process'} is {verb}; wait for it or stop it, or give another name"
    )
