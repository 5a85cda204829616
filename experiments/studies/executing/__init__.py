"""Executors, which run the jobs of a study: on this machine, or on those of a cluster."""
