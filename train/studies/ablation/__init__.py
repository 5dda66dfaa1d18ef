"""Which proposal, at which staleness, with how many draws: proposals measured exactly against the truth.

`ablate` measures what it is given, `run.run` into a folder what a YAML file says (`negbank ablate`), `Live` a training
run from inside. What is measured, and by which formula, is in `measurement.py`.
"""

from negbank.train.studies.ablation.live import Live
from negbank.train.studies.ablation.store import AblationError
from negbank.train.studies.ablation.sweep import ablate

__all__ = ["AblationError", "Live", "ablate"]
