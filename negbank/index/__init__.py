"""Nearest-neighbour indexes over the bank: the contract, the exact oracle, and Faiss."""

from negbank.index.contract import Cells, Graph, GraphReport, Index, IndexReport, Neighbors
from negbank.index.exact import ExactIndex
from negbank.index.factory import empty_index
from negbank.index.faiss import FaissIndex

__all__ = [
    "Cells",
    "ExactIndex",
    "FaissIndex",
    "Graph",
    "GraphReport",
    "Index",
    "IndexReport",
    "Neighbors",
    "empty_index",
]
