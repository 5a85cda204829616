"""Compares the statistics to normalise by: `python -m experiments.norm_study`.

The norms are local, synchronised, spans, renormalized, group and frozen, over per-device batch sizes. Each result is
stored as soon as its run ends; the same command resumes a study that was stopped.
"""

import shlex

from absl import flags

from . import _commands, _flags, _workdirs
from .studies import norm, status

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags; a program that only imports this module has none of them."""
    _flags.define(norm.Request)


def main() -> int:
    """Parses the flags, makes the runs that are not done, writes the report, and returns the exit status."""
    from .reporting import write_norm_study_page

    request = _flags.made(norm.Request)
    folder = request.folder
    _workdirs.check(folder, _workdirs.NORM_STUDY)
    if request.status:
        print("\n".join(status.lines(folder)))
        return 0
    planned = norm.plan(request)
    if request.dry_run:
        for command in norm.waiting_commands(planned, folder):
            print(shlex.join(command))
        return 0
    _workdirs.claim(folder, _workdirs.NORM_STUDY)
    failed = norm.run(planned, folder, request.make())
    print(f"report      {write_norm_study_page(folder)}")
    return _commands.status_of_study(failed)


def run() -> None:
    """Runs the program, as `python -m experiments.norm_study` and as the command `batchnorm-norm-study`."""
    _flags.run(define_flags, main)


if __name__ == "__main__":
    run()
