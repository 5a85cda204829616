"""Records of each question of the batch-size study: one module per question, found by its name.

A module declares `ROWS`, the types of its rows by their kind (see `records.studies.kind_of`), and may declare
`Analysis`, the type of `QUESTION.json`. Without `Analysis`, the file holds only the keys of the rows.
"""

from collections.abc import Iterable, Mapping
from types import ModuleType

from ... import _register
from ..studies import Analysis, StudyRow

MODULES = _register.modules_of(__name__, __path__)


def _rows(modules: Mapping[str, ModuleType]) -> dict[str, type[StudyRow]]:
    """Returns the type of a row by its kind.

    Raises:
      ValueError: two modules declare the same kind.
    """
    rows: dict[str, type[StudyRow]] = {}
    for name, module in modules.items():
        if taken := rows.keys() & module.ROWS.keys():
            raise ValueError(f"{__name__}.{name}: another module declares the kind {', '.join(sorted(taken))} already")
        rows |= module.ROWS
    return rows


ROWS = _rows(MODULES)


def check(package: str, names: Iterable[str]) -> None:
    """Checks that each question of a package has a module of records in this package.

    Raises:
      LookupError: a question lacks its module; the message names each.
    """
    if lacking := sorted(set(names) - MODULES.keys()):
        raise LookupError(
            f"{package}: each question needs a module of the same name in {__name__}; add {', '.join(lacking)}"
        )


def analysis_type(question: str) -> type[Analysis]:
    """Returns the type of `QUESTION.json`."""
    return getattr(MODULES[question], "Analysis", Analysis)
