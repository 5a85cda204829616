"""Rebuilds a run's `report.html` from its result files: `python -m experiments.report --workdir=runs/NAME`."""

from absl import flags

from experiments import _flags
from experiments.reporting import write_page

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags; a program that only imports this module has none of them."""
    flags.DEFINE_string("workdir", None, "The folder of a run.", required=True)


def main() -> None:
    """Parses the flag, writes the page."""
    print(f"written to {write_page(FLAGS.workdir)}")


if __name__ == "__main__":
    define_flags()
    _flags.run(main)
