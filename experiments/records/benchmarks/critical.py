"""Records of the critical suite: `critical.json`."""

from typing import Literal

from ..fields import Count, Finite, OpenInterval, Positive, Size
from ..record import Record
from .result import ResultFile

Method = Literal["noise", "branches", "fit"]


class CriticalPoint(Record, frozen=True, kw_only=True):
    """A critical batch size at a point of a run.

    Attributes:
      examples: the examples that the run had seen; None: the value is of the whole run.
      value: the critical batch size, in examples; None: it has no bound.
      interval: its 95% interval.
    """

    examples: Count | None
    value: Finite | None
    interval: OpenInterval


class PredictedUpdates(Record, frozen=True, kw_only=True):
    """The updates to a target at a batch size.

    Attributes:
      batch_size: in examples.
      predicted: from the critical batch size.
      measured: in the grid, at the best rate.
    """

    batch_size: Size
    predicted: Positive
    measured: Positive


class CriticalRow(Record, frozen=True, kw_only=True):
    """One way to find the critical batch size of a problem.

    Attributes:
      problem: the name of the problem.
      method: the gradient noise scale, branches of a run, or the fit of runs to a target.
      batch_size: the size from whose updates the others are predicted, but for the fit.
      points: where the critical batch size was found.
      predictions: the updates to the target at other batch sizes.
      factor: by what factor a prediction is off, in the geometric mean; None: there is none.
      runs: the examples that the method needed, as a multiple of those of one run to the target.
      why_not: the reason why there is no answer; None: there is one.
    """

    problem: str
    method: Method
    batch_size: Size
    points: list[CriticalPoint]
    predictions: list[PredictedUpdates]
    factor: Finite | None
    runs: Finite
    why_not: str | None = None


CriticalFile = ResultFile[list[CriticalRow]]
