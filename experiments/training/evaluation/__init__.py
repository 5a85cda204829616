"""Evaluation of a training state: on its own data or another domain, with running or recomputed statistics."""
