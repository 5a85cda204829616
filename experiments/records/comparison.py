"""Records of the recommend suite: the rows of its runs, and one row of its table per problem."""

import math
from typing import Literal

from .fields import Bounded, Count, Finite, NonNegative, Positive, Size
from .record import Record
from .studies import StudyRow


class ComparedRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run to the target of the problem, for the grid or for a setting that is compared."""

    NEEDED = ("batch_size", "learning_rate", "seed")
    TIMED = True
    TO_TARGET = True

    def __post_init__(self):
        super().__post_init__()
        if self.summary is not None and "in all" not in self.summary.seconds:
            raise ValueError("Expected the seconds in all")


class GridCost(Record, frozen=True, kw_only=True):
    """The size and the cost of a grid.

    Attributes:
      cells: the number of settings.
      runs: the number of runs, over all settings and seeds.
      seconds: the wall-clock time of all runs, including compilation and evaluation.
    """

    cells: Count
    runs: Count
    seconds: NonNegative


class RecommendationCost(Record, frozen=True, kw_only=True):
    """The cost of a recommendation, and the measurements that it lacks.

    Attributes:
      seconds: the wall-clock time of measuring.
      not_measured: one text per missing measurement, with the reason.
    """

    seconds: Finite
    not_measured: list[str]


class ComparedSetting(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A setting, run with seeds that neither the grid nor the recommendation has used.

    Attributes:
      batch_size: examples per update.
      rate: the constant learning rate.
      updates: updates to the target, one entry per seed; None: the run did not reach it.
      step_seconds: the median compute time per update, in seconds; None: all runs diverged.
      seconds: the geometric mean of the compute time to the target, in seconds, or the median if some runs did not
        reach it; None: half of the runs did not.
      predicted: the prediction of `seconds` if the setting is the recommended one; None: there is no prediction.
    """

    batch_size: Size
    rate: Positive
    updates: list[Count | None]
    step_seconds: Finite | None
    seconds: Finite | None
    predicted: Bounded | None = None


class CheckedPrediction(Record, frozen=True, kw_only=True):
    """The updates predicted at a batch size that the recommendation has not tried, and those of runs with fresh seeds.

    Attributes:
      batch_size: examples per update.
      predicted: the predicted updates to the target, and the ends of the interval.
      measured: the geometric mean of the updates to the target, at the rate that is best in the grid, or the median if
        some runs did not reach it, and the ends of its interval; an end of None: there is no bound; None: half of them
        or more did not.
      off: the relative deviation of the prediction; None: nothing was measured.
    """

    batch_size: Size
    predicted: Bounded
    measured: Bounded | None = None
    off: Finite | None = None

    @property
    def holds(self) -> bool:
        """Whether the interval holds what was measured."""
        _, low, high = self.predicted
        return self.measured is not None and (low or 0) <= self.measured[0] <= (math.inf if high is None else high)


class Comparison(Record, frozen=True, kw_only=True):
    """A recommendation compared with the grid of its problem.

    Attributes:
      problem: the name of the problem.
      target: the accuracy or the loss to reach.
      goal: the kind of the target.
      grid: the size and the cost of the grid.
      recommendation: the cost of the recommendation.
      best: the best setting of the grid.
      recommended: the recommended setting; None: there is none.
      ratio: the time to the target at the recommended setting divided by the time at the best one, and the ends of the
        interval, of which None is no bound; None: not measured.
      predictions: one entry per batch size that can be checked.
    """

    problem: str
    target: Finite
    goal: Literal["accuracy", "loss"] = "accuracy"
    grid: GridCost
    recommendation: RecommendationCost
    best: ComparedSetting
    recommended: ComparedSetting | None
    ratio: Bounded | None
    predictions: list[CheckedPrediction]
