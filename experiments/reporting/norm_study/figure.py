"""The figure of the norm study: the score of each norm against the per-device batch size."""

import statistics
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...records.norm_study import LOCAL, NORMS, SYNCHRONISED, TASKS, Norm, Task
from ..style import canvas, dress, legend
from .cells import Grid, Study, read


class Look(NamedTuple):
    """The look of a norm's line.

    Attributes:
      colour: the colour of the line, from a palette that people who are colour-blind can tell apart.
      marker: the marker, which tells the line apart without colours.
      is_bold: whether the line is one of the two that the study compares above all.
    """

    colour: str
    marker: str
    is_bold: bool = False


# The looks by the key of the norm, in the order of legends and tables. A test checks that every norm has one.
LOOKS = {
    SYNCHRONISED.key: Look("#0072b2", "o", is_bold=True),
    LOCAL.key: Look("#d55e00", "s", is_bold=True),
    "span16": Look("#56b4e9", "v"),
    "span32": Look("#3787c8", "^"),
    "span64": Look("#1b4f8a", "D"),
    "renorm": Look("#009e73", "P"),
    "group": Look("#cc79a7", "*"),
    "frozen": Look("#5a6475", "X"),
}
_BY_KEY = {norm.key: norm for norm in NORMS.values()}
# Norms are drawn side by side, so that no bar or marker hides another; in units of the distance between two sizes.
_STEP_BETWEEN_NORMS = 0.05


def norms_of(cells: Grid) -> list[Norm]:
    """Returns the norms that have a cell, in the order of legends and tables."""
    there = {key for key, _ in cells}
    return [_BY_KEY[key] for key in LOOKS if key in there]


def sizes_of(cells: Grid) -> list[int]:
    """Returns the per-device batch sizes that have a cell, in rising order."""
    return sorted({size for _, size in cells})


def norm_study_figure(folder: str | Path) -> Figure:
    """Draws accuracy and mean IoU against the per-device batch size.

    Each norm has a line through the means over seeds, with a bar from the worst to the best seed.

    Args:
      folder: the folder of the study.

    Raises:
      UsageError: the folder holds no rows.
    """
    study = read(folder)
    grids = _grids(study)
    columns = max(1, len(grids))
    drawing = Figure(figsize=(4.6 * columns, 4.4), layout="constrained")
    for axes, (task, cells) in zip(drawing.subplots(1, columns, squeeze=False)[0], grids, strict=False):
        _draw(axes, cells, task)
    return drawing


def task_figures(study: Study) -> list[Figure]:
    """Draws each panel of `norm_study_figure` as a separate figure, so that a page can arrange them by its width."""
    drawings = []
    for task, cells in _grids(study):
        drawing, (axes,) = canvas(4.4)
        _draw(axes, cells, task)
        drawings.append(drawing)
    return drawings


def _grids(study: Study) -> list[tuple[Task, Grid]]:
    return [(task, cells) for task in TASKS.values() if (cells := study.grid(task))]


def _draw(axes: Axes, cells: Grid, task: Task) -> None:
    sizes, norms = sizes_of(cells), norms_of(cells)
    for place, norm in enumerate(norms):
        beside = (place - (len(norms) - 1) / 2) * _STEP_BETWEEN_NORMS
        there = [
            (sizes.index(size) + beside, cells[norm.key, size].scores) for size in sizes if (norm.key, size) in cells
        ]
        there = [(at, scores) for at, scores in there if scores]
        if there:
            _draw_norm(axes, norm, there)
    if any(len(cell.scores) > 1 for cell in cells.values()):
        axes.vlines([], [], [], color="black", linewidth=1, label="worst to best seed")
    dress(axes)
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set(xlabel="examples per device", ylabel=task.metric, ylim=(0, None))
    legend(axes, task.name.capitalize(), columns=3)


def _draw_norm(axes: Axes, norm: Norm, there: list[tuple[float, tuple[float, ...]]]) -> None:
    """Draws the line of one norm.

    Args:
      axes: the axes to draw on.
      norm: the norm.
      there: the horizontal positions, each with the scores of its seeds.
    """
    look = LOOKS[norm.key]
    axes.plot(
        [at for at, _ in there],
        [statistics.mean(scores) for _, scores in there],
        color=look.colour,
        marker=look.marker,
        linewidth=2.4 if look.is_bold else 1.2,
        linestyle="-" if look.is_bold else "--",
        markersize=5,
        label=norm.name,
        zorder=3 if look.is_bold else 2,
    )
    for at, scores in there:
        axes.vlines(at, min(scores), max(scores), color=look.colour, linewidth=1, zorder=1)
