"""Which negatives an anchor is contrasted with, at which weight. One method a file, all under one surrogate loss:

L = mean_i β (Σ_r w_ir s_ir − p_i s_i⁺),    w, p detached,    p_i = Σ_r w_ir unless a method says otherwise
"""

from samplers.negatives.contract import EncodedBatch, Expected, Info, Negatives, NegativeSampler
from samplers.negatives.emc2 import Emc2
from samplers.negatives.gumbel import NegativeCache
from samplers.negatives.hardest import Hardest
from samplers.negatives.importance import Importance
from samplers.negatives.in_batch import InBatch
from samplers.negatives.queue import Moco
from samplers.negatives.reweighted import Reweighted
from samplers.negatives.sogclr import ISogClr, SogClr

__all__ = [
    "Emc2",
    "EncodedBatch",
    "Expected",
    "Hardest",
    "ISogClr",
    "Importance",
    "InBatch",
    "Info",
    "Moco",
    "NegativeCache",
    "NegativeSampler",
    "Negatives",
    "Reweighted",
    "SogClr",
]
