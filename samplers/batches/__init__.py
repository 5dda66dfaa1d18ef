"""Which rows meet in a batch. Each sampler goes into `DataLoader(batch_sampler=...)` as it is."""

from samplers.batches.contract import BatchSampler
from samplers.batches.uniform import Uniform

__all__ = ["BatchSampler", "Uniform"]
