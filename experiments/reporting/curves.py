"""The learning curves of a run."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import _files, records
from experiments._errors import UsageError
from experiments.records.studies import StudyRow
from experiments.reporting.study_files import StudyFiles
from experiments.reporting.style import TEXT, canvas, dress, legend, logarithmic

TRAIN_COLOUR, TEST_COLOURS = "#8a93a6", ("#0072b2", "#d55e00", "#009e73")


def read_rows(path: Path) -> tuple[list[dict], int]:
    """The rows of a run's metrics, and how many lines were left out."""
    if not path.exists():
        raise UsageError(f"{path} is not there")
    return _files.read_rows(path, records.metrics_row)


def training_curves(workdir: str | Path) -> Figure:
    """Loss, accuracy and learning rate of a run against its updates.

    Args:
      workdir: the folder of the run, which holds `metrics.jsonl`.

    Returns:
      A figure of three panels; save it with `write_svg(figure, "curves.svg")`.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    series = _series(workdir)
    for axes, draw in zip(figure.subplots(1, 3), _PANELS, strict=True):
        draw(axes, series)
    return figure


def curve_panels(workdir: str | Path) -> list[Figure]:
    """The panels of `training_curves`, each a figure of its own, which a page arranges by its width."""
    figures, series = [], _series(workdir)
    for draw in _PANELS:
        drawing, (axes,) = canvas()
        draw(axes, series)
        figures.append(drawing)
    return figures


def _series(workdir: str | Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of a run by kind, without those of the noise, whose scale is that of a study."""
    rows, _ = read_rows(Path(workdir) / "metrics.jsonl")
    series = defaultdict(list)
    for row in rows:
        series[row["kind"]].append(row)
    series.pop("noise", None)
    return series


def _evaluated(series: dict[str, list[dict[str, Any]]]) -> list[tuple[str, list[dict[str, Any]], str]]:
    """Name, rows and colour of each evaluated split."""
    splits = ((name, rows) for name, rows in series.items() if name not in ("train", "ramp"))
    return [(name, rows, colour) for (name, rows), colour in zip(splits, TEST_COLOURS, strict=False)]


def _draw(axes: Axes, series: dict[str, list[dict[str, Any]]], name: str, factor: float, last: str) -> None:
    """A quantity of the training batches and of every evaluated split."""
    train = series.get("train", [])
    at, values = [row["step"] for row in train], [factor * row[name] for row in train]
    axes.plot(at, values, color=TRAIN_COLOUR, linewidth=1, label="training batch")
    for split, rows, colour in _evaluated(series):
        values = [factor * row[name] for row in rows]
        label = f"{split}: {values[-1]:{last}}"
        axes.plot([row["step"] for row in rows], values, "o-", color=colour, markersize=3, linewidth=1.2, label=label)
    dress(axes)


def _loss(axes: Axes, series: dict[str, list[dict[str, Any]]]) -> None:
    _draw(axes, series, "loss", 1, ".4f")
    axes.set(xlabel="update")
    logarithmic(axes, "loss")
    legend(axes, "Loss")


def _accuracy(axes: Axes, series: dict[str, list[dict[str, Any]]]) -> None:
    _draw(axes, series, "accuracy", 100, ".2f")
    axes.set(xlabel="update", ylabel="accuracy (%)", ylim=(max(0, _floor(series)), 100.5))
    legend(axes, "Accuracy (%)")


def _rate(axes: Axes, series: dict[str, list[dict[str, Any]]]) -> None:
    train = series.get("train", [])
    rates, ramp = [row["learning_rate"] for row in train], series.get("ramp", [])
    # Alone, it is what the title says.
    axes.plot([row["step"] for row in train], rates, color="black", linewidth=1.2, label="rate" if ramp else None)
    for number, row in enumerate(ramp):
        label = None if number else "batch grows"
        axes.axvline(row["step"], color=TRAIN_COLOUR, linewidth=0.8, linestyle=":", label=label)
        axes.annotate(
            f"{row['batch_size']}",
            (row["step"], 0.02),
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


_PANELS = (_loss, _accuracy, _rate)


def _floor(series) -> float:
    """Where the accuracy axis starts: low enough for the second half of training, so that the end can be read."""
    ends = [100 * row["accuracy"] for _, split, _ in _evaluated(series) for row in split[len(split) // 2 :]]
    return min(ends) - 5 if ends else 0


def rows_left_out(folder: str | Path) -> int:
    """Returns how many lines of a study's rows are not whole rows."""
    return StudyFiles(folder).lines_left_out


def read_study(folder: str | Path) -> dict[str, StudyRow]:
    """Returns the last row of each key of a study, with those that have an error.

    Raises:
      UsageError: the folder holds no rows.
    """
    return StudyFiles(folder).rows
