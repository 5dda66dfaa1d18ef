"""Files of arrays in every container, damaged at random: the numbers that numpy or torch wrote, or one sentence."""

from __future__ import annotations

import io
import os
import random
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from negbank.train.data.arrays import read, read_labels
from negbank.train.data.tensors import tensors

CASES = 250
ENDINGS = ("npy", "npz", "safetensors", "pt", "old.pt")


def written(path, ending, array):
    """An array in a file of this kind."""
    tensor = torch.from_numpy(array)
    if ending == "npy":
        np.save(path, array)
    elif ending == "npz":
        np.savez_compressed(path, x=array)
    elif ending == "safetensors":
        save_file({"x": tensor}, path)
    else:
        torch.save({"x": tensor}, path, _use_new_zipfile_serialization=ending == "pt")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # of torch and numpy, on what they read
@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_bytes_are_refused_by_name_or_numbers(ending, tmp_path):
    """No class of another library comes out, no crash, and a shape is one that the file has bytes for."""
    choose, generator = random.Random(ending), np.random.default_rng(0)
    refused = 0
    for case in range(CASES // 2):
        array = generator.standard_normal((choose.randint(1, 9), choose.randint(1, 5))).astype(np.float32)
        path = tmp_path / f"{case}.{ending}"
        written(path, ending, array)
        content = bytearray(path.read_bytes())
        for _ in range(choose.randint(1, 3)):
            at = choose.randrange(min(len(content), choose.choice([40, 200, 4000])))
            kind = choose.randrange(4)
            if kind == 0:
                content[at] = choose.randrange(256)
            elif kind == 1:
                del content[at:]
                content += b"\0" * (not content)
            elif kind == 2:
                content[at : at + 4] = choose.randbytes(4)
            else:
                content[at:at] = choose.randbytes(choose.randint(1, 9))
        path.write_bytes(content)
        try:
            found = read(str(path))
            assert found.nbytes <= len(content) + 400
            np.asarray(found if isinstance(found, np.ndarray) else found.double()).sum()
        except ValueError as error:
            said = str(error)
            refused += 1
        else:
            continue
        assert said
        assert "\n" not in said
        with pytest.raises(ValueError, match=r"^path="):
            tensors(str(path))
    assert refused > CASES / 10


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "<g", "i1", ">i2", "<i4", ">i8", "u1", ">u2", "<u4", "<u8"])
@pytest.mark.parametrize("order", ["C", "F", "reversed"])
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_numbers_of_every_kind_are_what_numpy_reads(dtype, order, ending, tmp_path):
    array = (np.arange(60).reshape(12, 5) % 100).astype(dtype)
    array = np.asfortranarray(array) if order == "F" else array[::-1, ::-1] if order == "reversed" else array
    (np.save if ending == "npy" else np.savez)(tmp_path / f"a.{ending}", array)
    rows = torch.tensor([11, 0, 3, 3])
    data = tensors(str(tmp_path / f"a.{ending}"), holdout=0).train
    assert data.read(rows, None).tolist() == array[rows.numpy()].astype(float).tolist()


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.uint16, torch.uint32, torch.uint64, torch.int8]
)
def test_numbers_of_torch_that_numpy_has_not(dtype, tmp_path):
    tensor = torch.arange(24).view(6, 4).float().to(dtype)
    torch.save(tensor, tmp_path / "a.pt")
    data = tensors(str(tmp_path / "a.pt"), holdout=0).train
    assert torch.equal(data.read(torch.tensor([5, 0]), None).double(), tensor.double()[[5, 0]])


