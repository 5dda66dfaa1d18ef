"""Which proposal, at which staleness, with how many draws: proposals measured exactly against the truth.

`sweep.ablate` measures what it is given, `run.run` into a folder what a YAML file says (`negbank ablate`), `live.Live`
a training run from inside. What is measured, and by which formula, is in `measurement.py`.
"""
