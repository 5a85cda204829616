"""Questions 3, 4 and 8: updates to a target, the best rates, the critical batch size; from the study's files alone."""

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting.curves import read_study
from experiments.reporting.document import figure, table
from experiments.reporting.section import (
    COLOUR,
    GREY,
    SECOND,
    Section,
    analysis,
    canvas,
    interval,
    logarithmic,
    number,
    sizes_axis,
)

_KINDS = (("tuned", COLOUR, "o", "rate tuned at each size"), ("fixed", GREY, "s", "one rate for all"))
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


def runs(rows: Sequence[dict[str, Any]], kind: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs to show: at one rate, or at the best rate of each size. Those with an error have no place."""
    best = {(t["batch_size"], t["rate"]) for t in found["tuned"]}
    return [
        row
        for row in rows
        if row["key"].startswith(f"{kind}-")
        and "summary" in row
        and row["options"]["seed"] in found["seeds"]
        and (kind == "fixed" or (row["options"]["batch_size"], row["options"]["learning_rate"]) in best)
    ]


def epochs_figure(folder: str | Path) -> Figure:
    """Epochs to the target against batch size, at one rate for all and with the rate tuned: every run.

    Runs that did not reach the target are open triangles at the epochs that they were given.

    Raises:
      FileNotFoundError: the part `convergence` of the study has not been run.
    """
    found, rows = _read(folder)
    drawing, (axes,) = canvas()
    sizes = []
    for kind, colour, marker, label in _KINDS:
        shown = runs(rows, kind, found)
        sizes += [row["options"]["batch_size"] for row in shown]
        _dots(axes, shown, "epochs", colour, marker, label)
    sizes_axis(axes, sizes or [1])
    logarithmic(axes, f"epochs to {found['target']:.0%}")
    _legend(axes)
    return drawing


def convergence_figure(folder: str | Path) -> Figure:
    """Updates to the target against batch size, with the rate tuned: every run, the fitted curve, its three regimes.

    Runs that did not reach the target are open triangles at the updates that they were given. Published results stand
    on the axis of batch sizes.

    Raises:
      FileNotFoundError: the part `convergence` of the study has not been run.
    """
    found, rows = _read(folder)
    drawing, (axes,) = canvas(3.8)
    shown = runs(rows, "tuned", found)
    sizes = [row["options"]["batch_size"] for row in shown] or [1]
    _dots(axes, shown, "updates", COLOUR, "o", "a run")
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
    logarithmic(axes, f"updates to {found['target']:.0%}")
    if "mnist" in {row["options"].get("dataset") for row in shown}:
        _publish(axes)
    _legend(axes)
    return drawing


def rate_figure(folder: str | Path) -> Figure:
    """The best rate against batch size, with lines of the linear and the square-root rule through the first.

    Raises:
      FileNotFoundError: the part `convergence` of the study has not been run.
    """
    found, rows = _read(folder)
    tuned = [t for t in found["tuned"] if t["rate"] is not None]
    drawing, (axes,) = canvas()
    sizes, rates = [t["batch_size"] for t in tuned], [t["rate"] for t in tuned]
    for row in rows:
        options = row["options"]
        if row["key"].startswith("tuned-") and options["batch_size"] in sizes:
            reached = "summary" in row and row["summary"]["target"]["reached_after_updates"] is not None
            axes.plot(
                options["batch_size"], options["learning_rate"], "." if reached else "x", color=GREY, markersize=4
            )
    for power, name, style in ((1.0, "linear", ":"), (0.5, "square root", "--")):
        axes.plot(sizes, [rates[0] * (b / sizes[0]) ** power for b in sizes], style, color=GREY, label=name)
    for on_edge, face, label in ((False, COLOUR, "best rate"), (True, "none", "best, on the edge of its grid")):
        points = [(t["batch_size"], t["rate"]) for t in tuned if t["on_edge"] == on_edge]
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=COLOUR, markerfacecolor=face, label=label)
    sizes_axis(axes, sizes)
    logarithmic(axes, "rate")
    _legend(axes)
    return drawing


def convergence_sections(folder: str | Path) -> list[Section]:
    """The three sections, if the part was run."""
    if analysis(folder, "convergence") is None:
        return []
    found, rows = _read(folder)
    parts = [
        figure(
            epochs_figure(folder),
            "Each mark is a run. An open triangle: not reached within the epochs that it was given.",
        )
    ]
    for kind, _, _, title in _KINDS:
        if shown := runs(rows, kind, found):
            head = ("batch size", "rate", "runs", "reached", "updates", "epochs", "seconds", "computing, s")
            parts += [f"<p>{title[:1].upper()}{title[1:]}, medians:</p>", table(head, _table(shown))]
    target = f"{found['target']:.0%}"
    sections = [Section(3, f"How many updates, epochs and seconds to {target}?", _target_answer(found, rows), parts)]
    if any(t["rate"] is not None for t in found["tuned"]):
        caption = "Dots are rates that reached the target, crosses those that did not. The search has one seed."
        title = "Which rate is best at each batch size: linear, square root or neither?"
        sections.append(Section(4, title, _rate_answer(found), [figure(rate_figure(folder), caption)]))
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
    sections.append(Section(8, "Where is the critical batch size?", _critical_answer(found), critical))
    return sections


def _read(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    found = analysis(folder, "convergence")
    if found is None:
        raise FileNotFoundError(f"{folder} holds no convergence.json: run --parts=convergence of the study")
    return found, list(read_study(folder).values())


def _dots(axes: Axes, shown: Sequence[dict[str, Any]], unit: str, colour: str, marker: str, label: str | None) -> None:
    for row in shown:
        size, summary = row["options"]["batch_size"], row["summary"]
        if summary["target"]["reached_after_updates"] is None:
            axes.plot(size, summary[unit], marker="^", color=colour, markerfacecolor="none")
        else:
            axes.plot(size, summary[unit], marker, color=colour, alpha=0.7, markersize=5, label=label)
            label = None


def _publish(axes: Axes) -> None:
    for place, text in PUBLISHED:
        ends = place if isinstance(place, tuple) else (place, place)
        low = axes.get_xlim()[0]
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
        axes.annotate(
            text,
            (max(ends[0], low), 0.03),
            (2, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=7,
            color=SECOND,
        )


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def _medians(shown: Sequence[dict[str, Any]]) -> dict[int, tuple[float, float]]:
    """Median updates and epochs of the batch sizes at which some run reached the target."""
    groups = defaultdict(list)
    for row in shown:
        if row["summary"]["target"]["reached_after_updates"] is not None:
            groups[row["options"]["batch_size"]].append(row["summary"])
    return {
        size: (statistics.median(s["updates"] for s in group), statistics.median(s["epochs"] for s in group))
        for size, group in sorted(groups.items())
    }


def _target_answer(found: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    sentences = []
    for kind, words in (("fixed", "at one rate for all"), ("tuned", "with the rate tuned at each size")):
        shown = runs(rows, kind, found)
        medians = _medians(shown)
        never = sorted({row["options"]["batch_size"] for row in shown} - set(medians))
        if len(medians) > 1:
            small, large = min(medians), max(medians)
            sentences.append(
                f"{words}, {found['target']:.0%} takes {number(medians[small][1])} epochs at a batch of {small:,} and "
                f"{number(medians[large][1])} at {large:,}"
                + (f", and is not reached at {', '.join(f'{size:,}' for size in never)}" if never else "")
            )
    text = "; ".join(sentences) or "too few runs reached the target"
    return text[:1].upper() + text[1:] + "."


def _rate_answer(found: dict[str, Any]) -> str:
    tuned = [t for t in found["tuned"] if t["rate"] is not None]
    if len(tuned) < 2:
        return "One batch size reached the target, so there is nothing to compare."

    def power(a: dict[str, Any], b: dict[str, Any]) -> float:
        return math.log(b["rate"] / a["rate"]) / math.log(b["batch_size"] / a["batch_size"])

    steps = ", ".join(f"{power(a, b):.2f} to {b['batch_size']:,}" for a, b in itertools.pairwise(tuned))
    whole = power(tuned[0], tuned[-1])
    rule = next(
        (
            name
            for at, name in ((1.0, "as the linear rule has it"), (0.5, "as the square-root rule has it"))
            if abs(whole - at) < 0.1
        ),
        "as neither rule has it",
    )
    edges = [f"{t['batch_size']:,}" for t in tuned if t["on_edge"]]
    first, last = tuned[0]["batch_size"], tuned[-1]["batch_size"]
    return (
        f"From {first:,} to {last:,} the best rate grows with the power {whole:.2f} of the batch size, {rule} "
        f"(step by step, from {first:,}: {steps})."
        + (f" On the edge of its grid: {', '.join(edges)}." if edges else "")
    )


def _critical_answer(found: dict[str, Any]) -> str:
    fit = found["fit"]
    if fit is None:
        return f"There is no fit: {found['no_fit']}."
    critical, ends = fit["critical_batch_size"], interval(fit["intervals"]["critical_batch_size"])
    if critical == 0:
        return f"Below every size that was tried ({ends}): a larger batch takes no fewer updates."
    if not math.isfinite(critical):
        return f"Above every size that was tried ({ends}): twice the batch halves the updates."
    return (
        f"At {number(critical)} examples ({ends}, {found['confidence']:.0%}): there a run takes twice the fewest "
        f"updates, {number(fit['min_steps'])}, and twice the fewest examples, {number(fit['min_examples'])}; well "
        "below it twice the batch halves the updates, well above it a larger batch buys nothing."
    )


def _table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row["options"]["batch_size"]].append(row)
    cells = []
    for size, group in sorted(groups.items()):
        ended = [row["summary"] for row in group if row["summary"]["target"]["reached_after_updates"] is not None]
        shown = ended or [row["summary"] for row in group]
        mark = "" if ended else "> "
        cells.append(
            (
                f"{size:,}",
                f"{group[0]['options']['learning_rate']:g}",
                str(len(group)),
                str(len(ended)),
                mark + f"{statistics.median(s['updates'] for s in shown):,.0f}",
                mark + f"{statistics.median(s['epochs'] for s in shown):.2f}",
                mark + f"{statistics.median(s['seconds']['in all'] for s in shown):.0f}",
                mark + f"{statistics.median(s['seconds']['compute'] for s in shown):.1f}",
            )
        )
    return cells
