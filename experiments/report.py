"""Rebuilds the report of a run, a study or a recommendation: `python -m experiments.report runs/NAME`.

From the result files in the folder alone.
"""

from pathlib import Path

from absl import flags

from experiments import _flags
from experiments._errors import UsageError
from experiments.reporting import write_norm_study_page, write_page, write_recommendation_page, write_study_page
from experiments.reporting.curves import read_study

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags; a program that only imports this module has none of them."""
    flags.DEFINE_string("workdir", None, "The folder of a run, a study or a recommendation, also without --workdir=.")


def main() -> None:
    """Parses the flag, writes the page."""
    if FLAGS.workdir is None:
        raise UsageError("name the folder of a run, a study or a recommendation: experiments.report runs/NAME")
    print(f"written to {_writer(FLAGS.workdir)(FLAGS.workdir)}")


def _writer(workdir: str):
    """What writes the page of a folder: that of a run, or of the study whose keys its rows have."""
    if (Path(workdir) / "recommendation.json").exists():
        return write_recommendation_page
    if not (Path(workdir) / "results.jsonl").exists():
        return write_page
    is_norm_study = any(key.startswith(("grid-", "rate-")) for key in read_study(workdir))
    return write_norm_study_page if is_norm_study else write_study_page


if __name__ == "__main__":
    define_flags()
    _flags.run(main, positional="workdir")
