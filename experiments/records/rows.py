"""Reads a row of a study, whose type follows from its key."""

from typing import Any

import msgspec

from . import questions
from .record import Record
from .studies import StudyRow, kind_of


class _Keyed(Record, frozen=True, kw_only=True):
    key: str


def row_type(key: str) -> type[StudyRow]:
    """Returns the type of the row that has a key; `StudyRow` itself if the kind of the row is unknown."""
    return questions.ROWS.get(kind_of(key), StudyRow)


def study_row(value: Any) -> StudyRow:
    """Returns the row of `results.jsonl` that a JSON value holds.

    Raises:
      msgspec.ValidationError: the value is not a valid row of its kind.
    """
    return msgspec.convert(value, row_type(msgspec.convert(value, _Keyed).key))
