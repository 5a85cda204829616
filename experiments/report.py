"""Rebuilds the report of a run, a study or a recommendation: `python -m experiments.report runs/NAME`.

It reads only the result files in the folder.
"""

from pathlib import Path

from absl import flags

from . import _commands, _flags, _limits, _workdirs
from ._errors import UsageError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags, for this program only: other programs import this module too."""
    _flags.text(
        "workdir",
        None,
        "The folder of a run, a study or a recommendation. `--workdir=` may be left out.",
        form=_limits.folder_there,
    )


def main() -> None:
    """Writes the page of the folder that --workdir gives."""
    if FLAGS.workdir is None:
        raise UsageError(
            f"give the folder of a run, a study or a recommendation: {_commands.program('report')} runs/NAME"
        )
    print(f"written to {_writer(FLAGS.workdir)(FLAGS.workdir)}")


def _writer(workdir: str):
    """Returns the function that writes the page for the results in a folder."""
    from .reporting import write_norm_study_page, write_page, write_recommendation_page, write_study_page

    writers = {
        _workdirs.RECOMMENDATION: write_recommendation_page,
        _workdirs.STUDY: write_study_page,
        _workdirs.NORM_STUDY: write_norm_study_page,
    }
    program = _workdirs.program_of(Path(workdir)) or ""
    if program == _workdirs.BRANCHES:
        raise UsageError(
            f"{workdir} holds {_workdirs.RESULTS_OF[program]}, of which there is no page; the same command prints "
            "their answers again"
        )
    return writers.get(program, write_page)


def run() -> None:
    """Runs the program, as `python -m experiments.report` and as the command `batchnorm-report`."""
    _flags.run(define_flags, main, positional="workdir")


if __name__ == "__main__":
    run()
