"""The gradient noise scale: measured in a step, averaged over training, and what follows for the batch size."""
