"""Question 6: the best recipe of a search at very large batches, from the study's files alone."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from ...records.studies import StudyRow
from ..document import figure, table
from ..question import Report
from ..section import Section
from ..seeds import accuracy, spread_of
from ..study_files import Source, StudyFiles, opened
from ..style import COLOUR, OPTIMIZERS, TEXT, canvas, legend, sizes_axis
from .ladder import NUMBER, TITLE


def accuracy_figure(study: Source) -> Figure:
    """Draws test accuracy against batch size at a fixed number of epochs: every seed, and their mean.

    Args:
      study: the study, or its folder.
    """
    groups = _by_batch_size(opened(study).rows_of("search"))
    drawing, (axes,) = canvas()
    for batch_size, rows in groups.items():
        axes.plot(
            [batch_size] * len(rows),
            [accuracy(row) for row in rows],
            "o",
            color=COLOUR,
            alpha=0.5,
            label=None if batch_size != min(groups) else "a seed",
        )
    means = [statistics.mean(accuracy(row) for row in rows) for rows in groups.values()]
    axes.plot(list(groups), means, "-", color=COLOUR, linewidth=1.5, label="mean")
    for (batch_size, rows), mean in zip(groups.items(), means, strict=True):
        name = _optimizer(rows[0])
        text = f"{mean:.2f}\n{OPTIMIZERS.get(name, name)}"
        # Above every seed and every line.
        at = (batch_size, max([*(accuracy(row) for row in rows), *means]))
        axes.annotate(text, at, (0, 8), textcoords="offset points", ha="center", fontsize=TEXT)
    sizes_axis(axes, list(groups))
    axes.set(ylabel="test accuracy (%)")
    axes.margins(0.12, 0.3)
    axes.set_ylim(top=axes.get_ylim()[1] + 0.1 * (axes.get_ylim()[1] - axes.get_ylim()[0]))
    legend(axes)
    return drawing


def search_sections(study: StudyFiles) -> list[Section]:
    """Returns the section, of what has been run of it. It follows that of the ladder, if there is one."""
    rows, parts = study.rows_of("search"), []
    if groups := _by_batch_size(rows):
        parts += [
            "<p>The best recipe of a search at each batch size, the same number of epochs:</p>",
            figure(accuracy_figure(study), "The line joins the means over the seeds."),
            table(
                ("batch size", "updates", "optimizer", "peak rate", "mean", "least", "greatest"),
                [_final_cells(batch_size, group) for batch_size, group in groups.items()],
            ),
        ]
    if searched := [row for row in rows if row.kind == "search"]:
        parts += [
            "<p>The search: accuracy (%) on training images that were held out, one seed. A best rate on the edge of "
            "its grid is marked with *: a better one may lie beyond.</p>",
            table(("batch size", "optimizer", "rates: accuracy"), _search_cells(searched)),
        ]
    answer = "The ladder has not been run; below, what a search found."
    return [Section(NUMBER, TITLE, answer, parts)] if parts else []


def _optimizer(row: StudyRow) -> str:
    return str(row.options["optimizer"])


def _by_batch_size(rows: Iterable[StudyRow]) -> dict[int, list[StudyRow]]:
    """Groups the runs of the best recipes that ended."""
    groups = defaultdict(list)
    for row in rows:
        if row.kind == "final" and row.summary is not None:
            groups[row.batch_size].append(row)
    return dict(sorted(groups.items()))


def _final_cells(batch_size: int, group: Sequence[StudyRow]) -> tuple[str, ...]:
    first = group[0]
    return (
        f"{batch_size:,}",
        f"{first.ended.updates:,}",
        _optimizer(first),
        f"{first.learning_rate:g}",
        *(f"{value:.2f}" for value in spread_of(group)),
    )


def _search_cells(searched: Iterable[StudyRow]) -> list[tuple[str, str, str]]:
    grids = defaultdict(list)
    for row in searched:
        if row.summary is not None:
            grids[row.batch_size, _optimizer(row)].append(row)
    cells = []
    for (batch_size, optimizer), grid in sorted(grids.items()):
        grid.sort(key=lambda row: row.learning_rate)
        best = max(grid, key=accuracy)
        edge = "*" if best in (grid[0], grid[-1]) else ""
        scores = ",  ".join(f"{row.learning_rate:g}: {accuracy(row):.2f}{edge if row is best else ''}" for row in grid)
        cells.append((f"{batch_size:,}", optimizer, scores))
    return cells


REPORT = Report(order=60, sections=(search_sections,))
