"""What to do about an error of the operating system: said once, by its number; and opening of regular files alone.

A message of the system says what failed and not what helps, and one remedy for all would be wrong for most: no space
has to be freed where a permission is missing, and a file that may not be read is not damaged.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

REMEDIES = {
    errno.ENOENT: "no such file or folder; check the path",
    errno.ENOTDIR: "a part of the path is a file, not a folder; check the path",
    errno.EISDIR: "a folder, where a file is needed; give the path of a file in it",
    errno.ENODEV: "a pipe, socket or device, where a regular file is needed; give the path of one",
    errno.EEXIST: "is there already; choose another path, or remove it",
    errno.EACCES: "permission denied; let this user read and write it (chmod, chown), or choose another path",
    errno.EPERM: "permission denied; let this user read and write it (chmod, chown), or choose another path",
    errno.EROFS: "the file system is read-only; choose a path on another",
    errno.ENOSPC: "the disk is full; free some space, or choose a path on another",
    errno.EDQUOT: "your quota of the disk is used up; free some space, or choose a path on another",
    errno.EFBIG: "more than the file system, or the limit on files (ulimit -f), allows; choose a path on another",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
    errno.ENFILE: "too many open files on this machine; close other programs",
    errno.ENOMEM: "out of memory; close other programs, or take a machine with more",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter path",
    errno.ELOOP: "symbolic links that lead in a circle; remove one of them",
    errno.EIO: "the disk fails to read or write; check it, or choose a path on another",
    errno.ESTALE: "the network file system has lost it; mount it again, then repeat the command",
    errno.EBUSY: "in use by another program; end that one, then repeat the command",
    errno.ETXTBSY: "in use by another program; end that one, then repeat the command",
}
"""Number of an error → what it is, and what helps."""


def remedy(error: OSError) -> str:
    """What an error of the system is and what helps, without the path; of others what the system says."""
    return REMEDIES.get(error.errno or 0) or str(error.strerror or error)


def unreadable(path: str) -> str | None:
    """Why a file or folder cannot be read, with what helps; None where it can."""
    try:
        mode = Path(path).stat().st_mode
        if not stat.S_ISDIR(mode):
            _require_regular(mode, Path(path))
    except OSError as error:
        return remedy(error)
    return None if os.access(path, os.R_OK | (os.X_OK if stat.S_ISDIR(mode) else 0)) else REMEDIES[errno.EACCES]


def opened(path: Path) -> BinaryIO:
    """A regular file, opened to be read. A pipe would wait for ever, and a device never end.

    Raises:
        OSError: of the same class and number as the system's, whose text names the remedy.
    """
    try:
        _require_regular(path.stat().st_mode, path)
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise type(error)(error.errno, remedy(error), str(path)) from None
    try:
        _require_regular(os.fstat(handle).st_mode, path)  # it may have become another meanwhile
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def _require_regular(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, REMEDIES[errno.EISDIR], str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.ENODEV, REMEDIES[errno.ENODEV], str(path))
