"""Records of the train suite: `train.json`."""

from experiments.records.benchmarks.result import PositiveSpread, ResultFile, Spread, Spreads
from experiments.records.fields import Size
from experiments.records.record import Record


class Start(Record, frozen=True, kw_only=True):
    """Seconds from the command to the end of its first step.

    Attributes:
      cold: with nothing in the project's cache.
      warm: the same command after that.
    """

    cold: PositiveSpread
    warm: PositiveSpread


class OverheadRow(Record, frozen=True, kw_only=True):
    """The share of training outside the compiled step.

    Attributes:
      batch_size: global batch size.
      overhead: the share of the training time.
    """

    batch_size: Size
    overhead: Spread


class StepRow(Record, frozen=True, kw_only=True):
    """The training step at one batch size, beside its peers.

    Attributes:
      batch_size: global batch size.
      updates_per_epoch: updates of one pass over the training set.
      devices: the number of devices.
      platform: such as "cpu".
      seconds_per_epoch: by the name of the trainer.
      ratio: of ours to each peer's, taken round by round; None: the peer is not installed.
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
