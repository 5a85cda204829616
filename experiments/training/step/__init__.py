"""Compiled training updates, the batches that they read, and the code that builds both for a run."""
