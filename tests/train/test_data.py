"""Image stores and sources, on small files written here; nothing is downloaded."""

import hashlib
import os
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

from negbank.counter import Counter
from negbank.train.data.contract import Data, Pairs, Splits, collate, describes, num_rows, raw, sides, subset
from negbank.train.data.holdout import stratified
from negbank.train.data.images import Augment, Files, ImageArray, ImageData, ImageFiles, Images, sources
from negbank.train.data.images.folder import image_folder

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
RNG = np.random.default_rng(0)
directory_and_zip = pytest.mark.parametrize("zipped", [False, True])


def write_image(path: Path, side: int | tuple[int, int] = 12, channels: int = 3) -> Pixels:
    """Write a random image and return its pixels; ``side`` may be (height, width)."""
    height, width = (side, side) if isinstance(side, int) else side
    pixels = RNG.integers(0, 256, (height, width, 3) if channels == 3 else (height, width), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def write_classes(root: Path, *, count: int = 5, classes: tuple[str, ...] = ("cat", "dog"), **kwargs: Any) -> None:
    for name in classes:
        for index in range(count):
            write_image(root / name / f"{index}.png", **kwargs)


def packed(folder: Path, zipped: bool) -> Path:
    """``folder`` itself, or a zip archive of it."""
    if not zipped:
        return folder
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as out:
        for path in sorted(folder.rglob("*")):
            out.write(path, str(path.relative_to(folder)))
    return folder.with_suffix(".zip")


def load(name: str, **options: Any) -> tuple[Images, Images, tuple[str, ...]]:
    """The stores of a set, and its classes."""
    made: Splits = (image_folder if name == "image_folder" else getattr(sources, name))(**options)
    return made.train.images, made.test.images, made.classes


def labels_of(images: Images | Data) -> Tensor:
    assert images.labels is not None
    return images.labels


def test_image_array_reads_rows() -> None:
    pixels = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).view(4, 3, 2, 2)
    store = ImageArray(pixels, torch.tensor([0, 1, -1, 1], dtype=torch.int32))
    assert (len(store), store.shape) == (4, (3, 2, 2))
    assert torch.equal(store.read(torch.tensor([2, 0, 2])), pixels[[2, 0, 2]])
    assert labels_of(store).dtype == torch.int64
    for row in (-1, 4):
        with pytest.raises(IndexError):
            store.read(torch.tensor([row]))


def test_float_labels_are_refused() -> None:
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"labels must be integers, got dtype torch.float32; convert .*int64"):
        ImageArray(images, torch.tensor([0.0, 1.0, 2.0]))


def test_labels_of_another_length_are_refused() -> None:
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\).* got \(2,\)"):
        ImageArray(images, torch.tensor([0, 1]))


@pytest.mark.parametrize("shape", [(3, 2, 2, 2), (3, 2, 2)])
def test_images_of_another_kind_are_refused(shape: tuple[int, ...]) -> None:
    for images in (torch.zeros(shape, dtype=torch.uint8), torch.zeros(3, 1, 2, 2)):
        with pytest.raises(ValueError, match="images must be"):
            ImageArray(images)


