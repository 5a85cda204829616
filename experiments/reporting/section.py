"""A section of the batch-size study's report: a question, a sentence that answers it, and its evidence."""

import contextlib
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import _files
from .._errors import UsageError
from ..records.studies import StudyRow
from .document import document
from .style import number


class Section(NamedTuple):
    """A question of the report.

    Attributes:
      number: the number of the question, from 1.
      title: the question, as text.
      answer: a plain sentence or two, as text.
      parts: figures and tables, as HTML.
    """

    number: int
    title: str
    answer: str
    parts: list[str]


@contextlib.contextmanager
def fitting(folder: str | Path) -> Iterator[None]:
    """Turns the error of numbers that have their types and do not fit together into one that says so.

    Types are checked as files are read. That one file fits another, or one number the next, is not: an analysis may
    name runs that are gone, or two of its sizes may be the same.

    Raises:
      UsageError: in place of an arithmetic, look-up or value error; it names our line. Errors of other types are our
        faults, and are raised as they are.
    """
    try:
        # NumPy would warn of numbers that are too large; the results of these are infinite.
        with np.errstate(all="ignore"):
            yield
    except UsageError:
        raise
    except (ArithmeticError, LookupError, ValueError) as error:
        raise UsageError(
            f"the numbers in {folder} do not fit together ({type(error).__name__} in {_place(error)}: "
            f"{_files.reason(error):.100}); run the same command again, which completes them, or remove what was "
            "changed"
        ) from error


def _place(error: BaseException) -> str:
    """Returns the innermost line of a report that an error comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(Path(__file__).parent)]
    last = (ours or frames)[-1]
    return f"{Path(last.filename).name}, line {last.lineno}"


def write_report(folder: str | Path, page: Callable[[], tuple[str, list[str]]]) -> Path:
    """Writes `report.html` into a folder.

    Args:
      folder: the folder of results.
      page: makes the title and the body, from the files in the folder.

    Returns:
      The path of the report.

    Raises:
      UsageError: the numbers in the folder do not fit together.
    """
    with fitting(folder):
        title, parts = page()
    path = Path(folder) / "report.html"
    _files.write(path, document(title, parts))
    return path


def moments_of(rows: Iterable[StudyRow]) -> list[float]:
    """Returns when the runs of some rows made their first update, in seconds since 1970."""
    moments = (row.summary.first_step_ended for row in rows if row.summary is not None)
    return [moment for moment in moments if moment]


def interval(ends: Sequence[float]) -> str:
    """Returns the ends of an interval as text.

    Example:
      >>> interval((313.2, 904.0)), interval((313.2, float("inf"))), interval((0.0, float("inf")))
      ('313 to 904', 'at least 313', 'no bounds')
    """
    low, high = ends
    if not math.isfinite(low):
        return "no bounds"
    if not math.isfinite(high):
        return f"at least {number(low)}" if low > 0 else "no bounds"
    return f"{number(low)} to {number(high)}"
