"""Which rows meet in a batch. Each sampler goes into `DataLoader(batch_sampler=...)` as it is."""

from negbank.samplers.batches.clusters import Clusters
from negbank.samplers.batches.communities import Communities
from negbank.samplers.batches.contract import BatchSampler
from negbank.samplers.batches.drawn import Drawn
from negbank.samplers.batches.groups import near_duplicates
from negbank.samplers.batches.knn import Knn
from negbank.samplers.batches.ordered import Ordered
from negbank.samplers.batches.prosampler import ProSampler
from negbank.samplers.batches.spectral import Spectral
from negbank.samplers.batches.uniform import UniformBatches

__all__ = [
    "BatchSampler", "Clusters", "Communities", "Drawn", "Knn", "Ordered", "ProSampler", "Spectral", "UniformBatches",
    "near_duplicates",
]  # fmt: skip
