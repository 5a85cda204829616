"""Records of a recommendation: what was measured, what follows from it, and the file that holds both."""

import math
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from experiments.records.fields import (
    Bounded,
    Count,
    Finite,
    NonNegative,
    OpenInterval,
    Options,
    Positive,
    Share,
    Size,
)
from experiments.records.record import FileRecord, Record

# The measurements that predicted updates rest on: "runs" to the target at two batch sizes or more; the gradient
# "noise", with runs at one batch size if there are any; or runs at one batch size and the "usual" curve of other
# models.
Source = Literal["runs", "noise", "usual"]


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
        msgspec.convert(self.options, _Shown)


class Estimate(Record, frozen=True, kw_only=True):
    """A batch size that was estimated.

    Attributes:
      value: the most likely value, in examples; None: it is not finite.
      interval: at 95%; None for an end without a bound.
    """

    value: Finite | None
    interval: OpenInterval


class Prediction(Record, frozen=True, kw_only=True):
    """The prediction for one batch size; intervals hold 19 of 20 runs.

    Attributes:
      batch_size: examples per update.
      step_seconds: seconds of computing per update.
      updates_per_epoch: updates in an epoch that leaves out the last, smaller batch.
      dropped: the share of the examples that such an epoch leaves out.
      memory: bytes of a step on one device; None: not known.
      updates: updates to the target; None: no run reached it.
      epochs: epochs to the target; None likewise.
      seconds: seconds of computing to the target; None likewise.
    """

    batch_size: Size
    step_seconds: Bounded
    updates_per_epoch: Count
    dropped: Share
    memory: Finite | None
    updates: Bounded | None
    epochs: Bounded | None
    seconds: Bounded | None


class Advice(Record, frozen=True, kw_only=True):
    """The setting that follows from the measurements.

    Attributes:
      batch_size: examples per update.
      per_device: examples of a micro-batch on each device.
      accumulation_steps: micro-batches per update.
      learning_rate: the constant learning rate.
      optimizer: the optimizer of all runs.
      warmup_epochs: epochs of warmup.
      span: examples that are normalised together; None: all of a micro-batch.
      source: the measurements that predicted updates rest on.
      predictions: at half, one and two times the batch size, as far as the data allow.
      candidates: of every batch size that was considered.
      critical_batch_size: the batch size at which updates and examples to the target are both twice their least.
      knee: the batch size at which half of an update's time is overhead.
      binds: the constraint that keeps a larger batch from being better, in a word.
      loosen: a remedy for it, as text.
      certainty: the probability that no other batch size is more than a tenth faster.
      options: options of `experiments.train`.
    """

    batch_size: Size
    per_device: Count
    accumulation_steps: Size
    learning_rate: Positive
    optimizer: str
    warmup_epochs: NonNegative = 0
    span: Size | None
    source: Source
    predictions: Annotated[list[Prediction], Meta(min_length=1)]
    candidates: Annotated[list[Prediction], Meta(min_length=1)]
    critical_batch_size: Estimate
    knee: Estimate
    binds: str
    loosen: str
    certainty: Share
    options: Options

    @property
    def chosen(self) -> Prediction:
        """The prediction for the batch size that is recommended."""
        for prediction in self.candidates:
            if prediction.batch_size == self.batch_size:
                return prediction
        raise LookupError(f"there is no candidate of the recommended batch size, {self.batch_size}")


class Recommendation(FileRecord, frozen=True, kw_only=True):
    """`recommendation.json`: measurements, and the setting that follows from them.

    Attributes:
      minutes: that measuring was given.
      seconds: that measuring took.
      evidence: the measurements.
      advice: what follows; None: the measurements do not decide it.
    """

    minutes: Finite
    seconds: Finite
    evidence: Evidence
    advice: Advice | None


def finite(value: float) -> float | None:
    """Returns a number, or None where it is not finite, which JSON has no way to write.

    Example:
      >>> finite(2.5), finite(float("inf"))
      (2.5, None)
    """
    return float(value) if math.isfinite(value) else None
