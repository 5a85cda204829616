"""The file that every suite of benchmarks writes."""

from typing import Generic, TypeVar

from msgspec import field

from ..fields import Finite, Positive
from ..record import FileRecord, Record

Rows = TypeVar("Rows")


class ResultFile(FileRecord, Generic[Rows], frozen=True, kw_only=True):
    """The contents of `SUITE.json`.

    Attributes:
      made_by: the command, and the versions of the packages that the result depends on.
      rows: the rows of the suite.
    """

    made_by: dict[str, str] = field(default_factory=dict)
    rows: Rows


class Spread(Record, frozen=True, kw_only=True):
    """The median, the least and the greatest of several measurements."""

    median: Finite
    low: Finite
    high: Finite

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


class PositiveSpread(Spread, frozen=True, kw_only=True):
    """The spread of times or of ratios of times."""

    median: Positive
    low: Positive
    high: Positive


# One spread per quantity, by its name.
Spreads = dict[str, PositiveSpread]
