"""The report of a recommendation, from its files alone: lines for a terminal, a figure and a page."""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import _commands, _files
from .._errors import UsageError
from ..records.evidence import Evidence
from ..records.fields import Bounded
from ..records.recommendation import Prediction, Recommendation
from .document import commands, figure, made_on, table
from .recommendation_text import (
    command,
    headline,
    measured,
    predictions,
    reasons,
    settings,
    spent,
)
from .section import moments_of, write_report
from .study_files import StudyFiles
from .style import (
    COLOUR,
    GREY,
    SECOND,
    canvas,
    legend,
    logarithmic,
    sizes_axis,
)

FILE = "recommendation.json"
EXPECT = "What to expect at half, one and two times this size; in brackets, where 19 of 20 runs should lie"
# The band ends at this factor above the middle: a wider band, or one without a bound, would squeeze the rest.
MAX_BAND_FACTOR = 10


def recommendation_lines(result: Recommendation) -> list[str]:
    """Returns the recommendation, the reasons for it and the measured numbers, as lines of text.

    Args:
      result: the recommendation, from `experiments.studies.recommending.run.recommend`.
    """
    evidence, advice = result.evidence, result.advice
    lines = [headline(result), ""]
    if advice is not None:
        rows = [[cell.replace(" to ", "-") for cell in cells] for cells in predictions(advice)]
        first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines += [command(advice), "", *(f"{name:<10}{text}" for name, text in settings(advice, evidence)), ""]
        lines += ["Why", *(f"- {text}" for text in reasons(advice, evidence)), "", f"{EXPECT}:", ""]
        lines += [
            "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
            for name, *cells in rows
        ]
        lines.append("")
    lines += [f"Measured in {spent(result)}", *(f"- {text}" for text in measured(evidence))]
    if evidence.not_measured:
        lines += ["", "Not measured", *(f"- {text}" for text in evidence.not_measured)]
    return lines


class _Points(NamedTuple):
    """One group of measured points in a figure.

    Attributes:
      label: the label in the legend.
      marker: the marker of the points.
      filled: whether the markers are filled.
      points: the batch size and the seconds of each point.
    """

    label: str
    marker: str
    filled: bool
    points: list[tuple[int, float]]


class _Quantity(NamedTuple):
    """A time that the figure shows against the batch size.

    Attributes:
      label: the label of the axis.
      caption: the caption of the figure on the page.
      predicted: a function that returns the predicted time and its interval; None: there is no prediction.
      measured: a function that returns the measured points to show beside the prediction.
    """

    label: str
    caption: str
    predicted: Callable[[Prediction], Bounded | None]
    measured: Callable[[Evidence], list[_Points]]


def _runs(evidence: Evidence) -> list[_Points]:
    def times(reached: bool) -> list[tuple[int, float]]:
        runs = (run for run in evidence.runs if run.reached is reached)
        return [(run.batch_size, run.updates * run.step_seconds) for run in runs if run.step_seconds]

    return [
        _Points("run that reached it", "o", True, times(reached=True)),
        _Points("run cut short", "^", False, times(reached=False)),
    ]


TO_TARGET = _Quantity(
    "seconds to the target",
    "Shaded: where 19 of 20 runs should end. Runs are shown at any learning rate.",
    lambda prediction: prediction.seconds,
    _runs,
)
PER_UPDATE = _Quantity(
    "seconds of an update",
    "Shaded: the 95% interval of the time per update.",
    lambda prediction: prediction.step_seconds,
    lambda evidence: [_Points("measured", "o", True, [(size, seconds) for size, seconds in evidence.step_time])],
)


def _quantity(result: Recommendation) -> _Quantity:
    """Returns the quantity to draw: the time to the target, or the time per update if no run reached the target."""
    has_target = result.advice is not None and TO_TARGET.predicted(result.advice.candidates[0]) is not None
    return TO_TARGET if has_target else PER_UPDATE


def recommendation_figure(folder: str | Path) -> Figure:
    """Draws the predicted time to the target against the batch size, with its interval and the measured runs.

    If no run reached the target, the figure shows the time per update instead.

    Raises:
      UsageError: there is no recommendation in the folder, or it is damaged.
    """
    result = _read(folder)
    quantity, advice = _quantity(result), result.advice
    drawing, (axes,) = canvas()
    sizes = [] if advice is None else _predicted(axes, quantity, advice.candidates)
    for label, marker, filled, points in quantity.measured(result.evidence):
        style = {"color": GREY, "markersize": 4, "markerfacecolor": GREY if filled else "none"}
        if points:
            axes.plot(*zip(*points, strict=True), marker, label=label, **style)
        sizes += [size for size, _ in points]
    if advice is not None:
        axes.axvline(advice.batch_size, color=SECOND, linewidth=1, label=f"recommended: {advice.batch_size:,}")
    sizes_axis(axes, sizes)
    logarithmic(axes, quantity.label)
    legend(axes)
    return drawing


def _predicted(axes: Axes, quantity: _Quantity, candidates: Sequence[Prediction]) -> list[int]:
    """Draws the predictions with their band, and returns their batch sizes."""
    known = [(c.batch_size, values) for c in candidates if (values := quantity.predicted(c)) is not None]
    sizes = [size for size, _ in known]
    middle, low, high = zip(*(values for _, values in known), strict=True)
    high = [
        m * MAX_BAND_FACTOR if h is None else min(h, MAX_BAND_FACTOR * m) for h, m in zip(high, middle, strict=True)
    ]
    axes.fill_between(sizes, low, high, color=COLOUR, alpha=0.15, linewidth=0, label="19 of 20 runs")
    axes.plot(sizes, middle, "-", color=COLOUR, linewidth=1.5, label="predicted")
    return sizes


def write_recommendation_page(folder: str | Path) -> Path:
    """Writes `report.html` into the folder of a recommendation.

    Raises:
      UsageError: there is no recommendation in the folder, or it is damaged.
    """
    return write_report(folder, lambda: _page(folder))


def _page(folder: str | Path) -> tuple[str, list[str]]:
    """Returns the title and the body of the page."""
    result = _read(folder)
    evidence, advice = result.evidence, result.advice
    rows = StudyFiles(folder).rows.values() if (Path(folder) / "results.jsonl").exists() else ()
    parts = [made_on(moments_of(rows)), f"<p><strong>{html.escape(headline(result))}</strong></p>"]
    if advice is not None:
        head, *cells = predictions(advice)
        parts += [
            commands(command(advice)),
            table(("setting", ""), settings(advice, evidence), numbers=False),
            "<h2>Why</h2>",
            _list(reasons(advice, evidence)),
            figure(recommendation_figure(folder), _quantity(result).caption),
            "<h2>What to expect</h2>",
            f"<p>{EXPECT}.</p>",
            table(head, cells, wrap=True),
        ]
    parts += ["<h2>Measured</h2>", _list(measured(evidence))]
    if evidence.not_measured:
        parts += ["<h2>Not measured</h2>", _list(evidence.not_measured)]
    parts.append(f"<p>{spent(result)} were spent.</p>")
    options = evidence.options
    trained = options.get("problem") or f"{options.get('model', 'simple_cnn')} on {options['dataset']}"
    return f"Which batch size for {trained}?", parts


def _list(texts: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"


def _read(folder: str | Path) -> Recommendation:
    path = Path(folder) / FILE
    if not path.exists():
        raise UsageError(f"{folder} holds no {FILE}; run {_commands.program('recommend')} with that --workdir")
    return _files.read_json(path, Recommendation)
