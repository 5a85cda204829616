"""Runs that differ by their seeds alone: their accuracies as a figure and as a table."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from ..records.studies import StudyRow
from .document import table
from .style import COLOUR, SECOND, TEXT, canvas, legend

# Runs by a name of what they have in common.
Groups = Mapping[str, Sequence[StudyRow]]


class Spread(NamedTuple):
    """Accuracies of several seeds in percent; not numbers if no loss was finite."""

    mean: float
    least: float
    greatest: float


def accuracy(row: StudyRow) -> float:
    """Returns the accuracy in percent, on the split that the run is judged by; NaN where the loss was not finite."""
    return math.nan if row.summary is None else 100 * row.summary.result.known_accuracy


def by_seed(rows: Iterable[StudyRow]) -> dict[str, list[StudyRow]]:
    """Groups the runs whose keys differ by the seed alone, without those that failed other than by their loss."""
    groups = defaultdict(list)
    for row in rows:
        if row.is_result:
            groups[row.key.rpartition("-seed")[0]].append(row)
    return dict(groups)


def label_of(rows: Sequence[StudyRow]) -> str:
    """Returns the name of a group of runs."""
    return rows[0].label or rows[0].key.rpartition("-seed")[0]


def spread_of(rows: Sequence[StudyRow]) -> Spread:
    """Returns the spread of the seeds whose loss was finite."""
    values = [accuracy(row) for row in rows if row.summary is not None] or [math.nan]
    return Spread(statistics.mean(values), min(values), max(values))


def mean_of(rows: Sequence[StudyRow]) -> float:
    """Returns the mean accuracy in percent of the seeds whose loss was finite."""
    return spread_of(rows).mean


def seeds_figure(groups: Groups) -> Figure:
    """Draws the accuracies of the seeds of each group, and their mean, one group below the other."""
    upward = list(groups.values())[::-1]
    drawing, (axes,) = canvas(0.36 * len(upward) + 1.2)
    named: dict[str, str] = {}
    for place, rows in enumerate(upward):
        values = [accuracy(row) for row in rows if row.summary is not None]
        if not values:
            axes.annotate("not finite", (0.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=TEXT)
            continue
        label = None if "seed" in named else named.setdefault("seed", "a seed")
        axes.plot(values, [place] * len(values), "o", color=COLOUR, alpha=0.6, markersize=4, label=label)
        if len(values) > 1:
            label = None if "mean" in named else named.setdefault("mean", "mean")
            axes.plot(mean_of(rows), place, "|", color=SECOND, markersize=12, markeredgewidth=2, label=label)
        at = (max(values), place)
        axes.annotate(f"{mean_of(rows):.2f}", at, (8, 0), textcoords="offset points", va="center", fontsize=TEXT)
    axes.set_yticks(range(len(upward)), [label_of(rows) for rows in upward], fontsize=TEXT)
    axes.set(xlabel="test accuracy (%)")
    axes.margins(x=0.25)
    axes.set_ylim(-0.6, len(upward) - 0.4)
    axes.grid(visible=False, axis="y")
    legend(axes)
    return drawing


def seeds_caption(groups: Groups) -> str:
    """Returns what a dot of `seeds_figure` is."""
    return "Each dot is a seed." if _most_seeds(groups) > 1 else "One seed each."


def seeds_table(title: str, groups: Groups) -> str:
    """Returns a table of accuracies, updates and seconds, one row per group.

    Args:
      title: the title of the first column, the names of the groups.
      groups: the runs.
    """
    # The mean, least and greatest of one seed are the same number.
    single = _most_seeds(groups) == 1
    accuracies = ("accuracy (%)",) if single else ("mean (%)", "least", "greatest")
    return table(
        (title, "seeds", "not finite", *accuracies, "updates", "computing, s"),
        [(label_of(group), *_cells(group, single=single)) for group in groups.values()],
    )


def _most_seeds(groups: Groups) -> int:
    return max(len(group) for group in groups.values())


def _cells(group: Sequence[StudyRow], *, single: bool) -> tuple[str, ...]:
    ended = [row.summary for row in group if row.summary is not None]
    counts = str(len(group)), str(len(group) - len(ended))
    if not ended:
        return *counts, *["-"] * (3 if single else 5)
    computing = statistics.median(summary.seconds["compute"] for summary in ended)
    accuracies = spread_of(group)[:1] if single else spread_of(group)
    return *counts, *(f"{v:.2f}" for v in accuracies), f"{ended[0].updates:,}", f"{computing:.0f}"
