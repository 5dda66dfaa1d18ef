"""Which method, at the same price: methods × seeds on one data set, at equal steps and at equal encodings.

`run.run` runs what a YAML file says (`negbank compare`). What a trial is and which budget it gets is in `trials.py`,
how trials are run in `processes.py`, what is read from them in `results.py`.
"""