@directory_and_zip
def test_image_files_decode_resize_and_centre_crop(tmp_path: Path, zipped: bool) -> None:
    exact = write_image(tmp_path / "in" / "exact.png", 16)
    wide = write_image(tmp_path / "in" / "wide.png", (32, 64))
    grey = write_image(tmp_path / "in" / "grey.png", 16, channels=1)
    root = packed(tmp_path / "in", zipped)
    files = Files(root)
    store = ImageFiles(files, files.names, torch.tensor([0, 1, 2]), size=16)
    assert (files.names, len(store), store.shape) == (["exact.png", "grey.png", "wide.png"], 3, (3, 16, 16))
    first, second, third, again = store.read(torch.tensor([0, 1, 2, 0])).unbind()
    assert torch.equal(first, torch.from_numpy(exact).permute(2, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(second, torch.from_numpy(grey).expand(3, -1, -1))
    expected = np.asarray(Image.fromarray(wide).resize((32, 16), Image.Resampling.BILINEAR))[:, 8:24]
    assert torch.equal(third, torch.from_numpy(expected.copy()).permute(2, 0, 1))
    assert store.read(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 16, 16)
    with pytest.raises(IndexError, match=r"rows must lie in 0\.\.2, got -1\.\.0"):
        store.read(torch.tensor([0, -1]))


def test_a_file_lost_after_the_check_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    files = Files(tmp_path)
    store = ImageFiles(files, files.names, size=12)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"'a\.png' failed with FileNotFoundError"):
        store.read(torch.tensor([0]))


def test_stratified_split() -> None:
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 2 + [3])
    kept, held = stratified(labels, 0.2, seed=3)
    assert torch.equal(torch.cat((kept, held)).sort().values, torch.arange(73))
    assert labels[held].bincount(minlength=4).tolist() == [10, 4, 1, 0]
    assert torch.equal(held, stratified(labels, 0.2, seed=3)[1])
    assert not torch.equal(held, stratified(labels, 0.2, seed=4)[1])
    with pytest.raises(ValueError, match=r"holdout must lie strictly between 0 and 1, got 1"):
        stratified(labels, 1.0, seed=0)


def test_mnist5k_has_one_fixed_split() -> None:
    train, test, classes = load("mnist5k")
    assert (len(train), len(test), train.shape) == (4000, 1000, (1, 28, 28))
    assert labels_of(test).bincount().tolist() == [100] * 10
    assert classes == tuple("0123456789")
    assert torch.equal(test.read(torch.arange(1000)), load("mnist5k")[1].read(torch.arange(1000)))


def test_digits_are_enlarged() -> None:
    from sklearn.datasets import load_digits

    train, test, classes = load("digits")
    assert (len(train) + len(test), train.shape, len(classes)) == (1797, (1, 16, 16), 10)
    native, bunch = load("digits", size=8)[0], load_digits()
    kept, _ = stratified(torch.from_numpy(bunch.target), 0.2, 20200213)
    expected = torch.from_numpy(bunch.images)[kept] * 255 / 16
    assert float((native.read(torch.arange(len(kept)))[:, 0] - expected).abs().max()) <= 0.5
    assert torch.equal(labels_of(native), torch.from_numpy(bunch.target)[kept])


def write_cifar(monkeypatch: pytest.MonkeyPatch, kind: Any, root: Path) -> Pixels:
    """Write a CIFAR of ten random images a file, whose checksums ``kind`` then expects; return the test images."""
    folder, labels = root / kind.base_folder, "labels" if kind is datasets.CIFAR10 else "fine_labels"
    folder.mkdir()

    def write(name: str, content: object) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(name: str) -> tuple[list[str], Pixels]:
        pixels = RNG.integers(0, 256, (10, 3072), dtype=np.uint8)
        return write(name, {"data": pixels, labels: list(range(10))}), pixels

    monkeypatch.setattr(kind, "train_list", [batch(name)[0] for name, _ in kind.train_list])
    entry, pixels = batch(kind.test_list[0][0])
    monkeypatch.setattr(kind, "test_list", [entry])
    _, md5 = write(kind.meta["filename"], {kind.meta["key"]: [f"class{index}" for index in range(10)]})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5})
    return pixels


@pytest.mark.parametrize(("name", "kind", "count"), [("cifar10", "CIFAR10", 50), ("cifar100", "CIFAR100", 10)])
def test_cifar_is_read_by_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, count: int
) -> None:
    pixels = write_cifar(monkeypatch, getattr(datasets, kind), tmp_path)
    train, test, classes = load(name, root=tmp_path)
    assert (len(train), train.shape, classes[3]) == (count, (3, 32, 32), "class3")
    assert torch.equal(test.read(torch.arange(10)), torch.from_numpy(pixels).view(10, 3, 32, 32))
    assert labels_of(test).tolist() == list(range(10))
    assert load(name, root=tmp_path, size=16)[1].shape == (3, 16, 16)
    with pytest.raises(ValueError, match=r"memory_gb=1e-06 is less than .* raise memory_gb or lower size"):
        load(name, root=tmp_path, memory_gb=1e-6)


