"""A sampler of your own: one file, and one line in pyproject.toml."""
