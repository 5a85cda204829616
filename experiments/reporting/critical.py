"""Question 8: the critical batch size, from the study's files alone."""

import itertools
import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting.convergence import dots, legend, read_convergence, runs, target_of
from experiments.reporting.document import figure, table
from experiments.reporting.section import (
    COLOUR,
    SECOND,
    Section,
    analysis,
    canvas,
    interval,
    logarithmic,
    number,
    sizes_axis,
)

# What others found for MNIST, in the units of the axis.
PUBLISHED = (
    (900, "noise scale of MNIST,\nMcCandlish et al. 2018"),
    ((2, 32), "best at fixed epochs,\nMasters and Luschi 2018"),
)
PUBLISHED_NOTE = (
    "Published: the average simple noise scale of MNIST, 900, of McCandlish et al. (arXiv 1812.06162), as a repository "
    "that reproduces it cites it; and the range of the best batch sizes at fixed epochs, 2 to 32, of other data sets, "
    "of Masters and Luschi (arXiv 1804.07612). Neither number was checked in its paper."
)


def convergence_figure(folder: str | Path) -> Figure:
    """Updates to the target against batch size, with the rate tuned: every run, the fitted curve, its three regimes.

    Runs that did not reach the target are open triangles at the updates that they were given. Published results stand
    on the axis of batch sizes.

    Raises:
      UsageError: the part `convergence` of the study has not been run.
    """
    found, rows = read_convergence(folder)
    drawing, (axes,) = canvas(3.8)
    shown = runs(rows, "tuned", found)
    sizes = [row["options"]["batch_size"] for row in shown]
    dots(axes, shown, "updates", COLOUR, "o", "a run")
    fit = found["fit"]
    if fit and 0 < fit["critical_batch_size"] < math.inf:
        low, high = min(sizes), max(sizes)
        grid = [low * (high / low) ** (i / 60) for i in range(61)]
        least, critical = fit["min_steps"], fit["critical_batch_size"]
        axes.plot(grid, [least * (1 + critical / b) for b in grid], "-", color=COLOUR, linewidth=1.5, label="fit")
        # As McCandlish et al. and Shallue et al. divide it: far below the critical batch size, about it, far above.
        ends = [low / 1.4, *(min(max(critical * factor, low), high) for factor in (1 / 3, 3)), high * 1.4]
        names = ("perfect\nscaling", "diminishing\nreturns", "no gain")
        for (start, end), shade, name in zip(itertools.pairwise(ends), (0.02, 0.1, 0.2), names, strict=True):
            axes.axvspan(start, end, color=COLOUR, alpha=shade, linewidth=0)
            if math.log(end / start) > 0.12 * math.log(ends[-1] / ends[0]):
                axes.annotate(
                    name,
                    ((start * end) ** 0.5, 1.0),
                    (0, 4),
                    xycoords=("data", "axes fraction"),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color="#5a6475",
                )
        axes.axvline(critical, color=COLOUR, linewidth=1, label=f"critical batch size, {number(critical)}")
    sizes_axis(axes, sizes)
    logarithmic(axes, f"updates to {target_of(found)}")
    if "mnist" in {row["options"].get("dataset") for row in shown}:
        _publish(axes)
    legend(axes)
    return drawing


def critical_sections(folder: str | Path) -> list[Section]:
    """The section, if the part was run."""
    if analysis(folder, "convergence") is None:
        return []
    found, rows = read_convergence(folder)
    caption = "Shaded: a third of the critical batch size, three times it. An open triangle: a run cut short."
    critical = [figure(convergence_figure(folder), caption)]
    if any(row["options"].get("dataset") == "mnist" for row in rows):
        critical.append(f"<p>{PUBLISHED_NOTE}</p>")
    if fit := found["fit"]:
        named = (
            ("critical batch size", "critical_batch_size"),
            ("fewest updates", "min_steps"),
            ("fewest examples", "min_examples"),
        )
        cells = [(name, number(fit[key]), interval(fit["intervals"][key])) for name, key in named]
        critical.append(table(("fit", "value", f"interval ({found['confidence']:.0%})"), cells))
    return [Section(8, "Where is the critical batch size?", _critical_answer(found), critical)]


def _publish(axes: Axes) -> None:
    low, high = axes.get_xlim()
    least, most = axes.get_ylim()
    # Room below the runs.
    axes.set_ylim(least / (most / least) ** 0.25, most)
    for place, text in PUBLISHED:
        ends = place if isinstance(place, tuple) else (place, place)
        if ends[1] < low or ends[0] > high:
            continue
        axes.plot(
            [max(ends[0], low), ends[1]],
            [0.015] * 2,
            "D-" if ends[0] == ends[1] else "-",
            color=SECOND,
            linewidth=3,
            markersize=4,
            transform=axes.get_xaxis_transform(),
            solid_capstyle="butt",
        )
        # Inside the axes, on whatever side there is room.
        is_left = math.log(max(ends[0], low) / low) < 0.6 * math.log(high / low)
        axes.annotate(
            text,
            (max(ends[0], low) if is_left else ends[1], 0.03),
            (2 if is_left else -2, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="left" if is_left else "right",
            fontsize=7,
            color=SECOND,
        )


def _critical_answer(found: dict[str, Any]) -> str:
    fit = found["fit"]
    if fit is None:
        return f"There is no fit: {found['no_fit']}."
    critical, (low, high) = fit["critical_batch_size"], fit["intervals"]["critical_batch_size"]
    sizes = [t["batch_size"] for t in found["tuned"]]
    ends = f"{interval((low, high))}, {found['confidence']:.0%}"
    bound = [f"below {min(sizes):,}"] * (low < min(sizes)) + [f"above {max(sizes):,}"] * (high > max(sizes))
    beyond = f" It may lie {' or '.join(bound)}, beyond the sizes that were tried." if bound else ""
    if critical == 0:
        return f"The fit puts it at 0 ({ends}): a larger batch takes no fewer updates.{beyond}"
    if not math.isfinite(critical):
        return f"The fit gives none ({ends}): twice the batch halves the updates.{beyond}"
    return (
        f"At {number(critical)} examples ({ends}): there a run takes twice the fewest updates, "
        f"{number(fit['min_steps'])}, and twice the fewest examples, {number(fit['min_examples'])}; well below it "
        f"twice the batch halves the updates, well above it a larger batch buys nothing.{beyond}"
    )
