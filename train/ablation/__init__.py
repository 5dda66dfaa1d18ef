"""Which proposal, at which staleness, with how many draws: proposals measured exactly against the truth.

`ablate` measures what it is given, `from_config` what a YAML file says (`negbank ablate`), `Live` a training run from
inside. What is measured, and by which formula, is in `measure.py`.
"""

from negbank.train.ablation.cells import ablate
from negbank.train.ablation.live import Live, live
from negbank.train.ablation.run import from_config
from negbank.train.ablation.store import AblationError

__all__ = ["AblationError", "Live", "ablate", "from_config", "live"]
