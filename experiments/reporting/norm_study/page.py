"""The page of the norm study."""

import html
from pathlib import Path

from ... import _commands
from ...records.norm_study import TASKS, Task
from ...records.questions.norm import GridRow
from ..document import commands, figure, made_on, table
from ..section import write_report
from . import findings, tables
from .cells import CONFIDENCE, Grid, Study, read
from .figure import sizes_of, task_figures

_TITLE = "Which statistics to normalise by"


def write_norm_study_page(folder: str | Path) -> Path:
    """Writes `report.html` into the folder of a study.

    Raises:
      UsageError: the folder holds no rows, or rows that do not fit together.
    """
    return write_report(folder, lambda: _page(read(folder)))


def _page(study: Study) -> tuple[str, list[str]]:
    """Returns the title and the body of the page."""
    ended = [row.summary.first_step_ended for row in study.rows if row.summary is not None]
    parts = [made_on(moment for moment in ended if moment)]
    if study.lines_left_out:
        parts.append(f"<p>{study.lines_left_out} lines of results.jsonl are not whole rows and are left out.</p>")
    grids = [(task, cells) for task in TASKS.values() if (cells := study.grid(task))]
    if grids:
        parts += [
            *(f"<p>{html.escape(findings.finding(cells, task))}</p>" for task, cells in grids),
            figure(task_figures(study), "Lines join the means over seeds."),
        ]
    for task, cells in grids:
        parts += _task(study, task, cells)
    parts += _rates(study)
    parts += _made_by(study)
    return _title(study), parts


def _task(study: Study, task: Task, cells: Grid) -> list[str]:
    """Returns the tables of one task."""
    sizes = sizes_of(cells)
    seeds = max(len(cell.scores) + cell.failed for cell in cells.values())
    devices = next(row.num_devices for row in study.rows if isinstance(row, GridRow))
    interval = f" ± half of the {CONFIDENCE:.0%} confidence interval" if seeds > 1 else ""
    return [
        f"<h2>{task.name.capitalize()}</h2>",
        table(
            [f"{task.metric}, by examples per device", *map(str, sizes)],
            [tables.updates(study.grid_rows(task), sizes), *tables.by_size(cells, devices, tables.score)],
        ),
        f"<p>Mean of {seeds} seed{'s' * (seeds > 1)}{interval}. A dash: the span is longer than the batch; an equals "
        "sign: as synchronised or local, which compute the same there.</p>",
        table(["an update, ms", *map(str, sizes)], tables.by_size(cells, devices, tables.milliseconds)),
        f"<p>{html.escape(findings.cost(cells))}</p>",
    ]


def _rates(study: Study) -> list[str]:
    """Returns the part on learning rates; an empty list if it was not run."""
    rows = tables.rates(study)
    if not rows:
        return []
    return [
        "<h2>Statistics that are fixed in advance</h2>",
        f"<p>{html.escape(findings.fixed_finding(study))}</p>",
        table(tables.rates_head(), rows),
        "<p>The shift: how far what enters the norms at the end of training is from the statistics that they normalise "
        "by in evaluation, as |mean - mean used| in standard deviations, and the ratio of the standard deviations; "
        "medians over all features, of the first seed.</p>",
    ]


def _made_by(study: Study) -> list[str]:
    """Returns the part with the command of one run that ended; an empty list if no run did."""
    first = next((row for row in study.rows if row.summary is not None), None)
    if first is None:
        return []
    return [
        "<h2>Made by</h2>",
        commands(_commands.shareable_text(first.command)),
        "<p>and a similar command per run</p>",
    ]


def _title(study: Study) -> str:
    options = [row.options for row in study.rows if row.summary is not None]
    studied = sorted({f"{of.get('model', 'simple_cnn')} on {of.get('dataset')}" for of in options})
    return _TITLE + (f": {' and '.join(studied)}" if studied else "")
