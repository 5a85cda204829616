"""Records of the question whether large batches generalise worse and end in sharper minima."""

from typing import Annotated, Literal

from msgspec import Meta

from experiments.records.fields import Count, Finite, NonNegative, Share, Size
from experiments.records.record import Record
from experiments.records.studies import Analysis as Base
from experiments.records.studies import StudyRow

# One value per seed.
Seeds = Annotated[list[Finite], Meta(min_length=1)]


class TrainScore(Record, frozen=True, kw_only=True):
    """The evaluation of training images, in evaluation mode.

    Attributes:
      accuracy: the share that is classified correctly.
      loss: mean cross-entropy in nats.
    """

    accuracy: Share
    loss: Finite


class Minimum(Record, frozen=True, kw_only=True):
    """The minimum in which a run ended.

    Attributes:
      train: the evaluation of training images.
      eigenvalue: the largest eigenvalue of the Hessian.
      residual: the distance within which the Hessian has such an eigenvalue; None: an earlier version did not write it.
      sharpness: the rise of the loss in a box, by the width of the box.
    """

    train: TrainScore
    eigenvalue: Finite
    residual: Finite | None = None
    sharpness: dict[str, Finite]


class MinimumRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run whose minimum is looked at; its key says after which budget it stopped.

    Attributes:
      minimum: None: not measured yet.
    """

    NEEDED = ("batch_size", "learning_rate")

    minimum: Minimum | None = None


class SizeMinima(Record, frozen=True, kw_only=True):
    """The minima of one batch size after one budget.

    Attributes:
      budget: "epochs": as many epochs at every batch size; "steps": as many updates.
      batch_size: examples per update.
      rate: the peak learning rate.
      updates: of a run.
      epochs: of a run.
      train: accuracy on training images, one value per seed, as all that follow.
      test: accuracy on the split that the run is judged by.
      gap: `train` - `test`.
      test_loss: mean cross-entropy in nats; None: an earlier version did not write it.
      eigenvalue: the largest eigenvalue of the Hessian.
      eigenvalue_times_rate: the eigenvalue times `rate`.
      sharpness: the rise of the loss in a box, by the width of the box.
    """

    budget: Literal["epochs", "steps"]
    batch_size: Size
    rate: Finite
    updates: Count
    epochs: NonNegative = 0.0
    train: Seeds
    test: Seeds
    gap: Seeds
    test_loss: list[Finite] | None = None
    eigenvalue: Seeds
    eigenvalue_times_rate: Seeds
    sharpness: dict[str, Seeds]


class Analysis(Base, frozen=True, kw_only=True):
    """`generalisation.json`.

    Attributes:
      runs: one entry per budget and batch size, in the order of `SizeMinima.budget` and rising.
    """

    runs: list[SizeMinima]


ROWS = {"minimum": MinimumRow}
