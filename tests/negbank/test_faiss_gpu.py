"""What goes to a GPU and what stays, against a stand-in of Faiss's GPU part; on a real one, that results agree."""

from __future__ import annotations

import faiss
import pytest
import torch

from negbank import ExactIndex, FaissIndex
from negbank.index import faiss_gpu

CUDA = torch.device("cuda", 0)


class OnGpu:
    """An index on the stand-in's GPU."""

    def __init__(self, index):
        self.cpu, self.nlist, self.nprobe = index, getattr(index, "nlist", None), 1


class Lists(OnGpu):
    pass


class Behind:
    """A transform, which stays on the CPU, before an index."""

    def __init__(self, index):
        self.index, self.ntotal, self.d = index, index.ntotal, index.d


class Fake:
    """Faiss with a GPU part that is none; `refuses`: what it says of an index."""

    GpuIndex, GpuIndexIVF, IndexPreTransform = OnGpu, Lists, Behind
    StandardGpuResources = GpuDistanceParams = object
    refuses = None

    def __getattr__(self, name):
        return getattr(faiss, name)

    def downcast_index(self, index):
        return faiss.downcast_index(index) if isinstance(index, faiss.Index) else index

    def index_cpu_to_gpu(self, resources, number, index):
        if self.refuses:
            raise RuntimeError(self.refuses)
        if isinstance(index, Behind):
            moved = Behind(index.index)
            moved.index = Lists(index.index)
            return moved
        return Lists(index) if isinstance(index, faiss.IndexIVF) else OnGpu(index)

    def index_gpu_to_cpu(self, index):
        return index.index.cpu if isinstance(index, Behind) else index.cpu


@pytest.fixture(name="fake")
def fake_fixture(monkeypatch):
    fake = Fake()
    monkeypatch.setattr(faiss_gpu, "faiss", fake)
    monkeypatch.setattr(faiss_gpu, "_resources", lambda device: None)
    return fake


def lists(nlist=8, nprobe=4):
    x = torch.nn.functional.normalize(torch.randn(200, 8, generator=torch.Generator().manual_seed(0)), dim=1).numpy()
    index = faiss.index_factory(8, f"IVF{nlist},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(x)
    index.add(x)
    index.nprobe = nprobe
    return index


def test_lists_are_found_and_tuned_on_the_gpu_and_come_back_also_from_behind_a_transform(fake):
    for index in (lists(), Behind(lists())):
        moved = faiss_gpu.to_gpu(index, CUDA)
        assert faiss_gpu.placed(moved)
        assert not faiss_gpu.placed(index)
        found = faiss_gpu.lists_of(moved)
        assert (found.nprobe, found.nlist) == (4, 8)  # what was tuned is searched
        assert isinstance(faiss_gpu.to_cpu(moved), faiss.IndexIVF)
    assert faiss_gpu.to_cpu(index) is index
    assert faiss_gpu.lists_of(faiss.IndexFlatIP(8)) is None


def test_no_memory_is_an_error_and_no_search_on_the_cpu(fake):
    fake.refuses = "Error in alloc: 'err == cudaSuccess' failed: alloc fail type IVFLists, 2 out of memory"
    with pytest.raises(RuntimeError, match=r"cuda:0: no room for an index of 200 rows of width 8 .* run.device=cpu"):
        faiss_gpu.to_gpu(lists(), CUDA)


@pytest.mark.parametrize("why", ["This index type is not implemented on GPU.", "nprobe", "faiss-cpu"])
def test_what_stays_on_the_cpu_says_so(fake, monkeypatch, why):
    index = lists(nprobe=5000 if why == "nprobe" else 4)
    fake.refuses = why if "implemented" in why else None
    if why == "faiss-cpu":
        monkeypatch.setattr(faiss_gpu, "faiss", type("Cpu", (), {"__getattr__": lambda self, name: of_cpu(name)})())
    with pytest.warns(RuntimeWarning, match=r"IndexIVFFlat is searched on the CPU"):
        assert faiss_gpu.to_gpu(index, CUDA) is index
    assert faiss_gpu.lists_of(index).nprobe == index.nprobe
    assert faiss_gpu.to_cpu(index) is index


def of_cpu(name):
    if "Gpu" in name or "gpu" in name:
        raise AttributeError(name)
    return getattr(faiss, name)


@pytest.mark.gpu
@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "PCA8,IVF16,Flat"])
def test_on_a_gpu_it_finds_what_exact_search_finds(clustered, factory):
    x = clustered(600, 16).cuda()
    index = FaissIndex(x, factory=factory, target_recall=0.8, recall_at=10)
    again = FaissIndex.restore(x, None, index.state())
    index.tune(x[:50], 10, 1.0)
    for each in (index, again):
        found = each.search(x[:50], 10).ids
        truth = ExactIndex(x).search(x[:50], 10).ids
        assert (found[:, :, None] == truth[:, None]).any(2).double().mean() >= 0.75
