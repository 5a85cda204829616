"""A section of the batch-size study's report: a question, a sentence that answers it, and what that rests on."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments._errors import UsageError
from experiments.reporting.curves import read_study

# Narrow, so that a phone shows the text of a figure in a size that can be read.
WIDTH = 4.8
MOST_TICKS = 7
COLOUR, SECOND, GREY = "#1764c0", "#c0561a", "#8a94a3"


class Section(NamedTuple):
    """A question of the report.

    Attributes:
      number: of the question, from 1.
      title: the question, as text.
      answer: a plain sentence or two, as text.
      parts: figures and tables, as HTML.
    """

    number: int
    title: str
    answer: str
    parts: list[str]


def analysis(folder: str | Path, part: str) -> dict[str, Any] | None:
    """What `PART.json` of a study holds; None: the part has not been run."""
    path = Path(folder) / f"{part}.json"
    return json.loads(path.read_text()) if path.exists() else None


def needed(folder: str | Path, part: str) -> dict[str, Any]:
    """The same for a figure.

    Raises:
      UsageError: the part has not been run.
    """
    found = analysis(folder, part)
    if found is None:
        raise UsageError(f"{folder} holds no {part}.json; run experiments.batch_size_study with --parts={part}")
    return found


def rows_of(folder: str | Path, part: str) -> list[dict[str, Any]]:
    """The rows of a part, in the order in which they were run; none if it has not been run.

    Raises:
      UsageError: the folder holds no rows.
    """
    keys = set((analysis(folder, part) or {}).get("keys", ()))
    return [row for key, row in read_study(folder).items() if key in keys]


def canvas(height: float = 3.2, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of panels below each other, each of that height in inches."""
    drawing = Figure(figsize=(WIDTH, height * panels), layout="constrained")
    axes = list(drawing.subplots(panels, 1, squeeze=False)[:, 0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
        one.tick_params(labelsize=8)
        one.xaxis.label.set_size(9)
        one.yaxis.label.set_size(9)
    return drawing, axes


def sizes_axis(axes: Axes, sizes: Sequence[float]) -> None:
    """A logarithmic axis of batch sizes: each is a tick, or with many of them the powers of ten are."""
    axes.set(xscale="log", xlabel="global batch size")
    if not sizes:
        axes.text(0.5, 0.5, "nothing to show", ha="center", transform=axes.transAxes, color=GREY)
        return
    low, high = min(sizes), max(sizes)
    ticks: list[float] = sorted(set(sizes))
    if len(ticks) > MOST_TICKS or any(b < 1.5 * a for a, b in itertools.pairwise(ticks)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [10.0**power for power in powers if low / 1.4 <= 10**power <= high * 1.4]
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.set_xlim(low / 1.4, high * 1.4)
    axes.xaxis.minorticks_off()


class _Decades(LogLocator):
    """1, 2, 5 and 10, or powers of ten alone where the numbers between them would lie over each other."""

    def tick_values(self, vmin: float, vmax: float):
        self.set_params(subs=(1, 2, 5) if vmax < 1e3 * vmin else (1,))
        return super().tick_values(vmin, vmax)


def logarithmic(axes: Axes, label: str) -> None:
    """A logarithmic axis upward, with plain numbers."""
    axes.set(yscale="log", ylabel=label)
    axes.yaxis.set_major_locator(_Decades(numticks=MOST_TICKS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def number(value: float) -> str:
    """A number to three digits, as people write it.

    Example:
      >>> number(12345.6), number(0.01234), number(float("inf"))
      ('12,300', '0.0123', 'no bound')
    """
    if not math.isfinite(value):
        return "no bound"
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def interval(ends: Sequence[float]) -> str:
    """The ends of an interval.

    Example:
      >>> interval((313.2, 904.0)), interval((313.2, float("inf"))), interval((0.0, float("inf")))
      ('313 to 904', 'at least 313', 'no bounds')
    """
    low, high = ends
    if not math.isfinite(low):
        return "no bounds"
    if not math.isfinite(high):
        return f"at least {number(low)}" if low > 0 else "no bounds"
    return f"{number(low)} to {number(high)}"
