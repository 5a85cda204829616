"""Records of each question of a study: one module per question, found by its name.

A module declares `ROWS`, the types of its rows by their kind (see `records.studies.kind_of`), and may declare
`Analysis`, what the question makes of its rows.
"""

import importlib
import pkgutil

from experiments.records.studies import StudyRow

MODULES = {
    module.name: importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)
}
# The type of a row by its kind.
ROWS: dict[str, type[StudyRow]] = {kind: row for module in MODULES.values() for kind, row in module.ROWS.items()}
