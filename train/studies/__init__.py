"""Studies of runs and proposals: what they are worth and what they cost. They stand on runs; no run stands on them."""
