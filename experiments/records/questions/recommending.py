"""Records of the rows that only a recommendation has; `records.recommendation` declares the file of its result."""

from typing import NamedTuple

from ..fields import Count, Finite, Share
from ..studies import StudyRow
from .smoothness import NoiseRow


class Evaluation(NamedTuple):
    """An evaluation during a run, on the split that is evaluated first; a list of three numbers in the file.

    Attributes:
      updates: updates so far.
      accuracy: the accuracy, as a share of 1; None: the goal is a loss.
      loss: the loss, as in `records.runs.Result`.
    """

    updates: Count
    accuracy: Share | None
    loss: Finite


class ShortRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """One of several short runs of equal time.

    Attributes:
      evaluations: the evaluations during the run; None: not read yet.
    """

    NEEDED = ("batch_size", "learning_rate")

    evaluations: list[Evaluation] | None = None


class TargetRow(NoiseRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run to the target, along which the gradient noise may be measured.

    Attributes:
      evaluations: the evaluations during the run; None: not read yet, or written by an earlier version.
    """

    NEEDED = ("batch_size", "learning_rate", "seed")
    TIMED = True
    TO_TARGET = True

    evaluations: list[Evaluation] | None = None


ROWS = {"short": ShortRow, "target": TargetRow}
