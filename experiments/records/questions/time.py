"""Records of the question about the time of an update and of an epoch."""

from typing import Annotated, Literal

from msgspec import Meta

from ..fields import Interval, NonNegative, Positive, Size
from ..record import Record
from ..studies import Analysis as Base
from ..studies import StudyRow

# One value per round.
Rounds = Annotated[list[Positive], Meta(min_length=1)]
# Kinds of batch sizes. Multiples of 8 are a kind because accelerators lay arrays out in multiples of 8.
Kind = Literal["power of two", "multiple of 8", "neither"]


class TimeRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A short run that is timed; its seed is the number of its round."""

    NEEDED = ("batch_size", "seed")
    TIMED = True


class SizeTime(Record, frozen=True, kw_only=True):
    """The times at one batch size.

    Attributes:
      batch_size: examples per update.
      kind: the kind of the size.
      devices: the number and the kind of the devices, such as "2 x cpu".
      computing: compute time per update in seconds, one value per round.
      in_all: total time per update in seconds, including input and logging that computing does not hide, one value per
        round; None: an earlier version wrote the file, without this field.
      epoch_computing: compute time for the number of examples of an epoch, in seconds; the median over the rounds.
      epoch_in_all: total time for the number of examples of an epoch, in seconds; the median over the rounds.
    """

    batch_size: Size
    kind: Kind
    devices: str
    computing: Rounds
    in_all: Rounds | None = None
    epoch_computing: Positive
    epoch_in_all: Positive


class TimeIntervals(Record, frozen=True, kw_only=True):
    """The intervals of a `TimeFit`: each field belongs to the number of the same name."""

    overhead: Interval
    throughput: Interval
    knee: Interval


class TimeFit(Record, frozen=True, kw_only=True):
    """The time of an update, overhead + batch size / throughput.

    Attributes:
      overhead: seconds per update.
      throughput: examples per second; infinite if the time does not grow with the batch.
      knee: the batch size at which half of the time is overhead; infinite if `throughput` is.
      intervals: the intervals of these three numbers.
    """

    overhead: NonNegative
    throughput: Annotated[float, Meta(gt=0)]
    knee: Annotated[float, Meta(ge=0)]
    intervals: TimeIntervals


class Neighbour(Record, frozen=True, kw_only=True):
    """A batch size compared with a nearby power of two.

    Attributes:
      batch_size: examples per update.
      kind: the kind of the size.
      power: the power of two.
      throughput: examples per second divided by those at `power`, one value per round.
    """

    batch_size: Size
    kind: Kind
    power: Size
    throughput: Rounds


class Analysis(Base, frozen=True, kw_only=True):
    """The contents of `time.json`.

    Attributes:
      train_size: the number of training examples, which is one epoch.
      devices: the devices that most sizes ran on; the fit and the neighbours use only these sizes.
      sizes: one entry per batch size, rising.
      fit: the fit to the time of an update; None: there are too few sizes.
      neighbours: one entry per size near a power of two.
    """

    train_size: Size
    devices: str = ""
    sizes: list[SizeTime]
    fit: TimeFit | None
    neighbours: list[Neighbour]


ROWS = {"time": TimeRow}
