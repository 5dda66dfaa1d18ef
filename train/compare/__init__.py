"""Which method, at the same price: methods × seeds on one data set, at equal steps and at equal encodings.

`from_config` runs what a YAML file says (`negbank compare`). What a cell is and which budget it gets is in `cells.py`,
how cells are run in `processes.py`, what is read from them in `results.py`.
"""

from negbank.train.compare.processes import CompareError
from negbank.train.compare.run import from_config

__all__ = ["CompareError", "from_config"]
