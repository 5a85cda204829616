"""Benchmarks speed, memory and exactness: `python -m experiments.benchmark --suite=norm`, `train` or `fold`.

`--suite=norm --topology=v5e:2x2` compiles the norm for accelerators that this machine lacks. `--suite=recommend`
compares recommendations with exhaustive grids.
"""

import sys

from absl import flags

from . import _flags
from .benchmarking import suites

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags; a program that only imports this module has none of them."""
    _flags.define(suites.Request)


def main() -> None:
    """Parses the flags, measures a suite, writes SUITE.json, and SUITE.svg for a suite that has a picture."""
    suites.run(_flags.made(suites.Request), sys.argv[1:])


def run() -> None:
    """Runs the program, as `python -m experiments.benchmark` and as the command `batchnorm-benchmark`."""
    _flags.run(define_flags, main)


if __name__ == "__main__":
    run()
