"""Which method, at the same price: methods × seeds on one data set, at equal steps and at equal encodings.

`from_config` runs what a YAML file says (`negbank compare`). What a trial is and which budget it gets is in
`trials.py`, how trials are run in `processes.py`, what is read from them in `results.py`.
"""

from negbank.train.studies.compare.processes import CompareError
from negbank.train.studies.compare.run import from_config

__all__ = ["CompareError", "from_config"]
