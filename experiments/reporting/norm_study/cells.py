"""The results of the norm study: its rows, and cells, which gather the seeds of one norm at one batch size."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import scipy

from ... import _files
from ..._errors import UsageError
from ...records.norm_study import Norm, Task
from ...records.questions.norm import GridRow, RateRow
from ...records.rows import study_row
from ...records.runs import Summary
from ...records.studies import StudyRow

CONFIDENCE = 0.95


class Cell(NamedTuple):
    """The runs of one norm at one batch size or learning rate, over seeds.

    Attributes:
      scores: the scores of the runs that ended with a finite loss, in percent.
      failed: the number of runs with a loss that is not finite.
      milliseconds: the compute time per update of each run that ended with a finite loss.
    """

    scores: tuple[float, ...]
    failed: int
    milliseconds: tuple[float, ...]


# The cells of one task by the key of the norm and the per-device batch size.
Grid = dict[tuple[str, int], Cell]


class Study(NamedTuple):
    """The results of a study.

    Attributes:
      rows: the runs that ended, with or without a finite loss; the last row of each key.
      lines_left_out: the number of lines of the file that could not be read as rows.
    """

    rows: list[StudyRow]
    lines_left_out: int

    def grid_rows(self, task: Task) -> list[GridRow]:
        """Returns the rows of the grid of one task."""
        return [row for row in self.rows if isinstance(row, GridRow) and row.task == task.name]

    def grid(self, task: Task) -> Grid:
        """Returns the cells of one task; an empty mapping if the task was not run."""
        groups: defaultdict[tuple[str, int], list[GridRow]] = defaultdict(list)
        for row in self.grid_rows(task):
            groups[row.norm, row.per_device].append(row)
        return {place: cell(group) for place, group in groups.items()}

    def by_rate(self, norm: Norm) -> dict[float, list[RateRow]]:
        """Returns the runs of one norm by learning rate, in rising order of the rates."""
        groups: defaultdict[float, list[RateRow]] = defaultdict(list)
        for row in self.rows:
            if isinstance(row, RateRow) and row.statistics == norm.rate_key:
                groups[row.learning_rate].append(row)
        return dict(sorted(groups.items()))


def read(folder: str | Path) -> Study:
    """Reads the results of a study.

    Raises:
      UsageError: the folder holds no rows.
    """
    path = Path(folder) / "results.jsonl"
    if not path.exists():
        raise UsageError(f"{folder} holds no study: it has no results.jsonl")
    rows, left_out = _files.read_rows(path, study_row)
    last = {row.key: row for row in rows}
    return Study([row for row in last.values() if row.is_result], left_out)


def cell(group: Sequence[StudyRow]) -> Cell:
    """Gathers the runs of one norm at one batch size or learning rate into a cell."""
    ended = [row.summary for row in group if row.summary is not None]
    return Cell(
        scores=tuple(_score(summary) for summary in ended),
        failed=len(group) - len(ended),
        milliseconds=tuple(1000 * summary.seconds["compute"] / summary.updates for summary in ended),
    )


def _score(summary: Summary) -> float:
    """Returns the score in percent: the mean intersection over union if the run has one, else the accuracy."""
    result = summary.result
    return 100 * (result.known_accuracy if result.mean_iou is None else result.mean_iou)


def half_width(values: Sequence[float]) -> float:
    """Returns half the width of Student's 95% confidence interval of the mean; infinite for a single value.

    Example:
      >>> round(half_width([1.0, 2.0, 3.0]), 3)
      2.484
    """
    if len(values) < 2:
        return math.inf
    quantile = float(scipy.special.stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))
