"""Runs to a target at every batch size and rate, to compare a search or a recommendation with.

Their sizes, rates and target are those of the question `convergence`.
"""

from ..convergence import Setting, grid_jobs
from ..jobs import Job
from ..question import Asked, Question


def planned(asked: Asked) -> list[Job]:
    """Returns a run at every batch size and rate, with each seed."""
    return grid_jobs(asked.data, asked.study.of(Setting))


QUESTION = Question(
    order=80,
    help="runs to a target at every batch size and rate",
    setting=Setting,
    planned=planned,
    fewest_sizes=1,
    on_request=True,
    of_problems=True,
)
