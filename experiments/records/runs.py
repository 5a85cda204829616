"""Records of one training run: its summary, its stored configuration and the rows of its metrics."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .fields import (
    Count,
    Finite,
    Moment,
    NonNegative,
    Options,
    Positive,
    Seconds,
    Share,
    Size,
)
from .record import FileRecord, Record

# Options of a run that mean nothing for a problem, which brings its data, its model and its optimizer.
OF_DATA_AND_MODEL = (
    "dataset",
    "data_dir",
    "image_size",
    "input",
    "validation_examples",
    "augmentation",
    "drop_remainder",
    "model",
    "zero_last_scale",
    "dtype",
    "norm",
    "span",
    "norm_momentum",
    "accumulation_steps",
    "backwards_per_forward",
    "optimizer",
    "base_learning_rate",
    "momentum",
    "b2",
    "average_weights",
    "weight_decay",
    "decay_all",
    "label_smoothing",
    "distributed",
    "coordinator_address",
    "num_processes",
    "process_id",
)


class Result(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The evaluation of one split.

    Attributes:
      accuracy: the share of examples, or of pixels, that are classified correctly; None: a problem whose goal is a
        loss.
      loss: mean cross-entropy in nats, without label smoothing; for a problem the loss that it returns, or the share of
        wrong answers if its goal is an accuracy.
      examples: the number of examples evaluated; None: a problem does not say it.
      mean_iou: mean intersection over union of the classes, for segmentation; None for classification.
    """

    accuracy: Share | None = None
    loss: Finite
    examples: Count | None = None
    mean_iou: Share | None = None

    @property
    def known_accuracy(self) -> float:
        """The accuracy; raises `LookupError` if there is none."""
        if self.accuracy is None:
            raise LookupError("there is no accuracy: the goal of this problem is a loss")
        return self.accuracy

    @property
    def merit(self) -> float:
        """The accuracy, or minus the loss if there is none: of two runs the one with more is better."""
        return -self.loss if self.accuracy is None else self.accuracy


# Results by the name of their split, in the order of evaluation; the first split decides between runs.
Results = Annotated[dict[str, Result], Meta(min_length=1)]


class Target(Record, frozen=True, kw_only=True):
    """The accuracy or the loss at which a run stops.

    Attributes:
      accuracy: the accuracy on the first evaluated split, as a share of 1; None: the target is a loss.
      loss: the loss on that split; None: the target is an accuracy.
      reached_after_updates: the number of updates after which it was reached, at the first evaluation that finds it so
        or, with `past_target`, without the noise of evaluations; None: it was not reached.
    """

    accuracy: Share | None = None
    loss: Finite | None = None
    reached_after_updates: Count | None = None


class StepMemory(Record, frozen=True, kw_only=True):
    """Device memory of the compiled step, in bytes.

    Attributes:
      needed: the memory that the step needs, from the compiler; None: the compiler does not report it.
      limit: the memory of the device; None: not known.
    """

    needed: Count | None = None
    limit: Count | None = None


class Summary(FileRecord, frozen=True, kw_only=True):
    """`summary.json`: the results and costs of a run that has ended.

    Attributes:
      results: the last evaluation of every split.
      updates: the number of parameter updates.
      epochs: passes over the training set.
      target: the accuracy or the loss at which the run was to stop; None: it had no target.
      parameters: the number of trained parameters; of a problem, all numbers of its state.
      seconds: wall-clock seconds by what they were spent on, with "compute" among them, and their total, "in all".
      overhead: the share of the training time outside the compiled step; None: no step was run.
      devices: the number and kind of the devices, such as "8 x cpu".
      versions: the versions of Python and JAX.
      command: the command that made the run.
      first_step_ended: when the first update after the last start of the run ended; None: there was no update.
      starts: the number of times that the run was started or resumed.
      memory: the memory of the compiled step; None: not known.
      recalibrated: results with the norms' statistics recomputed on training images, if that changes an accuracy.
    """

    results: Results
    updates: Count
    epochs: NonNegative = 0.0
    target: Target | None = None
    parameters: Count = 0
    seconds: Seconds
    overhead: Finite | None = None
    devices: str
    versions: dict[str, str]
    command: str = ""
    first_step_ended: Moment | None = None
    starts: Count = 1
    memory: StepMemory | None = None
    recalibrated: dict[str, Result] | None = None

    @property
    def result(self) -> Result:
        """The result on the first evaluated split, which decides between runs."""
        return next(iter(self.results.values()))

    @property
    def reached_after(self) -> int | None:
        """The number of updates after which the target was reached; None: not reached, or no target."""
        return None if self.target is None else self.target.reached_after_updates

    @property
    def share_to_target(self) -> float:
        """The share of its updates after which the run reached its target; 1 if it did not, or went no further."""
        return 1.0 if self.reached_after is None or not self.updates else self.reached_after / self.updates