def test_stl10_train_has_the_unlabelled_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = datasets.STL10
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    pixels = RNG.integers(0, 256, (2, 3, 96, 96), dtype=np.uint8)
    for list_name in ("train_list", "test_list"):
        entries = []
        for name, _ in getattr(kind, list_name):
            data = pixels.tobytes() if name.endswith("X.bin") else bytes([1, 10])
            (folder / name).write_bytes(data)
            entries.append([name, hashlib.md5(data).hexdigest()])
        monkeypatch.setattr(kind, list_name, entries)
    (folder / "class_names.txt").write_text("\n".join(f"class{index}" for index in range(10)))
    train, test, classes = load("stl10", root=tmp_path)
    assert labels_of(train).tolist() == [0, 9, -1, -1]
    assert (labels_of(test).tolist(), test.shape, len(classes)) == ([0, 9], (3, 96, 96), 10)
    assert torch.equal(train.read(torch.tensor([3]))[0], torch.from_numpy(pixels[1]).mT)  # stored column by column


def test_fashion_mnist_is_read_by_torchvision(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = RNG.integers(0, 256, (4, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        header = bytes([0, 0, 8, 3]) + b"".join(value.to_bytes(4, "big") for value in (4, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 4, 0, 1, 2, 9]))
    train, test, classes = load("fashion_mnist", root=tmp_path)
    assert torch.equal(train.read(torch.arange(4))[:, 0], torch.from_numpy(pixels))
    assert (labels_of(test).tolist(), test.shape, classes[9]) == ([0, 1, 2, 9], (1, 28, 28), "Ankle boot")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "fashion_mnist"])