def zipped(**members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return out.getvalue()


def header(shape, dtype="<f4"):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue()


def test_what_declares_more_than_there_is(tmp_path, monkeypatch):
    """Headers of 10¹² numbers, and a small archive that unpacks to much: by what it declares and by what there is."""
    (tmp_path / "a.npy").write_bytes(header((10**12, 4)) + b"1234")
    (tmp_path / "a.npz").write_bytes(zipped(x=header((10**12, 4)) + b"1234"))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match=r"^not readable \(.*\); save the array again"):
            read(str(tmp_path / name))
    monkeypatch.setattr("negbank.train.data.arrays.memory", lambda: 1 << 20)
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((1 << 19, 4), np.float32))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 14
    with pytest.raises(
        ValueError, match=r"declares 8388\d+ bytes, more than this machine has memory for; save an \.npy"
    ):
        read(str(tmp_path / "bomb.npz"))


def evil(tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    return Runs()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda p: np.save(p / "a.npy", np.array([{}], dtype=object), allow_pickle=True),
            r"Python objects .*; save the array",
        ),
        (lambda p: np.savez(p / "a.npz", x=np.array([evil(p)], dtype=object)), "[Oo]bject arrays|pickle"),
        (lambda p: torch.save(evil(p), p / "a.pt"), "[Ww]eights"),
        (lambda p: torch.save(torch.eye(3).to_sparse(), p / "a.pt"), "sparse"),
        (lambda p: torch.save(torch.eye(3, device="meta"), p / "a.pt"), "meta"),
        (lambda p: torch.save(torch.eye(3) > 0, p / "a.pt"), "torch.bool"),
        (lambda p: torch.save([1, 2], p / "a.pt"), "holds a list"),
        (lambda p: torch.save({}, p / "a.pt"), "holds no array"),
        (lambda p: np.save(p / "a.npy", np.array([[2**63]], np.uint64)), "holds 9223372036854775808"),
        (lambda p: torch.save(torch.tensor([[2**63]], dtype=torch.uint64), p / "a.pt"), r"2\*\*63"),
        (lambda p: np.save(p / "a.npy", np.zeros((2, 2), "V8")), "expected floating or integer"),
        (lambda p: np.save(p / "a.npy", np.zeros((2, 2), "M8[s]")), "expected floating or integer"),
        (lambda p: (p / "a.npy").mkdir(), "a folder, where a file is needed"),
        (lambda p: os.mkfifo(p / "a.npz"), "a pipe, socket or device"),
        (lambda p: (p / "a.safetensors").symlink_to("/dev/zero"), "a pipe, socket or device"),
        (lambda p: (p / "a.npy").symlink_to("a.npy"), "symbolic links that lead in a circle"),
        (lambda p: (p / "a.npy").write_bytes(b""), "."),
        (lambda p: (p / "a.npy").write_bytes(zipped(x=b"")), r"an archive of arrays; name it \.npz"),
    ],
)
def test_what_is_no_array_of_numbers(make, said, tmp_path):
    make(tmp_path)
    (path,) = tmp_path.glob("a.*")
    with pytest.raises(ValueError, match=said):
        read(str(path))
    with pytest.raises(ValueError, match=r"groups=.*; give an \.npy file of integer labels"):
        read_labels(str(path), "groups")
    assert not (tmp_path / "ran").exists()


def test_labels_that_are_ids(tmp_path):
    """Ids up to 2⁶³ stay what they are, without a name for every number below; larger ones are refused."""
    np.save(tmp_path / "x.npy", np.eye(6, dtype=np.float32))
    for ids in (np.array([0, 5, 10**15, 10**15, -1, 3]), np.array([1, 2, 3, 4, 5, 2**63 - 1], np.uint64)):
        np.save(tmp_path / "y.npy", ids)
        made = tensors(str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy"), holdout=0)
        assert isinstance(made.train.labels, Tensor)
        assert (made.train.labels.tolist(), made.classes) == (ids.tolist(), ())
    np.save(tmp_path / "y.npy", np.array([1, 2, 3, 4, 5, 2**63], np.uint64))
    with pytest.raises(ValueError, match=r"labels=.*holds 9223372036854775808"):
        tensors(str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy"))
