"""The questions of the batch-size study in its report: one module per question, found by its name.

A module declares `REPORT`. What the question runs is in the module of the same name in `studies.questions`.
"""

from ... import _register
from ...records import questions as records
from ..question import Report

_FOUND = _register.entries_of(__name__, __path__, "REPORT", Report)
REPORTS: dict[str, Report] = dict(sorted(_FOUND.items(), key=lambda item: item[1].order))
records.check(__name__, REPORTS)
