"""Benchmarks beside other libraries: variants take turns in one process, and ratios are reported with their spread."""
