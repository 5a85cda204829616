"""Records of the grid of runs to a target: none, because `convergence` declares the type of their rows."""

ROWS = {}
