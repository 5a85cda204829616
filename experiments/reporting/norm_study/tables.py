"""The tables of the norm study's report, as rows of text."""

import statistics
from collections.abc import Callable, Sequence

from ...records.norm_study import FIXED_OR_NOT, Norm
from ...records.questions.norm import GridRow, RateRow
from .cells import Cell, Grid, Study, cell, half_width
from .figure import norms_of, sizes_of


def updates(rows: Sequence[GridRow], sizes: Sequence[int]) -> tuple[str, ...]:
    """Returns the row with the number of updates of a run, by per-device batch size."""
    given = {row.per_device: row.steps for row in rows}
    return ("updates of a run", *(f"{given[size]}" for size in sizes))


def by_size(cells: Grid, devices: int, text: Callable[[Cell], str]) -> list[tuple[str, ...]]:
    """Returns one row per norm, with one text for each per-device batch size."""
    sizes = sizes_of(cells)
    return [
        (
            norm.name,
            *(text(cells[norm.key, n]) if (norm.key, n) in cells else _absent(norm, n, devices) for n in sizes),
        )
        for norm in norms_of(cells)
    ]


def _absent(norm: Norm, size: int, devices: int) -> str:
    """Returns the text for a cell without runs.

    A dash marks a span longer than the batch, and an equals sign a span that equals the batch or a device's share.
    """
    if norm.span is None:
        return ""
    return "–" if norm.span > size * devices else "=" if norm.span in (size, size * devices) else ""


def score(cell: Cell) -> str:
    """Returns the mean score of a cell with its interval, and the number of failed runs."""
    if not cell.scores:
        return "not finite"
    text = f"{statistics.mean(cell.scores):.1f}"
    # An interval over the surviving runs alone would be biased by their selection.
    if len(cell.scores) > 1 and not cell.failed:
        text += f" ± {half_width(cell.scores):.1f}"
    return text + (f" ({cell.failed} of {cell.failed + len(cell.scores)} not finite)" if cell.failed else "")


def milliseconds(cell: Cell) -> str:
    """Returns the median time of an update in milliseconds."""
    return f"{statistics.median(cell.milliseconds):.0f}" if cell.milliseconds else ""


def rates_head() -> tuple[str, ...]:
    """Returns the heading of the table of learning rates."""
    return ("peak rate", *(f"{norm.rate_key}: {what}" for norm in FIXED_OR_NOT for what in ("accuracy (%)", "shift")))


def rates(study: Study) -> list[tuple[str, ...]]:
    """Returns one row per learning rate: the score and the shift of each kind of statistics."""
    groups = [study.by_rate(norm) for norm in FIXED_OR_NOT]
    return [(f"{rate:g}", *(text for by in groups for text in _rate(by.get(rate, [])))) for rate in groups[0]]


def _rate(group: Sequence[RateRow]) -> tuple[str, str]:
    shifts = [row.shift for row in group if row.shift is not None]
    return score(cell(group)), f"{shifts[0].mean:.2f}, x {shifts[0].std:.2f}" if shifts else ""
