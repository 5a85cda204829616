"""The files of a batch-size study, each of which is read once."""

from pathlib import Path
from typing import TypeVar

from .. import _commands, _files
from .._errors import UsageError
from ..records import questions
from ..records.rows import study_row
from ..records.studies import Analysis, StudyRow

A = TypeVar("A", bound=Analysis)


class StudyFiles:
    """Rows and analyses of a study, read when they are first asked for.

    Attributes:
      folder: the folder of the study.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._read: tuple[dict[str, StudyRow], int] | None = None
        self._analyses: dict[str, Analysis | None] = {}

    def read(self) -> tuple[dict[str, StudyRow], int]:
        """Returns `rows` and `lines_left_out`, which are read the first time.

        Raises:
          UsageError: the folder holds no rows.
        """
        if self._read is None:
            path = self.folder / "results.jsonl"
            if not path.exists():
                raise UsageError(f"{self.folder} holds no study: it has no results.jsonl")
            rows, left_out = _files.read_rows(path, study_row)
            self._read = {row.key: row for row in rows}, left_out
        return self._read

    @property
    def rows(self) -> dict[str, StudyRow]:
        """The last row of each key, in the order in which they were run, with those that have an error.

        Raises:
          UsageError: the folder holds no rows.
        """
        return self.read()[0]

    @property
    def lines_left_out(self) -> int:
        """The number of lines that are not whole rows.

        Raises:
          UsageError: the folder holds no rows.
        """
        return self.read()[1]

    def analysis(self, question: str, kind: type[A]) -> A | None:
        """Returns what `QUESTION.json` holds; None: the question has not been answered.

        Args:
          question: its name.
          kind: the type of its analysis, or `Analysis` itself.

        Raises:
          UsageError: the file is damaged.
        """
        if question not in self._analyses:
            path = self.folder / f"{question}.json"
            there = path.exists()
            self._analyses[question] = _files.read_json(path, questions.analysis_type(question)) if there else None
        found = self._analyses[question]
        if found is not None and not isinstance(found, kind):
            raise TypeError(f"the analysis of {question} is a {type(found).__name__}, not a {kind.__name__}")
        return found

    def needed(self, question: str, kind: type[A]) -> A:
        """Returns what `QUESTION.json` holds, for a figure of it.

        Raises:
          UsageError: the question has not been answered, or the file is damaged.
        """
        found = self.analysis(question, kind)
        if found is None:
            raise UsageError(
                f"{self.folder} holds no {question}.json; run {_commands.program('batch_size_study')} with "
                f"--parts={question}"
            )
        return found

    def rows_of(self, question: str) -> list[StudyRow]:
        """Returns the rows of a question, in the order in which they were run; none if it has not been answered.

        Raises:
          UsageError: the folder holds no rows, or `QUESTION.json` is damaged.
        """
        found = self.analysis(question, Analysis)
        keys = set() if found is None else set(found.keys)
        return [row for key, row in self.rows.items() if key in keys]


# A study, or its folder.
Source = StudyFiles | str | Path


def opened(source: Source) -> StudyFiles:
    """Returns the files of a study."""
    return source if isinstance(source, StudyFiles) else StudyFiles(source)
