"""Records of what `experiments.benchmark` writes: one module per suite."""
