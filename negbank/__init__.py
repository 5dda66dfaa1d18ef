"""negbank: a bank of embeddings, an index over it, and proposals with exact densities drawn from the two."""

from negbank.bank import EmbeddingBank
from negbank.filters import Exclusions
from negbank.index import ExactIndex, FaissIndex
from negbank.refresh import Refresher
from negbank.snapshot import DamagedSnapshotError, Snapshot

__all__ = ["DamagedSnapshotError", "EmbeddingBank", "ExactIndex", "Exclusions", "FaissIndex", "Refresher", "Snapshot"]
