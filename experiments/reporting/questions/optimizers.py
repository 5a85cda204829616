"""Question 10: which optimizer bears which batch size, from the study's files alone."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...records.questions.convergence import StepsFit
from ...records.questions.optimizers import Analysis
from ...records.studies import StudyRow
from ..document import figure, table
from ..question import Report
from ..section import Section, interval
from ..seeds import accuracy
from ..study_files import Source, StudyFiles, opened
from ..style import MARKS, PALETTE, TEXT, canvas, legend, logarithmic, number, optimizer_name, sizes_axis
from ..to_target import reached_target, target_of


def to_target_figure(study: Source) -> Figure:
    """Draws updates and computing time to the target against batch size: a line through medians, and every run.

    A run on the whole training set at once is a star.

    Args:
      study: the study, or its folder.

    Raises:
      UsageError: the part `optimizers` of the study has not been run.
    """
    found, rows = _read(study)
    drawing, (updates, seconds) = canvas(3.1, panels=2)
    _lines(updates, found, rows, "optimizer", lambda row: row.ended.share_to_target * row.ended.updates)
    logarithmic(updates, f"updates to {target_of(found)}")
    _lines(seconds, found, rows, "optimizer", _seconds, is_named=False)
    logarithmic(seconds, "computing (s)")
    legend(updates, columns=2)
    return drawing


def equal_epochs_figure(study: Source) -> Figure:
    """Draws test accuracy at equal epochs against batch size: a line through means, and every run.

    Args:
      study: the study, or its folder.

    Raises:
      UsageError: the part `optimizers` of the study has not been run.
    """
    found, rows = _read(study)
    drawing, (axes,) = canvas(3.1)
    _lines(axes, found, rows, "equal", accuracy, middle=statistics.mean)
    axes.set(ylabel="test accuracy (%)")
    legend(axes, columns=2)
    return drawing


def optimizer_sections(study: StudyFiles) -> list[Section]:
    """Returns the section, if the part was run."""
    if study.analysis("optimizers", Analysis) is None:
        return []
    found, rows = _read(study)
    parts = [
        figure(
            to_target_figure(study),
            "Lines join medians, marks are runs, a star is the whole training set at once. A run that did not reach "
            "the target is an open triangle, at what it was given.",
        ),
        table(
            ("optimizer", "batch size", "best rate", "runs", "reached", "updates", "computing, s", "accuracy, %"),
            _cells(found, rows),
        ),
        f"<p>Of each optimizer {found.trials} rates at each batch size, with one seed. A best rate on the edge of "
        "those tried is marked with *. Updates and seconds are medians of the runs that reached the target, at a "
        "constant rate, without warmup, weight decay or label smoothing. Accuracies are means at equal epochs, with "
        f"the same rate falling to 0, or constant where the optimizer averages. Norm of all runs: {_norms(rows)}.</p>",
        table(("optimizer", "critical batch size", "interval", "least updates", "least examples"), _fits(found)),
    ]
    if any(row.kind == "equal" and row.summary is not None for row in rows):
        parts.insert(1, figure(equal_epochs_figure(study), f"After {_epochs(rows)} epochs. Lines join means."))
    return [Section(10, "Which optimizer bears which batch size?", answer(found, rows), parts)]


def answer(found: Analysis, rows: Sequence[StudyRow]) -> str:
    """Returns up to which batch size each optimizer keeps its data efficiency, and what comes of a line search."""
    known = [(one.optimizer, fit) for one in found.fits if (fit := one.fit) is not None and _is_bounded(fit)]
    known.sort(key=lambda one: -one[1].critical_batch_size)
    said = [
        f"{optimizer_name(name)} {number(fit.critical_batch_size)} ({interval(fit.intervals.critical_batch_size)})"
        for name, fit in known
    ]
    unknown = [optimizer_name(one.optimizer) for one in found.fits if one.optimizer not in dict(known)]
    sentences = []
    if said:
        sentences.append(
            f"On the way to {target_of(found)}, the batch size at which a run takes twice the least examples is, with "
            f"{100 * found.confidence:g}% intervals: {'; '.join(said)}."
        )
    if unknown:
        sentences.append(f"It cannot be told for {', '.join(unknown)}.")
    for row in rows:
        if row.kind == "full" and row.summary is not None:
            reached = row.ended.reached_after
            what = (
                f"reaches it after {reached} updates"
                if reached
                else f"does not reach it within {row.ended.updates} updates"
            )
            sentences.append(f"{optimizer_name(_optimizer(row))} on all {row.batch_size:,} examples at once {what}.")
    return " ".join(sentences) or "Nothing has been run."


def _read(study: Source) -> tuple[Analysis, list[StudyRow]]:
    study = opened(study)
    return study.needed("optimizers", Analysis), study.rows_of("optimizers")


def _is_bounded(fit: StepsFit) -> bool:
    """Returns whether the runs say anything about the critical batch size."""
    low, high = fit.intervals.critical_batch_size
    return low > 0 or math.isfinite(high)


def _optimizer(row: StudyRow) -> str:
    return str(row.options["optimizer"])


def _seconds(row: StudyRow) -> float:
    return row.ended.share_to_target * row.ended.seconds["compute"]


def _norms(rows: Sequence[StudyRow]) -> str:
    return " or ".join(sorted({str(row.options.get("norm", "batch")) for row in rows}))


def _epochs(rows: Sequence[StudyRow]) -> str:
    found = {row.ended.epochs for row in rows if row.kind == "equal" and row.summary is not None}
    return " or ".join(number(value) for value in sorted(found))


def _final(found: Analysis, rows: Sequence[StudyRow], kind: str) -> dict[str, dict[int, list[StudyRow]]]:
    """Returns the runs that ended at the best rates, by optimizer and rising batch size."""
    best = {(tuned.optimizer, tuned.batch_size): tuned.rate for tuned in found.tuned}
    groups: dict[str, dict[int, list[StudyRow]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted((row for row in rows if row.kind == kind), key=lambda row: row.batch_size):
        place = _optimizer(row), row.batch_size
        if row.summary is not None and row.seed in found.seeds and best.get(place) == row.learning_rate:
            groups[place[0]][place[1]].append(row)
    return groups


def _lines(
    axes: Axes,
    found: Analysis,
    rows: Sequence[StudyRow],
    kind: str,
    value: Callable[[StudyRow], float],
    *,
    middle: Callable[[Sequence[float]], float] = statistics.median,
    is_named: bool = True,
) -> None:
    sizes: list[int] = []
    groups = _final(found, rows, kind)
    for place, optimizer in enumerate(one.optimizer for one in found.fits):
        look: dict[str, Any] = {"color": PALETTE[place % len(PALETTE)], "marker": MARKS[place % len(MARKS)]}
        shown = {
            size: [value(row) for row in runs if kind != "optimizer" or reached_target(row)]
            for size, runs in groups.get(optimizer, {}).items()
        }
        shown = {size: values for size, values in shown.items() if values}
        for size, runs in groups.get(optimizer, {}).items():
            if missed := [value(row) for row in runs if kind == "optimizer" and not reached_target(row)]:
                sizes.append(size)
                open_ = {"color": look["color"], "marker": "^", "markerfacecolor": "none"}
                axes.plot([size] * len(missed), missed, linestyle="none", markersize=5, **open_)
        for size, values in shown.items():
            sizes.append(size)
            axes.plot([size] * len(values), values, linestyle="none", alpha=0.4, markersize=4, **look)
        if shown:
            middles = [middle(values) for values in shown.values()]
            named = optimizer_name(optimizer) if is_named else None
            axes.plot(list(shown), middles, linestyle="-", linewidth=1.3, markersize=5, label=named, **look)
    for row in rows:
        if kind == "optimizer" and row.kind == "full" and reached_target(row):
            sizes.append(row.batch_size)
            named = f"{optimizer_name(_optimizer(row))}, all at once" if is_named else None
            axes.plot([row.batch_size], [value(row)], "*", color="black", markersize=9, label=named)
    sizes_axis(axes, sizes)
    axes.xaxis.label.set_fontsize(TEXT)


def _cells(found: Analysis, rows: Sequence[StudyRow]) -> list[tuple[str, ...]]:
    to_target, equal = _final(found, rows, "optimizer"), _final(found, rows, "equal")
    cells = []
    for tuned in found.tuned:
        runs = to_target.get(tuned.optimizer, {}).get(tuned.batch_size, [])
        reached = [row for row in runs if reached_target(row)]
        epochs = equal.get(tuned.optimizer, {}).get(tuned.batch_size, [])
        spent = ("", "")
        if reached:
            updates = statistics.median(row.ended.share_to_target * row.ended.updates for row in reached)
            spent = f"{updates:,.0f}", number(statistics.median(map(_seconds, reached)))
        cells.append(
            (
                optimizer_name(tuned.optimizer),
                f"{tuned.batch_size:,}",
                "none" if tuned.rate is None else f"{tuned.rate:g}{'*' if tuned.on_edge else ''}",
                str(len(runs)),
                str(len(reached)),
                *spent,
                f"{statistics.mean(map(accuracy, epochs)):.2f}" if epochs else "",
            )
        )
    for row in rows:
        if row.kind == "full" and row.summary is not None:
            has_reached = reached_target(row)
            spent = (f"{row.ended.reached_after:,}", number(_seconds(row))) if has_reached else ("", "")
            at = (optimizer_name(_optimizer(row)), f"{row.batch_size:,}", "line search")
            cells.append((*at, "1", str(int(has_reached)), *spent, ""))
    return cells


def _fits(found: Analysis) -> list[tuple[str, ...]]:
    cells = []
    for one in found.fits:
        if one.fit is None:
            cells.append((optimizer_name(one.optimizer), f"none: {one.no_fit}", "", "", ""))
        else:
            fit = one.fit
            cells.append(
                (
                    optimizer_name(one.optimizer),
                    number(fit.critical_batch_size),
                    interval(fit.intervals.critical_batch_size),
                    number(fit.min_steps),
                    number(fit.min_examples),
                )
            )
    return cells


REPORT = Report(
    order=100,
    sections=(optimizer_sections,),
    pictures={"optimizers.svg": to_target_figure, "optimizers-epochs.svg": equal_epochs_figure},
)
