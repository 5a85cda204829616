"""Records of the question about generalisation, which compares the scores and the minima of large and small batches."""

from typing import Annotated, Literal

from msgspec import Meta

from ..fields import Count, Finite, NonNegative, Share, Size
from ..record import Record
from ..studies import Analysis as Base
from ..studies import StudyRow

# One value per seed.
Seeds = Annotated[list[Finite], Meta(min_length=1)]


class TrainScore(Record, frozen=True, kw_only=True):
    """The scores on training images, in evaluation mode.

    Attributes:
      accuracy: the share of images that are classified correctly.
      loss: the mean cross-entropy, in nats.
    """

    accuracy: Share
    loss: Finite


class Minimum(Record, frozen=True, kw_only=True):
    """The minimum in which a run ended.

    Attributes:
      train: the scores on training images.
      eigenvalue: the estimate of the Hessian's largest eigenvalue.
      residual: a distance from `eigenvalue` within which the Hessian certainly has an eigenvalue; None: an earlier
        version wrote the row, without this field.
      sharpness: the rise of the loss in a box around the minimum, by the width of the box.
    """

    train: TrainScore
    eigenvalue: Finite
    residual: Finite | None = None
    sharpness: dict[str, Finite]


class MinimumRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run whose minimum is measured; the key names the budget after which the run stopped.

    Attributes:
      minimum: the minimum; None: not measured yet.
    """

    NEEDED = ("batch_size", "learning_rate")

    minimum: Minimum | None = None


class SizeMinima(Record, frozen=True, kw_only=True):
    """The minima of one batch size after one budget.

    Attributes:
      budget: "epochs": equal epochs at every batch size; "steps": equal updates.
      batch_size: examples per update.
      rate: the peak learning rate.
      updates: the number of updates of a run.
      epochs: the number of epochs of a run.
      train: the accuracy on training images, one value per seed.
      test: the accuracy on the split that judges the run, one value per seed.
      gap: `train` - `test`, one value per seed.
      test_loss: the mean cross-entropy on that split in nats, one value per seed; None: an earlier version wrote the
        file, without this field.
      eigenvalue: the largest eigenvalue of the Hessian, one value per seed.
      eigenvalue_times_rate: the eigenvalue times `rate`, one value per seed.
      sharpness: the rise of the loss in a box, by the width of the box, one value per seed.
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
    """The contents of `generalisation.json`.

    Attributes:
      runs: one entry per budget and batch size, in the order of `SizeMinima.budget`, then of rising batch size.
    """

    runs: list[SizeMinima]


ROWS = {"minimum": MinimumRow}
