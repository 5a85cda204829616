"""A section of the batch-size study's report: a question, a sentence that answers it, and what that rests on."""

import contextlib
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import _files, records
from experiments._errors import UsageError
from experiments.reporting.curves import read_study
from experiments.reporting.document import document
from experiments.reporting.style import number


class Section(NamedTuple):
    """A question of the report.

    Attributes:
      number: of the question, from 1.
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
    """Turns what comes of numbers that have their shapes and do not fit together into an error that says so.

    Shapes are checked as files are read. What one file says of another, or one number of the next, is not: a part may
    name runs that are gone, or two of its sizes may be the same.

    Raises:
      UsageError: in place of an arithmetic, look-up or value error; it names the line of ours. Others are faults of
        ours, and stay what they are.
    """
    try:
        # Of numbers that are too large; what comes of them is infinite.
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
    """The innermost line of a report that an error comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(Path(__file__).parent)]
    last = (ours or frames)[-1]
    return f"{Path(last.filename).name}, line {last.lineno}"


def write_report(folder: str | Path, page: Callable[[], tuple[str, list[str]]]) -> Path:
    """Writes `report.html` into a folder.

    Args:
      folder: of results.
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


def analysis(folder: str | Path, part: str) -> dict[str, Any] | None:
    """What `PART.json` of a study holds; None: the part has not been run."""
    path = Path(folder) / f"{part}.json"
    return _files.read_json(path, records.PARTS.get(part, records.PART)) if path.exists() else None


def needed(folder: str | Path, part: str) -> dict[str, Any]:
    """The same for a figure.

    Raises:
      UsageError: the part has not been run.
    """
    found = analysis(folder, part)
    if found is None:
        raise UsageError(f"{folder} holds no {part}.json; run experiments.batch_size_study with --parts={part}")
    return found


def rows_of(folder: str | Path, part: str) -> list[dict[str, Any]]:
    """The rows of a part, in the order in which they were run; none if it has not been run.

    Raises:
      UsageError: the folder holds no rows.
    """
    keys = set((analysis(folder, part) or {}).get("keys", ()))
    return [row for key, row in read_study(folder).items() if key in keys]


def moments_of(rows: Iterable[dict[str, Any]]) -> list[float]:
    """When the runs of some rows made their first update, in seconds since 1970."""
    moments = (row["summary"].get("first_step_ended") for row in rows if "summary" in row)
    return [moment for moment in moments if moment]


def interval(ends: Sequence[float]) -> str:
    """The ends of an interval.

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
