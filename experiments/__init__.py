"""Training, measuring and choosing batch sizes. The entry points are `python -m experiments.NAME`."""