def test_a_failed_download_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked = []

    def refuse(url: str, *args: object, **kwargs: object) -> None:
        asked.append(url)
        raise URLError("no network")

    for module in ("cifar", "stl10", "mnist"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", refuse)
    with pytest.raises(RuntimeError, match=r"(?s)root='.*' and could not be downloaded .*no network.*put the files"):
        load(name, root=tmp_path)
    assert asked


@directory_and_zip
@pytest.mark.parametrize("memory_gb", [4.0, 1e-7])
def test_class_folders_are_split_in_sorted_order(tmp_path: Path, zipped: bool, memory_gb: float) -> None:
    folder = tmp_path / "in" / "wrapper"
    write_classes(folder, count=10)
    for hidden in ("__MACOSX/cat/0.png", ".cache/x.png", "cat/._0.png", ".DS_Store"):
        (folder / hidden).parent.mkdir(parents=True, exist_ok=True)
        (folder / hidden).write_bytes(b"not an image")
    root = packed(tmp_path / "in", zipped)
    train, test, classes = load("image_folder", root=root, memory_gb=memory_gb, size=None)
    assert isinstance(train, ImageFiles if memory_gb < 1 else ImageArray)
    assert (len(train), len(test), train.shape, classes) == (16, 4, (3, 12, 12), ("cat", "dog"))
    assert labels_of(test).tolist() == [0, 0, 1, 1]
    kept, _ = stratified(torch.tensor([0] * 10 + [1] * 10), 0.2, seed=0)
    for index, row in enumerate(kept.tolist()):
        path = folder / ("cat" if row < 10 else "dog") / f"{row % 10}.png"
        expected = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        assert torch.equal(train.read(torch.tensor([index]))[0], expected)


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_train_and_test_folders_are_the_splits(tmp_path: Path, held_out: str) -> None:
    write_classes(tmp_path / "train", count=3, channels=1)
    write_classes(tmp_path / held_out, count=2, channels=1, classes=("dog",))
    write_image(tmp_path / "train" / "dog" / "nested" / "more.PNG", channels=1)
    train, test, classes = load("image_folder", root=tmp_path, size=None)
    assert labels_of(train).tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert (labels_of(test).tolist(), test.shape, classes) == ([1, 1], (1, 12, 12), ("cat", "dog"))
    write_image(tmp_path / held_out / "emu" / "0.png")
    with pytest.raises(ValueError, match=rf"{held_out}/ has classes \['emu'\] that train/ lacks"):
        load("image_folder", root=tmp_path)


def test_formats_and_mixed_sizes(tmp_path: Path) -> None:
    for index, name in enumerate(("0.jpg", "1.JPEG", "2.png", "3.bmp", "nested/4.webp")):
        write_image(tmp_path / "only" / name, 300 + index)
    train, test, classes = load("image_folder", root=tmp_path, size=None)
    assert (len(train), len(test), train.shape, classes) == (4, 1, (3, 224, 224), ("only",))
    assert load("image_folder", root=tmp_path, size=20)[0].shape == (3, 20, 20)


@pytest.mark.parametrize("memory_gb", [4.0, 1e-7])
@directory_and_zip
def test_an_unreadable_image_is_named_before_training(tmp_path: Path, memory_gb: float, zipped: bool) -> None:
    write_classes(tmp_path / "in")
    (tmp_path / "in" / "dog" / "3.png").write_bytes(b"this is text")
    root = packed(tmp_path / "in", zipped)
    with pytest.raises(ValueError, match=r"1 unreadable file.*'dog/3\.png' failed with UnidentifiedImageError.*remove"):
        load("image_folder", root=root, memory_gb=memory_gb)


def test_a_truncated_jpeg_and_a_sixteen_bit_png_are_named(tmp_path: Path) -> None:
    write_classes(tmp_path)
    write_image(whole := tmp_path / "cat" / "7.jpg", 64)
    intact = whole.read_bytes()
    whole.write_bytes(intact[: len(intact) // 2])
    with pytest.raises(ValueError, match=r"'cat/7\.jpg' failed with OSError: .*truncated"):
        load("image_folder", root=tmp_path)
    whole.write_bytes(intact)
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(tmp_path / "cat" / "8.png")
    for memory_gb in (4.0, 1e-7):
        with pytest.raises(ValueError, match=r"'cat/8\.png' .*more than 8 bits"):
            load("image_folder", root=tmp_path, memory_gb=memory_gb)


@directory_and_zip
@pytest.mark.parametrize("folders", [(".",), ("train", "test")])
def test_images_without_class_folders(tmp_path: Path, zipped: bool, folders: tuple[str, ...]) -> None:
    """Labels are not needed: there are none, and rows are held out at random, or those of test/."""
    pixels = [write_image(tmp_path / "in" / folder / f"{index}.png") for folder in folders for index in range(5)]
    train, test, classes = load("image_folder", root=packed(tmp_path / "in", zipped), size=None)
    assert (classes, train.labels, test.labels) == ((), None, None)
    assert (len(train), len(test)) == ((4, 1) if folders == (".",) else (5, 5))
    kept = stratified(torch.zeros(5), 0.2, seed=0)[0] if folders == (".",) else torch.arange(5)
    for row, place in enumerate(kept.tolist()):
        assert torch.equal(train.read(torch.tensor([row]))[0], torch.from_numpy(pixels[place]).permute(2, 0, 1))


def test_one_split_with_classes_and_one_without(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_image(tmp_path / "test" / "0.png")
    with pytest.raises(ValueError, match=r"one of train/ and test/ has class folders, the other none; expected"):
        load("image_folder", root=tmp_path)


ORIENTED = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.transpose(1, 0, 2),
            6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).transpose(1, 0, 2), 8: np.rot90}  # fmt: skip
"""EXIF orientation → what a viewer shows of the stored pixels, by Exif 2.3: which row and column are top and left."""


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
@pytest.mark.parametrize("orientation", [0, *ORIENTED, 9])
def test_images_are_turned_as_their_exif_says(tmp_path: Path, orientation: int, ending: str) -> None:
    stored = np.kron(RNG.integers(0, 2, (3, 5, 3)), np.ones((16, 16, 1))).astype(np.uint8) * 255  # blocks, for JPEG
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if ending == "webp" else {"quality": 100, "subsampling": 0} if ending == "jpg" else {}
    Image.fromarray(stored).save(tmp_path / f"a.{ending}", exif=exif, **options)
    shown = Image.fromarray(np.ascontiguousarray(ORIENTED.get(orientation, ORIENTED[1])(stored)))
    shown.save(tmp_path / "b.png")
    found, expected = ImageFiles(Files(tmp_path), [f"a.{ending}", "b.png"], size=48).read(torch.arange(2)).float()
    assert float((found - expected).abs().mean()) < 6
    if orientation in range(2, 9):
        Image.fromarray(stored).save(tmp_path / "c.png")
        assert (
            float((ImageFiles(Files(tmp_path), ["c.png"], size=48).read(torch.arange(1))[0] - expected).abs().mean())
            > 30
        )


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_is_seen_on_white(tmp_path: Path, mode: str, channels: int) -> None:
    """By an alpha channel, and by a colour or palette entry that stands for transparent (tRNS)."""
    grey = RNG.integers(0, 256, (16, 16), dtype=np.uint8)
    alpha = RNG.integers(0, 256, (16, 16), dtype=np.uint8)
    options: dict[str, Any] = {}
    if mode in ("RGBA", "LA"):
        image = Image.merge(mode, [Image.fromarray(grey)] * (len(mode) - 1) + [Image.fromarray(alpha)])
    else:
        alpha = np.where(grey == grey[0, 0], 0, 255).astype(np.uint8)
        key = int(grey[0, 0])
        image = Image.fromarray(grey)
        if mode == "RGB":
            image, key = image.convert("RGB"), (key, key, key)
        elif mode in ("P", "PA"):
            image = Image.fromarray(grey).convert("P")
            image.putpalette([value for level in range(256) for value in (level, level, level)])
            image.putdata(grey.flatten().tolist())
        options["transparency"] = key
    image.save(tmp_path / "a.png", **options)
    found = ImageFiles(Files(tmp_path), ["a.png"], size=16, channels=channels).read(torch.tensor([0]))[0]
    expected = (grey * (alpha / 255) + 255 * (1 - alpha / 255))[None].repeat(channels, 0)
    assert np.abs(found.numpy() - expected).max() <= 1


def notes(root: Path) -> str:
    (note,) = image_folder(str(root), size=8).notes
    return note


@directory_and_zip
def test_what_is_not_read_is_counted_and_named(tmp_path: Path, zipped: bool) -> None:
    folder = tmp_path / "in"
    write_classes(folder)
    assert image_folder(str(packed(folder, zipped)), size=8).notes == ()
    for name in ("cat/x.heic", "cat/y.HEIC", "dog/z.gif", "readme", "lost.png"):
        write_image(folder / "cat" / "0.png")
        (folder / name).write_bytes((folder / "cat" / "0.png").read_bytes())
    assert notes(packed(folder, zipped)).endswith(
        ": 5 file(s) are left out: 1 .gif (such as 'dog/z.gif'); 2 .heic (such as 'cat/x.heic'); 1 no ending (such as "
        "'readme'); 1 outside of the folders that are read (such as 'lost.png')"
    )
    only = tmp_path / "only"
    (only / "cat").mkdir(parents=True)
    (only / "cat" / "x.heic").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds no images; .* 1 \.heic \(such as 'cat/x\.heic'\); expected"):
        image_folder(str(packed(only, zipped)))


def test_links_give_no_row_twice(tmp_path: Path) -> None:
    """A link up, to a folder and to a file that are there, a hard link, and links in a circle or to nothing."""
    write_classes(tmp_path / "in", count=10)
    before = load("image_folder", root=tmp_path / "in", size=8)
    (tmp_path / "in" / "cat" / "loop").symlink_to("..")
    (tmp_path / "in" / "dog" / "a").symlink_to("../cat")
    (tmp_path / "in" / "dog" / "00.png").symlink_to("../cat/3.png")
    (tmp_path / "in" / "dog" / "99.png").hardlink_to(tmp_path / "in" / "cat" / "4.png")
    (tmp_path / "in" / "dog" / "self").symlink_to("self")
    (tmp_path / "in" / "dog" / "none.png").symlink_to("nowhere")
    after = load("image_folder", root=tmp_path / "in", size=8)
    for one, other in zip(before[:2], after[:2]):
        assert torch.equal(one.read(torch.arange(len(one))), other.read(torch.arange(len(other))))
        assert torch.equal(labels_of(one), labels_of(other))
    assert all(f"{count} {reason}" in notes(tmp_path / "in") for count, reason in (
        (2, "a link that leads nowhere"), (2, "the same file"), (2, "the same folder")))  # fmt: skip
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "cat").symlink_to(tmp_path / "in" / "cat")  # the only way there
    (tmp_path / "linked" / "dog").symlink_to(tmp_path / "in" / "dog")
    assert len(load("image_folder", root=tmp_path / "linked", size=8)[0]) == 16


def test_pipes_and_devices_are_left_alone(tmp_path: Path) -> None:
    write_classes(tmp_path)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "cat" / "null.png").symlink_to("/dev/zero")
    assert "2 no regular file (such as 'cat/null.png')" in notes(tmp_path)
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(OSError, match="a pipe, socket or device, where a regular file is needed"):
        image_folder(str(tmp_path / "pipe.zip"))
    files = Files(tmp_path)
    (tmp_path / "cat" / "0.png").unlink()
    os.mkfifo(tmp_path / "cat" / "0.png")  # after it was listed
    with pytest.raises(ValueError, match=r"'cat/0\.png' failed with OSError: .*a pipe, socket or device"):
        ImageFiles(files, ["cat/0.png"], size=8).read(torch.tensor([0]))


