"""Measuring speed beside peers: everything in one process, in turn, reported as ratios with their spread."""
