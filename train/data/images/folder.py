"""Images of a directory or a zip archive, in class folders or without.

Layouts, each optionally below wrapper folders that hold nothing else::

    <class>/**/<image>                        a seeded, stratified share is held out
    train/<class>/**/<image>, test/<class>/** the test folder is the held-out split; val/ where there is no test/
    <image>, or train/<image>, test/<image>   the same without classes: there are no labels, which training never reads

Rows are in sorted path order within each split. With train/ and test/ present, other top folders are not read. What is
not read, by its ending, by its place, or as a second path to the same file, is counted and named in a note.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import BinaryIO

import torch
from PIL import Image

from negbank.bounds import Annotated, Ge, Gt, Input, Le, Positive, Section, checked
from negbank.train.data.contract import Splits
from negbank.train.data.holdout import HOLDOUT_SEED, stratified
from negbank.train.data.images.augment import Augment
from negbank.train.data.images.data import image_splits
from negbank.train.data.images.files import Files
from negbank.train.data.images.store import ImageArray, ImageFiles, Images, check_mode, upright

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
MIXED_SIZES_DEFAULT = 224  # the usual ImageNet crop
_DECODE_ROWS = 4096
_LAYOUT = (
    "expected <class>/<image> or train/<class>/<image> with test/<class>/<image>, or <image> alone "
    "(.jpg, .png, .bmp or .webp)"
)

Samples = list[tuple[str, str]]  # (path, class; "" without classes)


@checked
def image_folder(
    root: Annotated[str, Input()],
    *,
    size: Annotated[int, Ge(8)] | None = 64,
    memory_gb: Positive = 4.0,
    holdout: Annotated[float, Gt(0), Le(0.9)] = 0.2,
    augment: Annotated[Callable[..., Augment] | None, Section("augment", "views")] = None,
) -> Splits:
    """Folders of images, one a class or without classes; a directory or a zip; with train/ and test/, or held out.

    The header of every file is checked first; where all decoded images fit in ``memory_gb`` they are then decoded in
    full, and otherwise at each read. Images are greyscale if every file is, else RGB; turned as their EXIF orientation
    says; on white where they are transparent.

    Args:
        root: the directory or the .zip file.
        size: images are scaled and centre-cropped to this side in pixels; None: the shorter side of the images if all
            agree, otherwise 224.
        memory_gb: decoded images are kept in memory up to this many GiB.
        holdout: share held out of each class where there is no test/ folder, the same for every run.
        augment: the random views.

    Raises:
        FileNotFoundError: ``root`` does not exist.
        OSError: a file or folder may not be read; the remedy is named.
        ValueError: a corrupt archive, no images, a class folder without images, a test class that is not a training
            class, nothing to hold out, or unreadable image files, which are named.
    """
    files = Files(root)
    train, test, classes = _layout(files)
    notes = _left_out(files, {path for path, _ in train + test})
    index = {name: label for label, name in enumerate(classes)} or {"": 0}
    if not test:
        labels = torch.tensor([index[name] for _, name in train])
        kept, held = stratified(labels, holdout, HOLDOUT_SEED)
        if not len(held):
            raise ValueError(
                f"root={str(root)!r} has one image a class, so none can be held out; add images or a test/"
            )
        train, test = [train[row] for row in kept.tolist()], [train[row] for row in held.tolist()]

    headers = files.map(_header, [path for path, _ in train + test])
    channels = 1 if all(mode in ("1", "L", "LA") for _, mode in headers) else 3
    if size is None:
        sides = {side for side, _ in headers}
        size = sides.pop() if len(sides) == 1 else MIXED_SIZES_DEFAULT
    in_memory = len(headers) * channels * size * size <= memory_gb * 2**30

    def store(samples: Samples) -> Images:
        labels = torch.tensor([index[name] for _, name in samples], dtype=torch.int64) if classes else None
        images = ImageFiles(files, [path for path, _ in samples], labels, size=size, channels=channels)
        return _decoded(images) if in_memory else images

    return image_splits(store(train), store(test), classes, augment)._replace(notes=notes)


def _layout(files: Files) -> tuple[Samples, Samples, tuple[str, ...]]:
    """Find (train, test, classes); ``test`` is empty where the layout has no held-out folder."""
    paths = [PurePosixPath(name) for name in files.names if name.lower().endswith(SUFFIXES)]
    if not paths:
        raise _none(files, "")
    folders = [PurePosixPath(name) for name in sorted(files.folders)]
    base = PurePosixPath(".")
    while True:
        tops = [folder.name for folder in folders if folder.parent == base]
        test = next((name for name in ("test", "val") if name in tops), None)
        if "train" in tops and test is not None:
            train_samples, classes = _class_folders(files, paths, folders, base / "train")
            test_samples, test_classes = _class_folders(files, paths, folders, base / test)
            if bool(classes) != bool(test_classes):
                raise ValueError(
                    f"root={str(files.root)!r}: one of train/ and {test}/ has class folders, the other none; {_LAYOUT}"
                )
            if unknown := sorted(set(test_classes) - set(classes)):
                raise ValueError(
                    f"root={str(files.root)!r}: {test}/ has classes {unknown} that train/ lacks; {_LAYOUT}"
                )
            return train_samples, test_samples, classes
        if "train" in tops and len(tops) > 1 and any(folder.parent == base / "train" for folder in folders):
            raise ValueError(f"root={str(files.root)!r} has train/ but neither test/ nor val/ beside it; {_LAYOUT}")
        wrapper = base / tops[0] if len(tops) == 1 else None
        if wrapper is None or any(wrapper not in path.parent.parents for path in paths):
            samples, classes = _class_folders(files, paths, folders, base)
            return samples, [], classes
        base = wrapper


def _left_out(files: Files, taken: set[str]) -> tuple[str, ...]:
    """A note on the files that are not read, by the reason, each with how many and the first."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for name in files.names:
        if name not in taken:
            ending = PurePosixPath(name).suffix.lower() or "no ending"
            reasons["outside of the folders that are read" if ending in SUFFIXES else ending].append(name)
    for name, reason in files.skipped.items():
        reasons[reason.partition(" as ")[0]].append(f"{name}: {reason}" if " as " in reason else name)
    count = sum(map(len, reasons.values()))
    told = "; ".join(f"{len(names)} {reason} (such as {min(names)!r})" for reason, names in sorted(reasons.items()))
    return (f"data.root={str(files.root)!r}: {count} file(s) are left out: {told}",) if count else ()


