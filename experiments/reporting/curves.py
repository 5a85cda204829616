"""The learning curves of a run: loss, accuracy and learning rate."""

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import _files
from .._errors import UsageError
from ..records.runs import EvaluationRow, MetricsRow, RampRow, TrainRow, metrics_row
from .style import TEXT, canvas, dress, legend, logarithmic

TRAIN_COLOUR, TEST_COLOURS = "#8a93a6", ("#0072b2", "#d55e00", "#009e73")


def read_rows(path: Path) -> tuple[list[MetricsRow], int]:
    """Returns the rows of a run's metrics, and the number of lines that were left out.

    Raises:
      UsageError: the file does not exist.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    return _files.read_rows(path, metrics_row)


def training_curves(workdir: str | Path) -> Figure:
    """Draws the loss, the accuracy, where there is one, and the learning rate of a run against its updates.

    Args:
      workdir: the folder of the run, which holds `metrics.jsonl`.

    Returns:
      A figure of two or three panels; save it with `write_svg(figure, "curves.svg")`.
    """
    series = _series(workdir)
    panels = _panels(series)
    figure = Figure(figsize=(10 * len(panels) / 3, 3.6), layout="constrained")
    for axes, draw in zip(figure.subplots(1, len(panels)), panels, strict=True):
        draw(axes, series)
    return figure


def curve_panels(workdir: str | Path) -> list[Figure]:
    """Returns each panel of `training_curves` as a separate figure, so that a page can arrange them by its width."""
    figures, series = [], _series(workdir)
    for draw in _panels(series):
        drawing, (axes,) = canvas()
        draw(axes, series)
        figures.append(drawing)
    return figures


class _Series(NamedTuple):
    """The rows of a run's metrics by their type, without the rows on gradient noise, which only a study's page shows.

    Attributes:
      train: one row per logged training batch.
      ramp: one row per growth of the batch.
      evaluations: one list of rows per evaluated split, by the name of the split.
    """

    train: list[TrainRow]
    ramp: list[RampRow]
    evaluations: dict[str, list[EvaluationRow]]

    def coloured(self) -> list[tuple[str, list[EvaluationRow], str]]:
        """Returns the name, the rows and the colour of each evaluated split."""
        splits = self.evaluations.items()
        return [(name, rows, colour) for (name, rows), colour in zip(splits, TEST_COLOURS, strict=False)]


def _series(workdir: str | Path) -> _Series:
    rows, _ = read_rows(Path(workdir) / "metrics.jsonl")
    series = _Series([], [], defaultdict(list))
    for row in rows:
        if isinstance(row, TrainRow):
            series.train.append(row)
        elif isinstance(row, RampRow):
            series.ramp.append(row)
        elif isinstance(row, EvaluationRow):
            series.evaluations[row.kind].append(row)
    return series


def _draw(axes: Axes, series: _Series, value: Callable[[TrainRow | EvaluationRow], float], last: str) -> None:
    """Draws a quantity of the training batches and of every evaluated split."""
    values = [value(row) for row in series.train]
    if not all(map(math.isnan, values)):
        axes.plot([row.step for row in series.train], values, color=TRAIN_COLOUR, linewidth=1, label="training batch")
    for split, rows, colour in series.coloured():
        values = [value(row) for row in rows]
        label = f"{split}: {values[-1]:{last}}"
        axes.plot([row.step for row in rows], values, "o-", color=colour, markersize=3, linewidth=1.2, label=label)
    dress(axes)


def _loss(axes: Axes, series: _Series) -> None:
    _draw(axes, series, lambda row: row.loss, ".4f")
    axes.set(xlabel="update")
    # A loss such as minus a log likelihood may be negative.
    if all(row.loss > 0 for rows in (series.train, *series.evaluations.values()) for row in rows):
        logarithmic(axes, "loss")
    else:
        axes.set(ylabel="loss")
    legend(axes, "Loss")


def _accuracy(axes: Axes, series: _Series) -> None:
    _draw(axes, series, _percent, ".2f")
    axes.set(xlabel="update", ylabel="accuracy (%)", ylim=(max(0, _floor(series)), 100.5))
    legend(axes, "Accuracy (%)")


def _rate(axes: Axes, series: _Series) -> None:
    rates = [row.learning_rate for row in series.train]
    # Without a ramp the line needs no label, because the title of the panel names it.
    label = "rate" if series.ramp else None
    axes.plot([row.step for row in series.train], rates, color="black", linewidth=1.2, label=label)
    for number, row in enumerate(series.ramp):
        label = None if number else "batch grows"
        axes.axvline(row.step, color=TRAIN_COLOUR, linewidth=0.8, linestyle=":", label=label)
        axes.annotate(
            f"{row.batch_size}",
            (row.step, 0.02),
            (3, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            rotation=90,
            fontsize=TEXT,
            va="bottom",
        )
    dress(axes)
    axes.set(xlabel="update", ylabel="learning rate", ylim=(0, None))
    legend(axes, "Learning rate")


def _panels(series: _Series) -> list[Callable[[Axes, _Series], None]]:
    """Returns the functions that draw the panels: without that of the accuracy where no split has one."""
    has_accuracy = any(row.accuracy is not None for rows in series.evaluations.values() for row in rows)
    return [_loss, *([_accuracy] * has_accuracy), _rate]


def _percent(row: TrainRow | EvaluationRow) -> float:
    return math.nan if row.accuracy is None else 100 * row.accuracy


def _floor(series: _Series) -> float:
    """Returns the lower end of the accuracy axis, low enough to show the second half of training."""
    ends = [_percent(row) for _, split, _ in series.coloured() for row in split[len(split) // 2 :]]
    return min(ends) - 5 if ends else 0
