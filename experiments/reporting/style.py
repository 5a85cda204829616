"""The looks of every figure: size, colours, axes, and where the legend is."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

# In inches and points: a phone shows a figure of that width at 1.2 pixels a point.
WIDTH = 4.2
TEXT = 9
# The most letters of a label that has room for another beside it in that width.
SHORT = 20
FEWEST_TICKS, MOST_TICKS = 3, 7
COLOUR, SECOND, GREY = "#1764c0", "#c0561a", "#727c8b"
# Told apart by people who are colour-blind, too (Okabe and Ito).
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#727c8b")
MARKS = ("o", "s", "D", "v", "^", "P", "X")
# A mark around what a fitted curve misses by more than its interval.
MISSED = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "color": SECOND, "linestyle": "none"}
MISSED_LABEL = "missed by the fit"
OPTIMIZERS = {
    "sgd": "SGD",
    "nesterov": "Nesterov",
    "lars": "LARS",
    "lamb": "LAMB",
    "adamw": "AdamW",
    "lbfgs": "L-BFGS",
    "muon": "Muon",
    "schedule_free": "schedule-free SGD",
    "schedule_free_adamw": "schedule-free AdamW",
}


def optimizer_name(optimizer: str) -> str:
    """Returns the name that an optimizer has in a report; its own, if there is none."""
    return OPTIMIZERS.get(optimizer, optimizer)


def canvas(height: float = 3.4, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Returns a figure of panels below each other, each of that height in inches."""
    drawing = Figure(figsize=(WIDTH, height * panels), layout="constrained")
    axes = list(drawing.subplots(panels, 1, squeeze=False)[:, 0])
    for one in axes:
        dress(one)
    return drawing, axes


def dress(axes: Axes) -> None:
    """Gives a panel the looks that all panels have."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=TEXT)
    axes.xaxis.label.set_fontsize(TEXT)
    axes.yaxis.label.set_fontsize(TEXT)


def legend(axes: Axes, title: str = "", columns: int | None = None) -> None:
    """Draws the legend above the panel, where it covers no data, and below the panel's title if it has one.

    Args:
      axes: the panel.
      title: its title.
      columns: the number of columns; None: two if the labels are short.
    """
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        if title:
            axes.set_title(title, fontsize=TEXT + 1, loc="left")
        return
    # From the left edge of the figure, if the panel is the only one in its row.
    spec = axes.get_subplotspec()
    alone = spec is not None and spec.get_gridspec().ncols == 1
    drawing = axes.get_figure(root=True)
    left = drawing.transFigure if alone and drawing is not None else axes.transAxes
    axes.legend(
        handles,
        labels,
        title=title or None,
        title_fontsize=TEXT + 1,
        alignment="left",
        loc="lower left",
        bbox_to_anchor=(0.01 if alone else -0.1, 1.0),
        bbox_transform=blended_transform_factory(left, axes.transAxes),
        ncols=columns or (2 if max(map(len, labels)) <= SHORT else 1),
        frameon=False,
        fontsize=TEXT,
        columnspacing=1.2,
        handletextpad=0.5,
        borderaxespad=0.2,
    )


def sizes_axis(axes: Axes, sizes: Sequence[float]) -> None:
    """Makes a logarithmic axis of batch sizes: each is a tick, or with many of them the powers of ten are."""
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
    """Ticks at 1, 2, 5 and 10; at powers of ten alone where others would overlap, at more numbers if few are left."""

    def tick_values(self, vmin: float, vmax: float):
        low, high = sorted((vmin, vmax))
        if not 0 < low < high:
            return super().tick_values(vmin, vmax)
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for parts in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            every = max(1, round((math.log10(high) - math.log10(low)) / MOST_TICKS)) if parts == (1,) else 1
            ticks = [part * 10.0**e for e in exponents if e % every == 0 for part in parts]
            if sum(low <= tick <= high for tick in ticks) >= FEWEST_TICKS:
                return np.array(ticks)
        # The range is narrower than these tell apart: as on a linear axis.
        return MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)


def logarithmic(axes: Axes, label: str) -> None:
    """Makes the upward axis logarithmic, with plain numbers."""
    axes.set(yscale="log", ylabel=label)
    axes.yaxis.set_major_locator(_Decades())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.yaxis.set_minor_locator(NullLocator())


def number(value: float) -> str:
    """Returns a number to three digits, as people write it.

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
