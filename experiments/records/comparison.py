"""Records of the recommend suite: the rows of its runs, and a row of its table per problem."""

from experiments.records.fields import Bounded, Count, Finite, NonNegative, Positive, Size
from experiments.records.record import Record
from experiments.records.studies import StudyRow


class ComparedRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run of a grid, or of a setting that is compared, to the target of the problem."""

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
      cells: settings.
      runs: runs of all seeds.
      seconds: of all runs, with compilation and evaluation.
    """

    cells: Count
    runs: Count
    seconds: NonNegative


class RecommendationCost(Record, frozen=True, kw_only=True):
    """The cost of a recommendation, and what it lacks.

    Attributes:
      seconds: that measuring took.
      not_measured: what is missing, and why: one text each.
    """

    seconds: Finite
    not_measured: list[str]


class ComparedSetting(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A setting, run with seeds that neither the grid nor the recommendation has seen.

    Attributes:
      batch_size: examples per update.
      rate: the constant learning rate.
      updates: updates to the target, one per seed; None: not reached.
      step_seconds: the median seconds of computing per update; None: all runs diverged.
      seconds: the geometric mean of the seconds of computing to the target; None: some seed did not reach it.
      predicted: the prediction of these seconds, where the setting is recommended; None: there is none.
    """

    batch_size: Size
    rate: Positive
    updates: list[Count | None]
    step_seconds: Finite | None
    seconds: Finite | None
    predicted: Bounded | None = None


class CheckedPrediction(Record, frozen=True, kw_only=True):
    """Predicted updates at a batch size that the recommendation has not tried, beside those of the grid.

    Attributes:
      batch_size: examples per update.
      predicted: updates to the target.
      measured: updates to the target in the grid, at the best rate.
      off: the relative deviation of the prediction.
    """

    batch_size: Size
    predicted: Bounded
    measured: Finite
    off: Finite


class Comparison(Record, frozen=True, kw_only=True):
    """A recommendation beside the grid of its problem.

    Attributes:
      problem: its name.
      target: the accuracy to reach.
      grid: size and cost of the grid.
      recommendation: cost of the recommendation.
      best: the best setting of the grid.
      recommended: the recommended setting; None: there is none.
      ratio: time at the recommended setting over that at the best, with its interval; None: not measured.
      predictions: one entry per batch size that can be checked.
    """

    problem: str
    target: Finite
    grid: GridCost
    recommendation: RecommendationCost
    best: ComparedSetting
    recommended: ComparedSetting | None
    ratio: tuple[Finite, Finite, Finite] | None
    predictions: list[CheckedPrediction]