def test_a_folder_that_may_not_be_read_is_no_smaller_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path)

    def refuse(path: Path, inner: Any = os.listdir) -> Any:
        if path.name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return inner(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(PermissionError, match=r"permission denied; let this user read .*dog"):
        image_folder(str(tmp_path))


def archive(path: Path, members: dict[str, bytes], *, kind: int = 0, size: int | None = None) -> Path:
    """A zip of these members, whose directory may say another kind of file or another size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = kind << 16, zipfile.ZIP_DEFLATED
            out.writestr(info, content)
    if size is not None:
        data = path.read_bytes()
        for name, content in members.items():
            data = data.replace(len(content).to_bytes(4, "little") + len(name).to_bytes(2, "little"),
                                size.to_bytes(4, "little") + len(name).to_bytes(2, "little"))  # fmt: skip
        path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../a.png", "lies outside of the archive"), ("/etc/a.png", "lies outside of the archive"),
        ("cat/../../a.png", "lies outside"), ("cat//a.png", "lies outside"), ("./a.png", "lies outside"),
        ("cat\\a.png", "no plain path in it; pack it again"),
    ],
)  # fmt: skip
def test_members_of_a_zip_stay_inside_of_it(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        image_folder(str(archive(tmp_path / "a.zip", {name: b"x"})))


def test_zips_that_are_larger_than_they_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is declared and by what is read; a name that stands for two members; a link; a picture of 10⁹ pixels."""
    write_classes(tmp_path / "in")
    content = (tmp_path / "in" / "cat" / "0.png").read_bytes()
    monkeypatch.setattr("negbank.train.data.images.files.MOST_BYTES", 1 << 20)
    with pytest.raises(ValueError, match=r"'cat/b\.png' failed with BadZipFile: declares 2097152 bytes; a picture has"):
        image_folder(str(archive(tmp_path / "declared.zip", {"cat/a.png": content, "cat/b.png": bytes(2 << 20)})))
    lying = archive(tmp_path / "lying.zip", {"cat/b.png": bytes(2 << 20), "cat/a.png": content}, size=1000)
    with pytest.raises(ValueError, match=r"unreadable file.* BadZipFile"):
        image_folder(str(lying))
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as out:
        for name in ("cat/a.png", "cat/b.png", "cat/c.png"):
            out.writestr(name, content)
    twice = (tmp_path / "twice.zip").read_bytes().replace(b"cat/c.png", b"cat/a.png")
    (tmp_path / "twice.zip").write_bytes(twice)
    with pytest.raises(ValueError, match=r"1 name\(s\) stand for several members, such as 'cat/a\.png'"):
        image_folder(str(tmp_path / "twice.zip"))
    link = archive(tmp_path / "link.zip", {"cat/a.png": b"/etc/passwd"}, kind=0o120777)
    with pytest.raises(ValueError, match=r"holds no images; .*1 no regular file"):
        image_folder(str(link))
    huge = bytearray(content)
    huge[16:24] = (40_000).to_bytes(4, "big") * 2  # its header says 40 000 × 40 000
    (tmp_path / "in" / "cat" / "0.png").write_bytes(huge[:29] + zlib.crc32(huge[12:29]).to_bytes(4, "big") + huge[33:])
    with pytest.raises(ValueError, match=r"'cat/0\.png' failed with DecompressionBombError"):
        image_folder(str(tmp_path / "in"))


@directory_and_zip
def test_class_folder_without_images(tmp_path: Path, zipped: bool) -> None:
    write_classes(tmp_path / "in")
    (tmp_path / "in" / "empty").mkdir()
    with pytest.raises(ValueError, match="class folder 'empty' holds no images"):
        load("image_folder", root=packed(tmp_path / "in", zipped))


def test_bad_roots(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"root='.*missing' does not exist; give"):
        load("image_folder", root=tmp_path / "missing")
    with pytest.raises(ValueError, match="holds no images; expected"):
        load("image_folder", root=tmp_path)
    write_classes(tmp_path / "single", count=1)
    with pytest.raises(ValueError, match="one image a class, so none can be held out"):
        load("image_folder", root=tmp_path / "single")
    write_classes(tmp_path / "odd" / "train")
    write_classes(tmp_path / "odd" / "validation")
    with pytest.raises(ValueError, match="has train/ but neither test/ nor val/ beside it"):
        load("image_folder", root=tmp_path / "odd")
    (tmp_path / "text.zip").write_text("not a zip")
    with pytest.raises(ValueError, match=r"text\.zip' is not a readable zip archive"):
        load("image_folder", root=tmp_path / "text.zip")


def test_a_damaged_zip_member_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "in")
    root = packed(tmp_path / "in", zipped=True)
    data = bytearray(root.read_bytes())
    data[data.index(b"dog/3.png") + 60] ^= 0xFF  # in the stored pixels of that member
    root.write_bytes(data)
    with pytest.raises(ValueError, match=r"'dog/3\.png' failed with BadZipFile: Bad CRC-32"):
        load("image_folder", root=root)


