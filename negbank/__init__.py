"""negbank: a bank of embeddings, an index over it, and proposals with exact densities drawn from the two."""

from negbank.bank import EmbeddingBank
from negbank.exclusions import Exclusions
from negbank.index import ExactIndex, FaissIndex
from negbank.mining import DamagedResultError, MiningResult, mine_hard_negatives
from negbank.refresh import Refresher
from negbank.snapshot import DamagedSnapshotError, Snapshot

__all__ = [
    "DamagedResultError",
    "DamagedSnapshotError",
    "EmbeddingBank",
    "ExactIndex",
    "Exclusions",
    "FaissIndex",
    "MiningResult",
    "Refresher",
    "Snapshot",
    "mine_hard_negatives",
]
