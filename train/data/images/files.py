"""Read the files of a directory or a zip archive in a few threads.

What is listed is what can be read once and safely. In a directory: regular files, each inode once, so that a link that
leads back up, or to a folder or file that is there already, gives no row a second time. In a zip: members of distinct
names that stay inside of it; one that is read declares a size that an image may have, and no more than that is read.
Everything else is refused, or left out and named in `skipped`.

Threads rather than worker processes: image decoders release the interpreter lock, and OpenMP libraries such as Faiss
may hang in a forked child. A ``ZipFile`` handle serialises its readers, so each thread opens the archive for itself.
A copy sent to another process, such as a worker that reads ahead, has neither: it reads in the thread that asks.
"""

import errno
import os
import stat
import threading
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

from negbank.remedies import opened, remedy

T = TypeVar("T")
MOST_BYTES = 512 << 20
"""Of a zip's member; a picture is smaller."""


class Files:
    """The visible files of a directory or zip archive, by POSIX path relative to it.

    Args:
        root: a directory or a ``.zip`` file.
        workers: reader threads; by default one per core, 8 at most.

    Attributes:
        names: sorted paths of all files. Hidden files and folders and ``__MACOSX`` are skipped.
        folders: all folders, including empty ones, without a trailing slash.
        skipped: path → why it is not among the names.

    Raises:
        FileNotFoundError: ``root`` does not exist.
        OSError: ``root``, or a folder below it, may not be read.
        ValueError: ``root`` is a file but not a readable zip archive, or its members cannot be told apart, or lie
            outside of it.
    """

    def __init__(self, root: str | Path, *, workers: int | None = None) -> None:
        self.root = Path(root)
        if not self.root.exists():
            raise FileNotFoundError(f"root={str(root)!r} does not exist; give a directory or a .zip file of images")
        self._in_zip = not self.root.is_dir()
        self._open(workers or min(8, os.cpu_count() or 1))
        self.skipped: dict[str, str] = {}
        listed = _zip_entries if self._in_zip else _directory_entries
        entries = [entry for entry in listed(self.root, self.skipped) if not _hidden(entry)]
        self.names: list[str] = sorted(entry for entry in entries if not entry.endswith("/"))
        self.folders: set[str] = {entry.rstrip("/") for entry in entries if entry.endswith("/")}
        self.folders.update(str(parent) for name in self.names for parent in PurePosixPath(name).parents)
        self.folders.discard(".")

    def _open(self, workers: int) -> None:
        self._local = threading.local()
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="images") if workers > 1 else None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_local", "_pool", "_workers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open(1)

    def open(self, name: str) -> BinaryIO:
        """Open one file for reading, from any thread. Members of a zip are read and checksummed in full.

        Raises:
            OSError, zipfile.BadZipFile: as the system or the archive says.
        """
        if not self._in_zip:
            return opened(self.root / name)
        if not hasattr(self._local, "archive"):
            self._local.archive = zipfile.ZipFile(self.root)
        archive: zipfile.ZipFile = self._local.archive
        info = archive.getinfo(name)
        if info.file_size > MOST_BYTES:  # the archive may be another one by now
            raise zipfile.BadZipFile(f"declares {info.file_size} bytes; a picture has at most {MOST_BYTES}")
        with archive.open(info) as member:  # gives what was declared at most, and at its end compares the checksum
            content = member.read(info.file_size + 1)
        if len(content) != info.file_size:
            raise zipfile.BadZipFile(f"has {len(content)} bytes where {info.file_size} were declared")
        return BytesIO(content)

    def map(self, function: Callable[[BinaryIO], T], names: Sequence[str]) -> list[T]:
        """Apply ``function`` to each named file, opened, in the threads; results keep the order of ``names``.

        Raises:
            ValueError: reading or ``function`` failed for some file; names up to five such files and the first cause.
        """
        step = max(1, -(-len(names) // (4 * self._workers)))
        chunks = [names[start : start + step] for start in range(0, len(names), step)]
        results: list[T] = []
        failures: list[tuple[str, Exception]] = []

        def work(chunk: Sequence[str]) -> tuple[list[T], list[tuple[str, Exception]]]:
            done: list[T] = []
            failed: list[tuple[str, Exception]] = []
            for name in chunk:
                try:
                    with self.open(name) as file:
                        done.append(function(file))
                except Exception as error:  # decoders raise many unrelated types on bad bytes; all are re-raised below
                    failed.append((name, error))
            return done, failed

        for done, failed in map(work, chunks) if self._pool is None else self._pool.map(work, chunks):
            results += done
            failures += failed
        if failures:
            shown = ", ".join(repr(name) for name, _ in failures[:5]) + (", ..." if len(failures) > 5 else "")
            name, cause = failures[0]
            raise ValueError(
                f"{len(failures)} unreadable file(s) in root={str(self.root)!r}: {shown}; {name!r} failed with "
                f"{type(cause).__name__}: {cause}. Repair or remove these files"
            ) from cause
        return results


def _hidden(entry: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(entry).parts)


def _zip_entries(path: Path, skipped: dict[str, str]) -> list[str]:
    """The members of a zip, folders with a slash at the end; what is no file of its own goes to `skipped`."""
    where = f"root={str(path)!r}"
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            for member in members:  # their names stand twice: a damaged one would be of another class, or no image
                if member.header_offset < 0:
                    raise zipfile.BadZipFile(f"{member.filename!r} lies before its beginning")
                archive.open(member).close()
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from None
    except Exception as error:  # bytes that are no archive fail in zipfile in many ways
        raise ValueError(
            f"{where} is not a readable zip archive ({error}); give a directory or an intact .zip"
        ) from None
    found: list[str] = []
    for member in members:
        name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
        parts = name.removesuffix("/").split("/")
        if "\\" in name or any(part in ("", ".", "..") for part in parts):
            raise ValueError(
                f"{where}: the member {name!r} lies outside of the archive, or has no plain path in it; pack it again, "
                f"with paths such as class/image.png"
            )
        if name.endswith("/") or kind in (0, stat.S_IFREG):
            found.append(name)
        else:
            skipped[name] = "no regular file"
    again = [name for name, count in Counter(found + list(skipped)).items() if count > 1 and not name.endswith("/")]
    if again:
        raise ValueError(
            f"{where}: {len(again)} name(s) stand for several members, such as {again[0]!r}; pack it again"
        )
    return found


def _directory_entries(root: Path, skipped: dict[str, str]) -> list[str]:
    """The visible regular files below a directory, and its folders with a slash at the end; every inode once.

    What lies in the tree itself comes before what links lead to, so that of a file and a link to it the file stays.
    """
    entries: list[str] = []
    seen: dict[tuple[int, int], str] = {}
    left = deque([(PurePosixPath("."), True)])  # paths, and whether they are looked at through a link
    while left:
        place, follow = left.popleft()
        name, path = place.as_posix(), root / place
        try:
            status = path.stat() if follow else path.lstat()
            if stat.S_ISLNK(status.st_mode):
                left.append((place, True))
                continue
            folder = stat.S_ISDIR(status.st_mode)
            first = seen.setdefault((status.st_dev, status.st_ino), name) if status.st_ino else name
            if not folder and not stat.S_ISREG(status.st_mode):
                skipped[name] = "no regular file"
            elif first != name:
                skipped[name] = f"the same {'folder' if folder else 'file'} as {first!r}"
            else:
                below = sorted(os.listdir(path), reverse=True) if folder else ()
                left.extendleft((place / each, False) for each in below if not _hidden(each))
                entries += [name + "/" * folder] if name != "." else []
        except OSError as error:
            if not follow or error.errno not in (errno.ENOENT, errno.ELOOP):
                raise type(error)(error.errno, remedy(error), str(path)) from None
            skipped[name] = "a link that leads nowhere"
    return entries