def _none(files: Files, where: str) -> ValueError:
    told = (f"root={str(files.root)!r} holds no images{where}", *_left_out(files, set()), _LAYOUT)
    return ValueError("; ".join(told))


def _class_folders(
    files: Files, paths: Sequence[PurePosixPath], folders: Sequence[PurePosixPath], base: PurePosixPath
) -> tuple[Samples, tuple[str, ...]]:
    depth = len(base.parts)
    samples = [
        (str(path), path.parts[depth]) for path in paths if base in path.parents and len(path.parts) >= depth + 2
    ]
    where = "" if base == PurePosixPath(".") else f" under {str(base)!r}"
    if not samples:
        flat = [(str(path), "") for path in paths if path.parent == base]
        if not flat:
            raise _none(files, where)
        return flat, ()
    classes = tuple(sorted({name for _, name in samples}))
    if empty := [folder.name for folder in folders if folder.parent == base and folder.name not in classes]:
        raise ValueError(
            f"root={str(files.root)!r}: class folder {empty[0]!r}{where} holds no images; add some or remove it"
        )
    return samples, classes


def _header(file: BinaryIO) -> tuple[int, str]:
    """(shorter side in pixels, PIL mode) of an encoded image whose structure has been checked."""
    with Image.open(file) as image:
        side, mode = min(image.size), image.mode
        check_mode(mode)
        upright(image)  # so that what is damaged there is named, too
        image.draft("L", (1, 1))  # of a JPEG decode an eighth of the resolution: enough to find it cut short
        image.load()
    return side, mode


def _decoded(images: ImageFiles) -> ImageArray:
    pixels = torch.empty(len(images), *images.shape, dtype=torch.uint8)
    for rows in torch.arange(len(images)).split(_DECODE_ROWS):
        pixels[rows[0] : rows[-1] + 1] = images.read(rows)
    return ImageArray(pixels, images.labels)
