"""Records of the question how long an update and an epoch take."""

from typing import Annotated, Literal

from msgspec import Meta

from experiments.records.fields import Interval, NonNegative, Positive, Size
from experiments.records.record import Record
from experiments.records.studies import Analysis as Base
from experiments.records.studies import StudyRow

# One value per round.
Rounds = Annotated[list[Positive], Meta(min_length=1)]
# Kinds of batch sizes; memory is laid out in multiples of 8.
Kind = Literal["power of two", "multiple of 8", "neither"]


class TimeRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A short run that is timed; its seed is the number of its round."""

    NEEDED = ("batch_size", "seed")
    TIMED = True


class SizeTime(Record, frozen=True, kw_only=True):
    """Times at one batch size.

    Attributes:
      batch_size: examples per update.
      kind: whether the size is a power of two.
      devices: such as "2 x cpu".
      computing: seconds of computing per update, one value per round.
      in_all: seconds per update with the input and logging that computing does not hide, one value per round; None: an
        earlier version did not write them.
      epoch_computing: seconds of computing of as many examples as an epoch has; the median of the rounds.
      epoch_in_all: seconds of as many examples in all; the median of the rounds.
    """

    batch_size: Size
    kind: Kind
    devices: str
    computing: Rounds
    in_all: Rounds | None = None
    epoch_computing: Positive
    epoch_in_all: Positive


class TimeIntervals(Record, frozen=True, kw_only=True):
    """Intervals of the numbers of a `TimeFit`, by their names."""

    overhead: Interval
    throughput: Interval
    knee: Interval


class TimeFit(Record, frozen=True, kw_only=True):
    """The time of an update, overhead + batch size / throughput.

    Attributes:
      overhead: seconds per update.
      throughput: examples per second; infinite if the time does not grow with the batch.
      knee: the batch size at which half of the time is overhead; infinite likewise.
      intervals: of each.
    """

    overhead: NonNegative
    throughput: Annotated[float, Meta(gt=0)]
    knee: Annotated[float, Meta(ge=0)]
    intervals: TimeIntervals


class Neighbour(Record, frozen=True, kw_only=True):
    """A batch size beside the power of two nearby.

    Attributes:
      batch_size: examples per update.
      kind: of the size.
      power: the power of two.
      throughput: examples per second over those of the power, one value per round.
    """

    batch_size: Size
    kind: Kind
    power: Size
    throughput: Rounds


class Analysis(Base, frozen=True, kw_only=True):
    """`time.json`.

    Attributes:
      train_size: the number of training examples, which make an epoch.
      devices: the devices of most sizes; the fit and the neighbours are of the sizes that ran on these.
      sizes: one entry per batch size, rising.
      fit: of the time of an update; None: there are too few sizes.
      neighbours: one entry per size near a power of two.
    """

    train_size: Size
    devices: str = ""
    sizes: list[SizeTime]
    fit: TimeFit | None
    neighbours: list[Neighbour]


ROWS = {"time": TimeRow}
