"""Question 9: a batch that grows with the gradient noise; from the study's files alone."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.reporting.document import figure, table
from experiments.reporting.section import Section, rows_of
from experiments.reporting.style import COLOUR, GREY, SECOND, canvas, legend, logarithmic

# Wide under narrow, so that lines that lie upon each other are all seen.
_STYLES = ((GREY, "-", 3.0), (SECOND, "--", 1.6), (COLOUR, "-", 1.2))
# In words what the flags of a run say.
_WAYS = {"--batch_ramp=auto": "batch follows the noise scale"}


def ramp_figure(folder: str | Path) -> Figure:
    """Test error by update, and the batch size by epoch, of the ways to let the noise fall; a line is a seed."""
    groups = _ways(rows_of(folder, "ramp"))
    drawing, (error, size) = canvas(3.1, panels=2)
    for (colour, style, width), (label, rows) in zip(_STYLES, groups.items(), strict=False):
        for number, row in enumerate(rows):
            name = None if number else label
            updates, accuracy, _ = zip(*row["course"]["evaluations"], strict=True)
            epochs = range(1, len(updates) + 1)
            look: dict[str, Any] = {"color": colour, "linestyle": style, "linewidth": width}
            error.plot(updates, [100 * (1 - a) for a in accuracy], label=name, **look)
            size.step([0, *epochs], [_size(row, step) for step in (1, *updates)], label=name, **look)
    error.set(xlabel="updates")
    logarithmic(error, "test error (%)")
    legend(error, "Test error by update")
    size.set(xlabel="epochs")
    logarithmic(size, "global batch size")
    legend(size, "Batch size by epoch")
    return drawing


def ramp_sections(folder: str | Path) -> list[Section]:
    """The section, if it has been run."""
    groups = _ways(rows_of(folder, "ramp"))
    if not groups:
        return []
    cells = [_cells(label, rows) for label, rows in groups.items()]
    head = ("", "seeds", "mean accuracy", "least", "greatest", "updates", "computing, s", "last batch")
    parts = [figure(ramp_figure(folder), "Each line is a seed."), table(head, cells)]
    title = "Does a batch that grows with the noise scale do what a falling rate does?"
    return [Section(9, title, _answer(cells), parts)]


def _cells(label: str, rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    accuracies = [100 * row["course"]["evaluations"][-1][1] for row in rows]
    spread = [f"{value:.2f}" for value in (statistics.mean(accuracies), min(accuracies), max(accuracies))]
    updates = statistics.median(row["summary"]["updates"] for row in rows)
    computing = statistics.median(row["summary"]["seconds"]["compute"] for row in rows)
    sizes = sorted({_size(row, row["summary"]["updates"]) for row in rows})
    last = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))
    return label, str(len(rows)), *spread, f"{updates:,.0f}", f"{computing:.0f}", last


def _answer(cells: Sequence[tuple[str, ...]]) -> str:
    found = [
        f"{label}: {mean}% after {updates} updates and {seconds} s of computing"
        for label, _, mean, _, _, updates, seconds, _ in cells
    ]
    return f"In the same number of epochs, {'; '.join(found)}."


def _ways(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups = defaultdict(list)
    for row in rows:
        if "course" in row:
            groups[_WAYS.get(row["label"], row["label"])].append(row)
    return dict(groups)


def _size(row: dict[str, Any], step: int) -> int:
    """The batch size of the update that leads to a step."""
    begun = [size for first, size in row["course"]["batch_sizes"] if first < step]
    return begun[-1] if begun else row["options"]["batch_size"]
