"""Hard negatives for any embeddings: `mine_hard_negatives`, and what it returns."""

from negbank.mining.mine import mine_hard_negatives
from negbank.mining.parts import DamagedResultError
from negbank.mining.result import MiningResult

__all__ = ["DamagedResultError", "MiningResult", "mine_hard_negatives"]
