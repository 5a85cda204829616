"""Records of the train suite: `train.json`."""

from ..fields import Size
from ..record import Record
from .result import PositiveSpread, ResultFile, Spread, Spreads


class Start(Record, frozen=True, kw_only=True):
    """Seconds from the command to the end of its first step.

    Attributes:
      cold: the time with an empty compilation cache.
      warm: the time of the same command with the filled cache.
    """

    cold: PositiveSpread
    warm: PositiveSpread


class OverheadRow(Record, frozen=True, kw_only=True):
    """The share of training outside the compiled step.

    Attributes:
      batch_size: the global batch size.
      overhead: the time outside the step as a share of the training time.
    """

    batch_size: Size
    overhead: Spread


class StepRow(Record, frozen=True, kw_only=True):
    """The training step at one batch size, compared with other trainers.

    Attributes:
      batch_size: the global batch size.
      updates_per_epoch: the number of updates in one pass over the training set.
      devices: the number of devices.
      platform: the platform, such as "cpu".
      seconds_per_epoch: the time per epoch, by the name of the trainer.
      ratio: this trainer's time divided by each peer's, within each round; None: the peer is not installed.
    """

    batch_size: Size
    updates_per_epoch: Size
    devices: Size
    platform: str
    seconds_per_epoch: Spreads
    ratio: dict[str, PositiveSpread | None]


class TrainRows(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The parts of the train suite; None: not asked for.

    Attributes:
      start: the time to the first step.
      overhead: one entry per batch size.
      steps: one entry per batch size.
    """

    start: Start | None = None
    overhead: list[OverheadRow] | None = None
    steps: list[StepRow] | None = None


TrainFile = ResultFile[TrainRows]
