"""Benchmarks of the norm layer beside its peers: speed, exactness, collectives and memory."""
