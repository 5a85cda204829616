"""Rebuilds a run's `report.html` from its result files: `python -m experiments.report --workdir=runs/NAME`."""

from absl import flags

from experiments import _flags
from experiments.reporting import write_page

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a run.", required=True)


def main() -> None:
    """Parses the flag, writes the page."""
    print(f"written to {write_page(_WORKDIR.value)}")


if __name__ == "__main__":
    _flags.run(main)
