"""Records of the measurements that a recommendation makes."""

from typing import Literal, NamedTuple

from .fields import Count, Finite, OpenInterval, Options, Positive, Size
from .record import Record, check_options


class TimedUpdate(NamedTuple):
    """The time of an update, measured in one run; a list of two numbers in the file.

    Attributes:
      batch_size: examples per update.
      seconds: compute time per update.
    """

    batch_size: Size
    seconds: Positive


class RaceEntry(NamedTuple):
    """The outcome of one short run of the race between settings; a list of three numbers in the file.

    Attributes:
      batch_size: examples per update.
      rate: the learning rate.
      loss: the mean loss over the last evaluations of the run.
    """

    batch_size: Size
    rate: Positive
    loss: Finite


class TriedBatch(Record, frozen=True, kw_only=True):
    """A trial run with a batch that nearly fills the memory.

    Attributes:
      batch_size: examples per update.
      error: the reason why the run failed; None: the run succeeded.
    """

    batch_size: Size
    error: str | None


class Memory(Record, frozen=True, kw_only=True):
    """The device memory of a training step, fixed + per_example B bytes, and the largest batch that fits.

    Attributes:
      fixed: bytes of parameters, optimizer state and resident data.
      per_example: bytes per example of a batch.
      error: the largest relative deviation of a compiled program's memory from this line.
      limit: the memory of the device in bytes; None: not known.
      largest: examples of the largest batch that fits; None: not known.
      tried: the trial run near the limit; None: there was no such run.
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
      scale: the median of the measurements, in examples; None: the median is not finite.
      interval: the 95% interval of the median; None for an end that the measurements do not bound.
      measurements: the number of measurements.
    """

    scale: Finite | None
    interval: OpenInterval
    measurements: Count


class MeasuredRun(Record, frozen=True, kw_only=True):
    """A run to the target.

    Attributes:
      key: the key of the run's row.
      batch_size: examples per update.
      rate: the learning rate, constant or at its peak.
      seed: the seed of the run.
      updates: the number of updates after which the target was reached, without the noise of single evaluations; if it
        was not, the number of updates made; 0 if the run diverged.
      between: the updates before the evaluations next to that number; None: the target was not reached, or an earlier
        version wrote the row.
      reached: whether the run reached the target.
      diverged: whether the run ended with a loss that is not finite.
      step_seconds: compute time per update, in seconds; None: the run diverged.
      evaluate_every: updates between the first evaluations; 0: an earlier version wrote the row, without this field.
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
    between: tuple[Count, Count] | None = None


class _Shown(Record, frozen=True, kw_only=True):
    """The types of the options that a report shows."""

    dataset: str = ""
    problem: str | None = None
    model: str = ""
    norm: str | None = None


class Evidence(Record, frozen=True, kw_only=True):
    """The measurements that a recommendation rests on.

    Attributes:
      options: the options of `TrainConfig` that all runs share.
      examples: the number of training examples, without those held out.
      held_out: the number of training examples that are held out to measure the target; 0: the target is measured on
        the test split.
      devices: the number of devices that share a batch.
      kind: the kind of the devices, such as "cpu".
      unit: the smallest batch size; every batch size is this number times a power of two.
      target: the accuracy or the loss to reach; None: none was given.
      goal: the kind of the target, "accuracy" or "loss".
      optimizer: the optimizer of all runs; None: that of the problem.
      rule: how the rate grows with the batch well below the critical batch size, "linear" or "sqrt".
      step_time: one entry per run that was timed.
      memory: the memory of a training step; None: not known.
      race: one entry per short run that did not diverge.
      noise: the gradient noise scale; None: not measured.
      runs: the runs to the target, in the order in which they were made.
      not_measured: one text per missing measurement, with the reason.
      minutes_needed: the least budget with which a measurement that time did not allow would have been made, for the
        longest of them; None: time allowed all.
    """

    options: Options
    examples: Count
    held_out: Count
    devices: Size
    kind: str
    unit: Size = 1
    target: Finite | None
    goal: Literal["accuracy", "loss"] = "accuracy"
    optimizer: str | None = "nesterov"
    rule: Literal["linear", "sqrt"] = "linear"
    step_time: list[TimedUpdate]
    memory: Memory | None
    race: list[RaceEntry]
    noise: Noise | None
    runs: list[MeasuredRun]
    not_measured: list[str]
    minutes_needed: Finite | None = None

    def __post_init__(self):
        check_options(self.options, _Shown)
        if not {"dataset", "problem"} & self.options.keys():
            raise ValueError("Expected one of the options 'dataset' and 'problem'")
