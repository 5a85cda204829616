"""Question 8: the critical batch size, from the study's files alone."""

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..records.questions.convergence import Analysis, StepsFit
from ..records.studies import StudyRow
from .document import figure, table
from .section import Section, interval
from .study_files import Source, StudyFiles
from .style import (
    COLOUR,
    GREY,
    MISSED,
    MISSED_LABEL,
    SECOND,
    canvas,
    legend,
    logarithmic,
    number,
    sizes_axis,
)
from .to_target import Way, dots, reached_target, read, runs, target_of

# What others found for MNIST, in the units of the axis.
PUBLISHED = (
    ((900, 900), "noise scale, McCandlish et al. 2018"),
    ((2, 32), "best at fixed epochs, Masters and Luschi 2018"),
)
PUBLISHED_DATASET = "mnist"
REGIMES = ("perfect scaling", "diminishing returns", "no gain")
PUBLISHED_NOTE = (
    "Published: the average simple noise scale of MNIST, 900, of McCandlish et al. (arXiv 1812.06162), as a repository "
    "that reproduces it cites it; and the range of the best batch sizes at fixed epochs, 2 to 32, of other data sets, "
    "of Masters and Luschi (arXiv 1804.07612). Both are quoted at second hand."
)
_RUN = Way("tuned", COLOUR, "o", "run")


def convergence_figure(study: Source) -> Figure:
    """Draws updates to the target against batch size, with the rate tuned: every run, the fit and its three regimes.

    Runs that did not reach the target are open triangles at the updates that they were given. Published results stand
    on the axis of batch sizes.

    Args:
      study: the study, or its folder.

    Raises:
      UsageError: the part `convergence` of the study has not been run.
    """
    found, rows = read(study)
    drawing, (axes,) = canvas(5.2)
    shown = runs(rows, "tuned", found)
    sizes = [row.batch_size for row in shown]
    dots(axes, shown, "updates", _RUN)
    if found.fit is not None and 0 < found.fit.critical_batch_size < math.inf:
        _draw_fit(axes, found.fit, shown, found.confidence)
    sizes_axis(axes, sizes)
    logarithmic(axes, f"updates to {target_of(found)}")
    if _is_published(shown):
        _publish(axes)
    legend(axes)
    return drawing


def _draw_fit(axes: Axes, fit: StepsFit, shown: Sequence[StudyRow], confidence: float) -> None:
    sizes = [row.batch_size for row in shown]
    low, high = min(sizes), max(sizes)
    grid = [low * (high / low) ** (i / 60) for i in range(61)]
    critical = fit.critical_batch_size
    axes.plot(grid, [_fitted(fit, b) for b in grid], "-", color=SECOND, linewidth=1.5, label="fit")
    ends = [_ends(fit, b) for b in grid]
    band: dict[str, Any] = {"color": SECOND, "alpha": 0.15, "linewidth": 0, "zorder": 0.5}
    below, above = zip(*ends, strict=True)
    axes.fill_between(grid, below, above, label=f"its interval ({confidence:.0%})", **band)
    if wrong := missed(fit, shown):
        axes.plot(list(wrong), list(wrong.values()), **MISSED, label=MISSED_LABEL)
    # As McCandlish et al. and Shallue et al. divide it: far below the critical batch size, about it, far above.
    ends = [low / 1.4, *(min(max(critical * factor, low), high) for factor in (1 / 3, 3)), high * 1.4]
    for (start, end), shade, name in zip(itertools.pairwise(ends), (0.06, 0.2, 0.4), REGIMES, strict=True):
        if end > start:
            axes.axvspan(start, end, color=GREY, alpha=shade, linewidth=0, zorder=0, label=name)
    label = f"critical batch size: {number(critical)}"
    axes.axvline(critical, color="black", linewidth=1, linestyle="--", label=label)


def _fitted(fit: StepsFit, batch_size: float) -> float:
    return fit.min_steps * (1 + fit.critical_batch_size / batch_size)


def _ends(fit: StepsFit, batch_size: float) -> tuple[float, float]:
    """Returns the interval of the curve at a batch size, as wide as those of its two parts together.

    That is generous, since the two are not independent.
    """
    least, examples = fit.intervals.min_steps, fit.intervals.min_examples
    return least[0] + examples[0] / batch_size, least[1] + examples[1] / batch_size


