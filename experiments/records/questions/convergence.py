"""Records of the question about convergence: the updates to a target, and the learning rate."""

from typing import Literal

from ..fields import AboveOne, Count, Finite, Interval, Positive, Share, Size, Unbounded
from ..record import Record
from ..studies import Analysis as Base
from ..studies import StudyRow


class ToTargetRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run that stops at the target."""

    NEEDED = ("batch_size", "seed", "learning_rate")
    TIMED = True
    TO_TARGET = True

    def __post_init__(self):
        super().__post_init__()
        # A figure would show a run without epochs at 0.
        if self.summary is not None and self.summary.epochs <= 0:
            raise ValueError("Expected the epochs of the run")


class BestRate(Record, frozen=True, kw_only=True):
    """The outcome of the search for a learning rate at one batch size.

    Attributes:
      batch_size: examples per update.
      rate: the best learning rate; None: no run ended with a finite loss.
      reached: whether the target was reached at that rate.
      on_edge: whether the best rate is the least or the greatest that was tried.
    """

    batch_size: Size
    rate: Positive | None
    reached: bool
    on_edge: bool


class StepsIntervals(Record, frozen=True, kw_only=True):
    """The intervals of a `StepsFit`: each field belongs to the number of the same name."""

    min_steps: Interval
    min_examples: Interval
    critical_batch_size: Interval


class StepsFit(Record, frozen=True, kw_only=True):
    """The updates to the target, min_steps + min_examples / batch size.

    Attributes:
      min_steps: the least updates, approached by large batches.
      min_examples: the least examples, approached by small batches.
      critical_batch_size: `min_examples` / `min_steps`; infinite if `min_steps` is 0.
      intervals: the intervals of these three numbers, at `Analysis.confidence`.
    """

    min_steps: Unbounded
    min_examples: Unbounded
    critical_batch_size: Unbounded
    intervals: StepsIntervals


class Analysis(Base, frozen=True, kw_only=True):
    """The contents of `convergence.json`.

    Attributes:
      target: the accuracy to reach, as a share of 1, or the loss.
      goal: the kind of the target.
      seeds: the seeds of the runs at the best rates.
      confidence: the confidence level of the intervals.
      tuned: one entry per batch size of the search, rising.
      factor: the factor between neighbouring rates of the search, which limits how well a best rate is known.
      fit: the fit to the updates to the target at the best rates; None: there is no fit.
      no_fit: the reason why there is no fit; None: there is one.
    """

    target: Finite
    goal: Literal["accuracy", "loss"] = "accuracy"
    seeds: list[Count]
    confidence: Share
    tuned: list[BestRate]
    factor: AboveOne
    fit: StepsFit | None
    no_fit: str | None


ROWS = {"fixed": ToTargetRow, "tuned": ToTargetRow}
