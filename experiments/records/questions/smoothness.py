"""Records of the question about the swing of the loss from update to update."""

from typing import Annotated

from msgspec import Meta

from ..fields import Finite, Interval, Positive, Share, Size, Unbounded
from ..record import Record
from ..studies import Analysis as Base
from ..studies import StudyRow


class SwingRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run whose losses are recorded.

    Attributes:
      losses: the loss of every update; None: not read yet.
    """

    losses: Annotated[list[Finite], Meta(min_length=2)] | None = None


class NoiseRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run whose gradient noise is measured.

    Attributes:
      noise: one entry per measurement: the update, its loss, and the estimates of |G|^2 and tr Sigma; None: not read
        yet.
    """

    noise: list[tuple[Finite, Finite, Finite, Finite]] | None = None


class SizeSwing(Record, frozen=True, kw_only=True):
    """The swing of the loss at one batch size.

    Attributes:
      batch_size: examples per update.
      swing: the standard deviation of the loss about its slow trend.
      loss: the mean loss of all updates.
      losses: the loss of every update.
    """

    batch_size: Size
    swing: Positive
    loss: Positive
    losses: Annotated[list[Finite], Meta(min_length=1)]


class NoiseWindow(Record, frozen=True, kw_only=True):
    """The gradient noise scale in one window of a run.

    Attributes:
      update: the median update of the window.
      loss: the mean loss in the window.
      scale: the gradient noise scale in examples; infinite where the window does not tell the gradient from noise.
      interval: the interval of `scale`, at `Analysis.confidence`.
    """

    update: Finite
    loss: Finite
    scale: Unbounded
    interval: Interval


class Analysis(Base, frozen=True, kw_only=True):
    """The contents of `smoothness.json`.

    Attributes:
      sizes: one entry per batch size, rising.
      power: the exponent of the batch size in the swing, by least squares of logarithms; None: fewer than two sizes.
      noise: one entry per window of the run whose noise is measured.
      noise_batch_size: the batch size of the run whose noise is measured; None: there is no such run.
      confidence: the confidence level of the intervals.
    """

    sizes: list[SizeSwing]
    power: Finite | None
    noise: list[NoiseWindow]
    noise_batch_size: Size | None
    confidence: Share


ROWS = {"swing": SwingRow, "noise": NoiseRow}