def test_bad_arguments_are_named() -> None:
    for bad, message in (
        ({"size": 0}, "size=0: expected at least 8"),
        ({"memory_gb": 0.0}, r"memory_gb=0\.0: expected a value above 0"),
        ({"holdout": 1.0}, r"holdout=1\.0: expected .* at most 0\.9"),
    ):
        with pytest.raises(ValueError, match=message):
            image_folder("images", **bad)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return sources.digits()


def seeds(count: int, seed: int = 0) -> Tensor:
    return Counter.of(seed).seeds(count)


def test_a_view_depends_on_row_and_seed_alone(splits: Splits) -> None:
    data = splits.train
    rows = torch.tensor([5, 9, 5, 700, 9, 5])
    views = data.read(rows, seeds(6))
    assert views.shape == (6, 1, 16, 16)
    assert (views.dtype, views.is_contiguous(memory_format=torch.channels_last)) == (torch.float32, True)
    for part in torch.randperm(6, generator=torch.Generator().manual_seed(0)).split(2):
        assert torch.equal(data.read(rows[part], seeds(6)[part]), views[part])
    assert not torch.equal(views[0], views[2])
    assert torch.equal(data.read(rows[:0], seeds(0)), views[:0])
    plain = data.read(rows, None)
    assert torch.equal(plain, data.augment.plain(data.images.read(rows)))
    assert torch.equal(plain[0], plain[2])


