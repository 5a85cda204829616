"""Records of a recommendation: its predictions, its advice, and the file that holds these and the measurements."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .evidence import Evidence
from .fields import Bounded, Count, Finite, NonNegative, OpenInterval, Options, Positive, Share, Size
from .record import FileRecord, Record

# The basis of the predicted updates: "runs" to the target at two or more batch sizes; the gradient "noise", with runs
# at one batch size if any were made; or runs at one batch size and the "usual" curve, known from other models.
Source = Literal["runs", "noise", "usual"]


class Estimate(Record, frozen=True, kw_only=True):
    """A batch size that was estimated.

    Attributes:
      value: the most likely value, in examples; None: the value is not finite.
      interval: the 95% interval; None for an end without a bound.
    """

    value: Finite | None
    interval: OpenInterval


class Prediction(Record, frozen=True, kw_only=True):
    """The prediction for one batch size; each interval should contain 19 of 20 runs.

    Attributes:
      batch_size: examples per update.
      step_seconds: compute time per update, in seconds.
      updates_per_epoch: updates in an epoch, which leaves out the last batch if it is smaller.
      dropped: the share of the examples that an epoch leaves out.
      memory: bytes of a step on one device; None: not known.
      updates: updates to the target; None: no run reached the target.
      epochs: epochs to the target; None: no run reached the target.
      seconds: compute time to the target, in seconds; None: no run reached the target.
    """

    batch_size: Size
    step_seconds: Bounded
    updates_per_epoch: Count
    dropped: Share
    memory: Finite | None
    updates: Bounded | None
    epochs: Bounded | None
    seconds: Bounded | None


class Alternative(Record, frozen=True, kw_only=True):
    """A batch size that may be the fastest.

    Attributes:
      batch_size: examples per update.
      probability: the probability that it is, as far as the measurements tell.
    """

    batch_size: Size
    probability: Share


class Supposed(Record, frozen=True, kw_only=True):
    """The answer that would follow from another critical batch size.

    Attributes:
      critical_batch_size: an end of the interval of the critical batch size, in examples.
      batch_size: the batch size that would then be the fastest.
    """

    critical_batch_size: Positive
    batch_size: Size


class Advice(Record, frozen=True, kw_only=True):
    """The setting that follows from the measurements.

    Attributes:
      batch_size: examples per update.
      per_device: examples per micro-batch and device.
      accumulation_steps: micro-batches per update.
      learning_rate: the learning rate, constant or at its peak.
      optimizer: the optimizer of all runs; None: that of the problem.
      warmup_epochs: epochs of warmup.
      span: examples that are normalised together; None: all examples of a micro-batch.
      source: the basis of the predicted updates.
      predictions: the predictions at half, one and two times the batch size, as far as the data allow.
      candidates: one prediction per batch size that was considered.
      critical_batch_size: the batch size at which updates and examples to the target are both twice their least.
      knee: the batch size at which half of an update's time is overhead.
      binds: the constraint that keeps a larger batch from being better, in one word.
      loosen: a remedy for that constraint, as text.
      certainty: the probability that no other batch size is more than a tenth faster.
      options: the options of `experiments.train` for this setting.
      alternatives: the batch sizes that may be the fastest, the most probable first. Earlier
        versions did not write these and the next.
      supposed: the answers at the ends of the interval of the critical batch size, as far as they are bounded.
    """

    batch_size: Size
    per_device: Count
    accumulation_steps: Size
    learning_rate: Positive
    optimizer: str | None
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
    alternatives: list[Alternative] = msgspec.field(default_factory=list)
    supposed: list[Supposed] = msgspec.field(default_factory=list)

    @property
    def chosen(self) -> Prediction:
        """The prediction for the batch size that is recommended."""
        for prediction in self.candidates:
            if prediction.batch_size == self.batch_size:
                return prediction
        raise LookupError(f"there is no candidate of the recommended batch size, {self.batch_size}")


class Recommendation(FileRecord, frozen=True, kw_only=True):
    """The contents of `recommendation.json`: measurements, and the setting that follows from them.

    Attributes:
      minutes: the time limit for measuring.
      seconds: the time that measuring took.
      evidence: the measurements.
      advice: the setting that follows from the measurements; None: the measurements do not decide it.
    """

    minutes: Finite
    seconds: Finite
    evidence: Evidence
    advice: Advice | None
