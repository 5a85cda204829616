"""The cost of the norm on accelerators that this machine lacks, read from optimised programs."""
