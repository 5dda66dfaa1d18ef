"""Which negatives an anchor is contrasted with, at which weight. One method a file, all under one surrogate loss:

L = mean_i β (Σ_r w_ir s_ir − p_i s_i⁺),    w, p detached,    p_i = Σ_r w_ir unless a method says otherwise
"""

from negbank.samplers.negatives.contract import EncodedBatch, Info, Negatives, NegativeSampler, Ticket
from negbank.samplers.negatives.dcl import Dcl
from negbank.samplers.negatives.emc2 import Emc2
from negbank.samplers.negatives.hardest import Hardest
from negbank.samplers.negatives.hcl import Hcl
from negbank.samplers.negatives.importance import Importance
from negbank.samplers.negatives.in_batch import InBatch
from negbank.samplers.negatives.isogclr import ISogClr
from negbank.samplers.negatives.mined import Mined
from negbank.samplers.negatives.moco import Moco
from negbank.samplers.negatives.negative_cache import NegativeCache
from negbank.samplers.negatives.sogclr import SogClr

__all__ = [
    "Dcl",
    "Emc2",
    "EncodedBatch",
    "Hardest",
    "Hcl",
    "ISogClr",
    "Importance",
    "InBatch",
    "Info",
    "Mined",
    "Moco",
    "NegativeCache",
    "NegativeSampler",
    "Negatives",
    "SogClr",
    "Ticket",
]
