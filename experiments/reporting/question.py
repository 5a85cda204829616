"""The part of a question in the report of a batch-size study."""

import dataclasses
from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

from .section import Section
from .study_files import StudyFiles


@dataclasses.dataclass(frozen=True)
class Report:
    """Sections and pictures of a question; its name is that of its module in `reporting.questions`.

    Attributes:
      order: its place among the questions. Sections of two questions that have the same number become one section,
        with the title and the answer of the first.
      sections: functions that return sections of what has been run; what fails in one leaves the others.
      pictures: figures for documents by the names of their files in the study's folder, where they are made again.
    """

    order: int
    sections: tuple[Callable[[StudyFiles], list[Section]], ...] = ()
    pictures: Mapping[str, Callable[[StudyFiles], Figure]] = dataclasses.field(default_factory=dict)
