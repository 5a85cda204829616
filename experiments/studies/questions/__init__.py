"""The questions of the batch-size study: one module per question, found by its name.

A module declares `QUESTION`. Its records are in the module of the same name in `records.questions`, its part of the
report in that of `reporting.questions`.
"""

from ... import _register
from ...records import questions as records
from ..question import Question

_FOUND = _register.entries_of(__name__, __path__, "QUESTION", Question)
# In the order in which they are run.
QUESTIONS: dict[str, Question] = dict(sorted(_FOUND.items(), key=lambda item: item[1].order))
records.check(__name__, QUESTIONS)
