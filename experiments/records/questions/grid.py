"""Records of runs to a target at every batch size and rate: their rows are those of `convergence`."""

ROWS = {}
