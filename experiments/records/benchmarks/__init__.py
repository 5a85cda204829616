"""Records of the files that `experiments.benchmark` writes: one module per suite."""