def missed(fit: StepsFit, shown: Sequence[StudyRow]) -> dict[int, float]:
    """Returns the median updates of the sizes whose median run is further from the fit than its interval reaches.

    A run that was cut short counts as more updates than any.
    """
    groups = defaultdict(list)
    for row in shown:
        if row.summary is not None:
            groups[row.batch_size].append(row.summary.updates if reached_target(row) else math.inf)
    wrong = {}
    for size, updates in sorted(groups.items()):
        middle = statistics.median(updates)
        low, high = _ends(fit, size)
        if math.isfinite(middle) and not low <= middle <= high:
            wrong[size] = middle
    return wrong


def critical_sections(study: StudyFiles) -> list[Section]:
    """Returns the section, if the part was run."""
    if study.analysis("convergence", Analysis) is None:
        return []
    found, rows = read(study)
    caption = "The regimes meet at a third of the critical batch size and at three times it."
    fit = found.fit
    if fit is not None and (wrong := missed(fit, runs(rows, "tuned", found))):
        sizes = " and ".join(f"{size:,}" for size in wrong)
        caption += f" The fit misses the runs at {sizes} by more than its interval of {found.confidence:.0%}."
    critical = [figure(convergence_figure(study), caption)]
    if _is_published(rows):
        critical.append(f"<p>{PUBLISHED_NOTE}</p>")
    if fit is not None:
        named = (
            ("critical batch size", fit.critical_batch_size, fit.intervals.critical_batch_size),
            ("fewest updates", fit.min_steps, fit.intervals.min_steps),
            ("fewest examples", fit.min_examples, fit.intervals.min_examples),
        )
        cells = [(name, number(value), interval(ends)) for name, value, ends in named]
        critical.append(table(("fit", "value", f"interval ({found.confidence:.0%})"), cells))
    return [Section(8, "Where is the critical batch size?", critical_answer(found), critical)]


def _is_published(rows: Sequence[StudyRow]) -> bool:
    """Returns whether there are published results on the data of a run."""
    return any(row.options.get("dataset") == PUBLISHED_DATASET for row in rows)


def _publish(axes: Axes) -> None:
    """Draws published results along the bottom, where they meet the axis of batch sizes."""
    low, high = axes.get_xlim()
    least, most = axes.get_ylim()
    # Room below the runs.
    axes.set_ylim(least / (most / least) ** 0.12, most)
    style: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "color": "black", "solid_capstyle": "butt"}
    for height, (ends, text) in zip((0.03, 0.07), PUBLISHED, strict=True):
        if ends[1] < low or ends[0] > high:
            continue
        mark: dict[str, Any] = {"marker": "D", "markersize": 5} if ends[0] == ends[1] else {"linewidth": 4}
        axes.plot([max(ends[0], low), min(ends[1], high)], [height] * 2, label=text, **style, **mark)


def critical_answer(found: Analysis) -> str:
    """Returns the critical batch size with its interval, and whether it may lie beyond the sizes that were tried."""
    fit = found.fit
    if fit is None:
        return f"There is no fit: {found.no_fit}."
    critical, (low, high) = fit.critical_batch_size, fit.intervals.critical_batch_size
    sizes = [tuned.batch_size for tuned in found.tuned]
    ends = f"{interval((low, high))}, {found.confidence:.0%}"
    bound = [f"below {min(sizes):,}"] * (low < min(sizes)) + [f"above {max(sizes):,}"] * (high > max(sizes))
    beyond = f" It may lie {' or '.join(bound)}, beyond the sizes that were tried." if bound else ""
    if critical == 0:
        return f"The fit puts it at 0 ({ends}): a larger batch takes no fewer updates.{beyond}"
    if not math.isfinite(critical):
        return f"The fit gives none ({ends}): twice the batch halves the updates.{beyond}"
    return (
        f"At {number(critical)} examples ({ends}): there a run takes twice the fewest updates, "
        f"{number(fit.min_steps)}, and twice the fewest examples, {number(fit.min_examples)}; well below it "
        f"twice the batch halves the updates, well above it a larger batch buys nothing.{beyond}"
    )
