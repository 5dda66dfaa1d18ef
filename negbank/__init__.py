"""negbank: a bank of embeddings, an index over it, and proposals with exact densities drawn from the two.

Names load their files, and with them torch, Faiss and Numba, when they are first asked for (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from negbank.bank import EmbeddingBank as EmbeddingBank
    from negbank.exclusions import Exclusions as Exclusions
    from negbank.index import ExactIndex as ExactIndex
    from negbank.index import FaissIndex as FaissIndex
    from negbank.mining import DamagedResultError as DamagedResultError
    from negbank.mining import MiningResult as MiningResult
    from negbank.mining import mine_hard_negatives as mine_hard_negatives
    from negbank.refresh import Refresher as Refresher
    from negbank.snapshot import DamagedSnapshotError as DamagedSnapshotError
    from negbank.snapshot import Snapshot as Snapshot
    from negbank.train.fit import fit as fit
    from negbank.train.registry import register as register

FILES = {
    "DamagedResultError": "negbank.mining",
    "DamagedSnapshotError": "negbank.snapshot",
    "EmbeddingBank": "negbank.bank",
    "ExactIndex": "negbank.index",
    "Exclusions": "negbank.exclusions",
    "FaissIndex": "negbank.index",
    "MiningResult": "negbank.mining",
    "Refresher": "negbank.refresh",
    "Snapshot": "negbank.snapshot",
    "fit": "negbank.train.fit",
    "mine_hard_negatives": "negbank.mining",
    "register": "negbank.train.registry",
}
"""Where each public name lives."""
__all__ = list(FILES)


def __getattr__(name: str) -> Any:
    if name not in FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(FILES[name]), name)
    globals()[name] = found  # once
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *FILES})
