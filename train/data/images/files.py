"""Read the files of a directory or a zip archive in a few threads.

Threads rather than worker processes: image decoders release the interpreter lock, and OpenMP libraries such as Faiss
may hang in a forked child. A ``ZipFile`` handle serialises its readers, so each thread opens the archive for itself.
A copy sent to another process, such as a worker that reads ahead, has neither: it reads in the thread that asks.
"""

import os
import threading
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")


class Files:
    """The visible files of a directory or zip archive, by POSIX path relative to it.

    Args:
        root: a directory or a ``.zip`` file.
        workers: reader threads; by default one per core, 8 at most.

    Attributes:
        names: sorted paths of all files. Hidden files and folders and ``__MACOSX`` are skipped.
        folders: all folders, including empty ones, without a trailing slash.

    Raises:
        FileNotFoundError: ``root`` does not exist.
        ValueError: ``root`` is a file but not a readable zip archive.
    """

    def __init__(self, root: str | Path, *, workers: int | None = None) -> None:
        self.root = Path(root)
        if not self.root.exists():
            raise FileNotFoundError(f"root={str(root)!r} does not exist; give a directory or a .zip file of images")
        self._in_zip = not self.root.is_dir()
        self._open(workers or min(8, os.cpu_count() or 1))
        entries = _zip_entries(self.root) if self._in_zip else _directory_entries(self.root)
        entries = [entry for entry in entries if not _hidden(entry)]
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
        """Open one file for reading, from any thread. Members of a zip are read and checksummed in full."""
        if not self._in_zip:
            return (self.root / name).open("rb")
        if not hasattr(self._local, "archive"):
            self._local.archive = zipfile.ZipFile(self.root)
        archive: zipfile.ZipFile = self._local.archive
        return BytesIO(archive.read(name))

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


def _zip_entries(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"root={str(path)!r} is not a readable zip archive ({error}); give a directory or an intact .zip file"
        ) from error


def _directory_entries(root: Path) -> list[str]:
    entries: list[str] = []
    for parent, folders, files in os.walk(root, followlinks=True):
        base = Path(parent).relative_to(root)
        entries += [(base / name).as_posix() + "/" for name in folders]
        entries += [(base / name).as_posix() for name in files]
    return entries