class DataFacts(Record, frozen=True, kw_only=True):
    """Facts about the training data that evaluation and resuming need.

    Earlier versions did not write the last three.

    Attributes:
      image_shape: height, width and channels.
      num_classes: the number of classes.
      pixel_mean: one mean per channel, in [0, 255].
      pixel_std: one standard deviation per channel, in [0, 255].
      examples: the number of training examples.
      note: a sentence about the data set, for reports.
      contents: one digest per split.
    """

    image_shape: tuple[Size, Size, Size]
    num_classes: Size
    pixel_mean: list[Finite]
    pixel_std: list[Positive]
    examples: Size | None = None
    note: str | None = None
    contents: dict[str, str] | None = None

    def __post_init__(self):
        channels = self.image_shape[-1]
        if not len(self.pixel_mean) == len(self.pixel_std) == channels:
            raise ValueError(f"Expected {channels} entries of `pixel_mean` and `pixel_std`, one per channel")


class ProblemFacts(Record, frozen=True, kw_only=True):
    """Facts about a problem that resuming needs.

    Attributes:
      examples: the number of training examples.
      goal: the quantity that is evaluated, "loss" or "accuracy".
      state: a digest of the shapes and types of the state.
    """

    examples: Size
    goal: str
    state: str


class StoredRun(FileRecord, frozen=True, kw_only=True, omit_defaults=True):
    """`config.json`: the configuration of a run and the facts about its data, or about its problem.

    Attributes:
      config: every option of `TrainConfig` by its name.
      data: facts about the training data; None: the run trains a problem.
      problem: facts about the problem; None: the run trains on a data set.
      run: the name of the run, which its checkpoints hold too; None: written by an earlier version, in which runs had
        no names.
    """

    config: Options
    data: DataFacts | None = None
    problem: ProblemFacts | None = None
    run: str | None = None

    def __post_init__(self):
        if (self.data is None) == (self.problem is None):
            raise ValueError("Expected one of `data` and `problem`")


class MetricsRow(FileRecord, frozen=True, kw_only=True):
    """The fields that all rows of `metrics.jsonl` have in common.

    Attributes:
      kind: "train", "noise", "ramp", or the name of the split that was evaluated.
      step: the number of updates so far.
      epoch: passes over the training set so far.
    """

    kind: str
    step: Count
    epoch: NonNegative = 0.0


class TrainRow(MetricsRow, frozen=True, kw_only=True, omit_defaults=True):
    """Metrics of one training batch.

    Attributes:
      loss: mean cross-entropy in nats, with the label smoothing of the run; of a problem, what its update returns.
      learning_rate: the learning rate of the update.
      accuracy: the share of the batch that is classified correctly; None: a problem does not say it.
    """

    loss: Finite
    learning_rate: Finite
    accuracy: Finite | None = None


class NoiseRow(MetricsRow, frozen=True, kw_only=True):
    """One estimate of the gradient noise.

    Attributes:
      gradient_norm2: the squared norm of the mean gradient.
      trace: the trace of the covariance of a single example's gradient.
    """

    gradient_norm2: Finite
    trace: Finite


class RampRow(MetricsRow, frozen=True, kw_only=True):
    """The start of a phase with a larger batch.

    Attributes:
      batch_size: examples per update from this step on.
      noise_scale: the running gradient noise scale that led to the larger batch, in examples; None: not finite.
    """

    batch_size: Size
    noise_scale: Finite | None = None


# The types of rows other than evaluations, by kind; every other kind is the name of a split.
METRICS_ROWS: dict[str, type[MetricsRow]] = {"train": TrainRow, "noise": NoiseRow, "ramp": RampRow}


class EvaluationRow(MetricsRow, frozen=True, kw_only=True, omit_defaults=True):
    """The evaluation of one split; `kind` is the name of the split.

    Attributes:
      accuracy: as in `Result`.
      loss: as in `Result`.
      examples: the number of examples evaluated; None: a problem, or an earlier version that left it out.
      mean_iou: mean intersection over union, for segmentation; None for classification.
    """

    accuracy: Share | None = None
    loss: Finite
    examples: Count | None = None
    mean_iou: Share | None = None


def metrics_row(value: Any) -> MetricsRow:
    """Returns the row of `metrics.jsonl` that a JSON value holds; the row's kind decides its type.

    Raises:
      msgspec.ValidationError: the value is not a valid row of its kind.
    """
    kind = msgspec.convert(value, MetricsRow).kind
    return msgspec.convert(value, METRICS_ROWS.get(kind, EvaluationRow))
