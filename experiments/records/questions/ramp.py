"""Records of the question about a growing batch in place of a falling learning rate."""

from typing import Annotated

from msgspec import Meta

from ..fields import Count, Finite, Share, Size
from ..record import Record
from ..studies import StudyRow


class Course(Record, frozen=True, kw_only=True):
    """The course of a run.

    Attributes:
      evaluations: one entry per evaluation: updates so far, accuracy and loss.
      batch_sizes: one entry per change of the batch size: updates so far, and examples per update after the change.
    """

    evaluations: Annotated[list[tuple[Count, Share, Finite]], Meta(min_length=1)]
    batch_sizes: list[tuple[Count, Size]]


class RampRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A run with one of the ways to let the gradient noise fall; the label names the way.

    Attributes:
      course: the course of the run; None: not read yet.
    """

    NEEDED = ("batch_size",)
    TIMED = True

    course: Course | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.is_result and not self.label:
            raise ValueError("Expected a label")


ROWS = {"ramp": RampRow}
