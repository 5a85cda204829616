"""The file that every suite of benchmarks writes."""

from typing import Generic, TypeVar

from msgspec import field

from experiments.records.fields import Finite, Positive
from experiments.records.record import FileRecord, Record

Rows = TypeVar("Rows")


class ResultFile(FileRecord, Generic[Rows], frozen=True, kw_only=True):
    """`SUITE.json`.

    Attributes:
      made_by: the command, and the version of each package that it depends on.
      rows: the rows of the suite.
    """

    made_by: dict[str, str] = field(default_factory=dict)
    rows: Rows


class Spread(Record, frozen=True, kw_only=True):
    """The median of several measurements, and the least and the greatest of them."""

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


# Spreads by the name of what was measured.
Spreads = dict[str, PositiveSpread]
