"""Finds how large the batch of any training program may become: `python -m experiments.branch --problem=mine:problem`.

Trains the program, and from several points of the run copies of it with larger batches. Finished branches are kept; the
same command resumes a study that was stopped. `experiments.problems` has programs to try.
"""

import sys

from absl import flags

from . import _commands, _flags, _workdirs
from .problems import loading
from .studies import branching

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags; a program that only imports this module has none of them."""
    _flags.define(branching.Request)


def main() -> None:
    """Parses the flags, trains what is missing, and prints one answer per point of the run."""
    request = _flags.made(branching.Request)
    problem = loading.guarded("problem", request.problem, loading.load("problem", request.problem))
    # What cannot be is refused before a folder is made.
    branching.Study(request, problem)
    _workdirs.claim(request.folder, _workdirs.BRANCHES)
    with _workdirs.driving(request.folder):
        study = branching.Study(request, problem)
        result = study.run(_commands.shareable_command([*_commands.start("branch"), *sys.argv[1:]]))
    lines = [*map(branching.line, result.points), *branching.ramp_lines(result)]
    print("\n".join(["", *lines, f"results   {request.folder / branching.RESULT}"]))


def run() -> None:
    """Runs the program, as `python -m experiments.branch` and as the command `batchnorm-branch`."""
    _flags.run(define_flags, main)


if __name__ == "__main__":
    run()
