"""Two-way contrast: two encoders, two banks, two indexes, and anchors of one side against rows of the other."""

from negbank.train.pairs.build import build_pairs
from negbank.train.pairs.retrieval import recall_both_ways
from negbank.train.pairs.trainer import PairTrainer, Side

__all__ = ["PairTrainer", "Side", "build_pairs", "recall_both_ways"]
