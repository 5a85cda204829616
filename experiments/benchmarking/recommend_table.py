"""Markdown tables that compare recommendations with exhaustive grids, from the rows of `recommend_suite`."""

import math
from collections.abc import Sequence

from ..records.comparison import ComparedSetting, Comparison
from ..records.fields import Bounded
from .recommend_compare import mean_ratio

_SETTINGS = (
    "problem",
    "best of the grid",
    "recommended",
    "predicted (95%)",
    "its time over the best (95%)",
    "cost over the grid's",
)
_PREDICTIONS = ("problem", "batch size, not tried", "updates predicted (95%)", "measured (95%)", "off by")

MISSED = "missed by half of the seeds or more"
# As near as a prediction should be.
NEAR = 0.2


def table(rows: Sequence[Comparison]) -> list[str]:
    """Returns two tables in Markdown, of times to the target and of predictions, with what sums them up between."""
    predicted = [
        (
            row.problem,
            f"{p.batch_size}",
            _bounded(p.predicted, ",.0f"),
            MISSED if p.measured is None else _bounded(p.measured, ",.0f"),
            "" if p.off is None else f"{p.off:+.0%}",
        )
        for row in rows
        for p in row.predictions
    ]
    ratios = [row.ratio for row in rows if row.ratio is not None]
    mean = []
    if len(ratios) > 1:
        mean = [f"The geometric mean of the {len(ratios)} ratios is {_bounded(mean_ratio(ratios), '.2f')}.", ""]
    return [
        *markdown(_SETTINGS, [_compared(row) for row in rows]),
        "",
        *mean,
        *_inside(rows),
        *markdown(_PREDICTIONS, predicted),
        *_near(rows),
    ]


def _inside(rows: Sequence[Comparison]) -> list[str]:
    """Returns a line on how many runs of recommended settings end inside the predicted interval of their time."""
    there = runs = missed = 0
    for setting in (row.recommended for row in rows):
        if setting is None or setting.predicted is None or setting.step_seconds is None:
            continue
        _, low, high = setting.predicted
        seconds = [count * setting.step_seconds for count in setting.updates if count is not None]
        there += sum((low or 0) <= one <= (math.inf if high is None else high) for one in seconds)
        runs, missed = runs + len(setting.updates), missed + len(setting.updates) - len(seconds)
    if not runs:
        return []
    return [
        f"Of the {runs} single runs of the recommended settings {there} end inside the predicted interval, "
        f"{there / runs:.0%}; {missed} of the others never reached the target.",
        "",
    ]


def _near(rows: Sequence[Comparison]) -> list[str]:
    """Returns a line on how many predictions are near, and how many intervals hold what was measured."""
    there = [p for row in rows for p in row.predictions]
    if not there:
        return []
    near = sum(p.off is not None and abs(p.off) <= NEAR for p in there)
    return [
        "",
        f"Predictions within {NEAR:.0%} of what was measured: {near} of {len(there)}. Intervals that hold it: "
        f"{sum(p.holds for p in there)} of {len(there)}.",
    ]


def _compared(row: Comparison) -> tuple[str, ...]:
    spent, grid = row.recommendation.seconds, row.grid.seconds
    missing = "; ".join(row.recommendation.not_measured)
    return (
        f"{row.problem}, loss {row.target:g}" if row.goal == "loss" else f"{row.problem}, {row.target:.1%}",
        _short(row.best),
        f"none; not measured: {missing}" if row.recommended is None else _short(row.recommended),
        _predicted(row.recommended),
        "not measured" if row.ratio is None else _bounded(row.ratio, ".2f"),
        f"{spent:,.0f} s of {grid:,.0f} s, {spent / grid:.1%}",
    )


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table in Markdown, from its head and its rows."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body)]


def _short(found: ComparedSetting) -> str:
    setting = f"{found.batch_size} at {found.rate:g}"
    if found.seconds is None or found.step_seconds is None:
        return f"{setting}: {MISSED}"
    missed = sum(count is None for count in found.updates)
    updates = found.seconds / found.step_seconds
    return f"{setting}: {found.seconds:.3g} s, {updates:,.0f} updates of {1e3 * found.step_seconds:.1f} ms" + (
        f" (medians: {missed} of {len(found.updates)} runs missed the target)" if missed else ""
    )


def _predicted(setting: ComparedSetting | None) -> str:
    if setting is None:
        return ""
    return "not known" if setting.predicted is None else _bounded(setting.predicted, ".3g", " s")


def _bounded(found: Bounded, digits: str, unit: str = "") -> str:
    middle, low, high = ("no bound" if end is None else format(end, digits) for end in found)
    return f"{middle}{unit} ({low} to {high})"
