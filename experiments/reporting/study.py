"""The report of the batch-size study, from its files alone."""

import html
from pathlib import Path

from experiments.reporting.convergence import convergence_parts
from experiments.reporting.document import document
from experiments.reporting.large_batch import large_batch_parts, read


def write_study_page(folder: str | Path) -> Path:
    """Writes `report.html` into the folder of a study: a section for each part of it that has been run.

    Raises:
      UsageError: the folder holds no rows.
    """
    rows = read(folder)
    parts = [*convergence_parts(Path(folder), list(rows.values())), *large_batch_parts(folder, rows)]
    if rows:
        made_by = next(iter(rows.values()))
        parts += ["<h2>Made by</h2>", f"<pre>{html.escape(made_by['command'])}</pre><p>and likewise for each run</p>"]
    path = Path(folder) / "report.html"
    path.write_text(document("What the batch size does", parts))
    return path
