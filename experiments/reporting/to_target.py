"""Runs to a target accuracy, as the questions of the updates to it and of the critical batch size show them."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

from matplotlib.axes import Axes

from ..records.questions.convergence import Analysis
from ..records.runs import Summary
from ..records.studies import StudyRow
from .study_files import Source, opened
from .style import COLOUR, SECOND

Kind = Literal["tuned", "fixed"]
Quantity = Literal["epochs", "updates"]


class Aim(Protocol):
    """An analysis of runs to a target."""

    @property
    def target(self) -> float:
        """The accuracy, as a share of 1, or the loss."""
        ...

    @property
    def goal(self) -> str:
        """The kind of the target, "accuracy" or "loss"."""
        ...


class Way(NamedTuple):
    """A way to choose the rate of a run.

    Attributes:
      kind: the kind of the rows.
      colour: the colour of the marks.
      marker: the marker of the runs that reached the target.
      label: in a legend.
    """

    kind: Kind
    colour: str
    marker: str
    label: str


WAYS = (Way("tuned", COLOUR, "o", "rate tuned at each size"), Way("fixed", SECOND, "s", "one rate for all"))


def read(study: Source) -> tuple[Analysis, list[StudyRow]]:
    """Returns the analysis of the runs to the target, and their rows.

    Raises:
      UsageError: they have not been run.
    """
    study = opened(study)
    return study.needed("convergence", Analysis), study.rows_of("convergence")


def runs(rows: Sequence[StudyRow], kind: Kind, found: Analysis) -> list[StudyRow]:
    """Returns the runs to show, at one rate or at the best rate of each size, with those whose loss was not finite."""
    best = {(tuned.batch_size, tuned.rate) for tuned in found.tuned}
    return [
        row
        for row in rows
        if row.kind == kind
        and row.is_result
        and row.seed in found.seeds
        and (kind == "fixed" or (row.batch_size, row.learning_rate) in best)
    ]


def reached_target(row: StudyRow) -> bool:
    """Returns whether a run ended because it reached the target."""
    return row.summary is not None and row.summary.reached_after is not None


def dots(axes: Axes, shown: Sequence[StudyRow], unit: Quantity, way: Way) -> None:
    """Draws a mark for each run: a triangle if it did not reach the target, a cross at the top without a finite loss.

    Args:
      axes: to draw on.
      shown: the runs.
      unit: the field of the summary that is drawn upward.
      way: colour, marker and label.
    """
    top = axes.get_xaxis_transform()
    style: dict[str, Any] = {"color": way.colour, "linestyle": "none"}
    looks: tuple[tuple[bool, str, dict[str, Any]], ...] = (
        (True, way.label, {"marker": way.marker, "alpha": 0.7, "markersize": 5}),
        (False, f"{way.label}: target not reached", {"marker": "^", "markerfacecolor": "none"}),
    )
    for reached, named, look in looks:
        if rows := [row for row in shown if row.summary is not None and reached_target(row) == reached]:
            sizes = [row.batch_size for row in rows]
            axes.plot(sizes, [_spent(row.ended, unit) for row in rows], label=named, **style, **look)
    if failed := [row.batch_size for row in shown if row.summary is None]:
        named = f"{way.label}: loss not finite"
        axes.plot(failed, [0.97] * len(failed), marker="x", transform=top, label=named, **style)


def _spent(summary: Summary, unit: Quantity) -> float:
    return summary.share_to_target * (summary.epochs if unit == "epochs" else summary.updates)


def target_of(found: Aim) -> str:
    """Returns the target as words in a sentence: a share in percent, or a loss."""
    return f"a loss of {found.target:g}" if found.goal == "loss" else f"{100 * found.target:g}%"