def test_each_distinct_row_is_decoded_once(tmp_path: Path) -> None:
    write_classes(tmp_path, channels=3, side=16)
    files = Files(tmp_path)
    opened: list[str] = []
    files.open = lambda name, inner=files.open: opened.append(name) or inner(name)  # type: ignore[method-assign]
    data = ImageData(ImageFiles(files, files.names, size=16), Augment(channels=3, size=16))
    views = data.read(torch.tensor([3, 1, 3, 1]), seeds(4))
    assert sorted(opened) == [files.names[1], files.names[3]]
    assert torch.equal(views[2:3], data.read(torch.tensor([3]), seeds(4)[2:3]))
    assert data.describes == {"channels": 3}


@directory_and_zip
def test_files_travel_to_another_process(tmp_path: Path, zipped: bool) -> None:
    write_classes(tmp_path / "in", side=16)
    data = image_folder(packed(tmp_path / "in", zipped), size=16, memory_gb=1e-7).train
    rows = torch.tensor([0, 3, 2])
    here, there = data.read(rows, seeds(3)), pickle.loads(pickle.dumps(data)).read(rows, seeds(3))
    assert torch.equal(here, there)


def test_raw_pixels_are_shrunk() -> None:
    pixels = torch.randint(0, 256, (3, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ImageData(ImageArray(pixels), Augment(channels=1, size=64))
    expected = pixels.float().view(3, 32, 2, 32, 2).mean((2, 4)).flatten(1)
    torch.testing.assert_close(data.raw(torch.arange(3)), expected)
    small = ImageData(ImageArray(pixels[..., :16, :16]), Augment(channels=1, size=16))
    assert torch.equal(small.raw(torch.tensor([2])), pixels[2:, :, :16, :16].float().flatten(1))


def test_augment_is_made_of_what_the_images_are() -> None:
    made = sources.digits(augment=lambda **known: Augment(**known, flip=1.0))
    assert (made.train.augment.flip, made.train.augment.size) == (1.0, 16)
    assert sources.digits(size=24).train.augment.scale == (0.5, 1.0)  # digits, for grey images


def test_a_subset_of_the_training_rows_is_the_same_for_every_run(splits: Splits) -> None:
    first, again = subset(splits, 300), subset(splits, 300)
    assert subset(splits) is splits
    assert (len(first.train), first.test) == (300, splits.test)
    rows = torch.tensor([0, 7, 299])
    assert torch.equal(first.train.read(rows, seeds(3)), again.train.read(rows, seeds(3)))
    chosen = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))[:300].sort().values
    assert torch.equal(first.train.read(rows, None), splits.train.read(chosen[rows], None))
    assert torch.equal(labels_of(first.train), labels_of(splits.train)[chosen])
    assert torch.equal(raw(first.train, rows), raw(splits.train, chosen[rows]))
    assert describes(first.train) == {"channels": 1}
    with pytest.raises(ValueError, match=r"data\.rows=99999: the data has 1438 training rows"):
        subset(splits, 99_999)


class Ragged:
    """Data of another kind: lists of numbers, without what not all data has."""

    labels = None

    def __len__(self) -> int:
        return 10

    def read(self, rows: Tensor, seeds: Tensor | None) -> list[list[int]]:
        return [[row] * row for row in rows.tolist()]

    def collate(self, parts: list[list[list[int]]]) -> list[list[int]]:
        return [each for part in parts for each in part]


def test_a_subset_of_pairs_and_of_ragged_data() -> None:
    pairs = Pairs(Ragged(), Ragged(), torch.arange(10) % 3)
    some = subset(Splits(pairs), 4).train
    assert (num_rows(some), num_rows(pairs), len(sides(some))) == (4, 10, 2)
    rows = some.left.rows
    assert some.right.read(torch.tensor([1]), None) == [[int(rows[1])] * int(rows[1])]
    assert torch.equal(some.groups, (torch.arange(10) % 3)[rows])
    assert collate(some.left, [[[1]], [[2], [3]]]) == [[1], [2], [3]]
    assert (describes(some.left), raw(some.left, torch.arange(2)), some.left.labels) == ({}, None, None)
    assert torch.equal(collate(ImageData, [torch.zeros(1), torch.ones(2)]), torch.tensor([0.0, 1.0, 1.0]))
