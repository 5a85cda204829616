"""Records of the question which optimizer bears which batch size."""

from typing import Literal

from ..fields import AboveOne, Count, Finite, Positive, Share, Size
from ..record import Record
from ..studies import Analysis as Base
from ..studies import StudyRow
from .convergence import StepsFit, ToTargetRow


class OptimizerRow(ToTargetRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run to the target with one optimizer."""

    NEEDED = ("batch_size", "seed", "optimizer", "learning_rate")


class FullBatchRow(ToTargetRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run to the target on the whole training set at once, whose rate a line search finds."""

    NEEDED = ("batch_size", "seed", "optimizer")


class EqualEpochsRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run over a fixed number of epochs with one optimizer."""

    NEEDED = ("batch_size", "seed", "optimizer", "learning_rate", "epochs")


class TunedOptimizer(Record, frozen=True, kw_only=True):
    """The outcome of the trials of one optimizer at one batch size.

    Attributes:
      optimizer: its name.
      batch_size: examples per update.
      rate: the best learning rate; None: no run ended with a finite loss.
      reached: whether the target was reached at that rate.
      on_edge: whether the best rate is the least or the greatest that was tried.
    """

    optimizer: str
    batch_size: Size
    rate: Positive | None
    reached: bool
    on_edge: bool


class OptimizerFit(Record, frozen=True, kw_only=True):
    """The fit of one optimizer's updates to the target against its batch sizes.

    Attributes:
      optimizer: its name.
      fit: None: there is none.
      no_fit: the reason why there is none; None: there is one.
    """

    optimizer: str
    fit: StepsFit | None
    no_fit: str | None


class Analysis(Base, frozen=True, kw_only=True):
    """The contents of `optimizers.json`.

    Attributes:
      target: the accuracy to reach, as a share of 1, or the loss.
      goal: the kind of the target.
      seeds: the seeds of the runs at the best rates.
      confidence: the confidence level of the intervals.
      trials: how many rates were tried of each optimizer at each batch size.
      factor: the factor between the best rate and its neighbours, which limits how well it is known.
      tuned: the outcomes of the trials, by optimizer and rising batch size.
      fits: one per optimizer.
    """

    target: Finite
    goal: Literal["accuracy", "loss"] = "accuracy"
    seeds: list[Count]
    confidence: Share
    trials: Size
    factor: AboveOne
    tuned: list[TunedOptimizer]
    fits: list[OptimizerFit]


ROWS = {"optimizer": OptimizerRow, "full": FullBatchRow, "equal": EqualEpochsRow}
