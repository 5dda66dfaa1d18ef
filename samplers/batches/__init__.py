"""Which rows meet in a batch. Each sampler goes into `DataLoader(batch_sampler=...)` as it is."""

from samplers.batches.contract import BatchSampler
from samplers.batches.drawn import Drawn
from samplers.batches.groups import near_duplicates
from samplers.batches.knn import Knn
from samplers.batches.ordered import Ordered
from samplers.batches.prosampler import ProSampler
from samplers.batches.spectral import Spectral
from samplers.batches.uniform import Uniform

__all__ = ["BatchSampler", "Drawn", "Knn", "Ordered", "ProSampler", "Spectral", "Uniform", "near_duplicates"]
