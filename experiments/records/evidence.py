"""Records of what a recommendation measures."""

from typing import NamedTuple

import msgspec

from experiments.records.fields import Count, Finite, OpenInterval, Options, Positive, Size
from experiments.records.record import Record


class TimedUpdate(NamedTuple):
    """The time of an update, measured by one run; a list of two numbers in the file.

    Attributes:
      batch_size: examples per update.
      seconds: of computing, per update.
    """

    batch_size: Size
    seconds: Positive


class RaceEntry(NamedTuple):
    """The outcome of one of several short runs of equal time; a list of three numbers in the file.

    Attributes:
      batch_size: examples per update.
      rate: the learning rate.
      loss: mean loss over the last evaluations of the run.
    """

    batch_size: Size
    rate: Positive
    loss: Finite


class TriedBatch(Record, frozen=True, kw_only=True):
    """A run near the limit of the memory.

    Attributes:
      batch_size: examples per update.
      error: why it failed; None: it ran.
    """

    batch_size: Size
    error: str | None


class Memory(Record, frozen=True, kw_only=True):
    """Device memory of a training step, fixed + per_example B bytes, and the largest batch that fits.

    Attributes:
      fixed: bytes of parameters, optimizer state and resident data.
      per_example: bytes per example of a batch.
      error: the largest relative deviation of a compiled program from the line.
      limit: bytes that the device has; None: not known.
      largest: examples of the largest batch that fits; None: not known.
      tried: the run near the limit; None: none was made.
    """

    fixed: Finite
    per_example: Finite
    error: Finite = 0.0
    limit: Finite | None
    largest: Count | None
    tried: TriedBatch | None


class Noise(Record, frozen=True, kw_only=True):
    """The gradient noise scale along a run.

    Attributes:
      scale: the median of the measurements, in examples; None: it is not finite.
      interval: of the median, at 95%; None for an end that the measurements do not bound.
      measurements: the number of measurements.
    """

    scale: Finite | None
    interval: OpenInterval
    measurements: Count


class MeasuredRun(Record, frozen=True, kw_only=True):
    """A run to the target.

    Attributes:
      key: the key of its row.
      batch_size: examples per update.
      rate: the learning rate, which is constant.
      seed: the seed of the run.
      updates: updates made; 0 if the run diverged.
      reached: whether the target was reached.
      diverged: whether the run ended with a loss that is not finite.
      step_seconds: seconds of computing per update; None: the run diverged.
      evaluate_every: updates between two evaluations; 0: an earlier version did not write it.
    """

    key: str = ""
    batch_size: Size
    rate: Positive
    seed: Count
    updates: Count
    reached: bool
    diverged: bool
    step_seconds: Finite | None
    evaluate_every: Count = 0


class _Shown(Record, frozen=True, kw_only=True):
    """Types of the options that a report shows."""

    dataset: str
    model: str = ""
    norm: str | None = None


class Evidence(Record, frozen=True, kw_only=True):
    """The measurements that a recommendation rests on.

    Attributes:
      options: options of `TrainConfig` that all runs share.
      examples: training examples, without those held out.
      held_out: training examples that the target is measured on; 0: it is measured on the test split.
      devices: devices that share a batch.
      kind: the kind of the devices, such as "cpu".
      unit: batch sizes are this number times a power of two.
      target: the accuracy to reach; None: none was given.
      optimizer: the optimizer of all runs.
      step_time: one entry per run that was timed.
      memory: None: not known.
      race: one entry per short run that did not diverge.
      noise: None: not measured.
      runs: the runs to the target, in the order in which they were made.
      not_measured: what is missing, and why: one text each.
    """

    options: Options
    examples: Count
    held_out: Count
    devices: Size
    kind: str
    unit: Size = 1
    target: Finite | None
    optimizer: str = "nesterov"
    step_time: list[TimedUpdate]
    memory: Memory | None
    race: list[RaceEntry]
    noise: Noise | None
    runs: list[MeasuredRun]
    not_measured: list[str]

    def __post_init__(self):
        try:
            msgspec.convert(self.options, _Shown)
        except msgspec.ValidationError as error:
            # The path of the error begins at the options.
            raise ValueError(str(error).replace("$", "options")) from error
