"""The part of the study's report on updates to a target, from the study's files alone."""

import html
import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.reporting.document import figure, table

ANALYSIS = "convergence.json"
COLOUR, GREY = "#1764c0", "#9aa3b2"


def convergence_figure(folder: str | Path, rows: Sequence[dict[str, Any]]) -> Figure:
    """Updates to the target against batch size: every run, the fitted curve, and its three regimes.

    Runs that did not reach the target are arrows at the updates that they were given.
    """
    analysis = json.loads((Path(folder) / ANALYSIS).read_text())
    drawing = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = drawing.subplots()
    for kind, colour, label in (("tuned", COLOUR, "rate tuned"), ("fixed", GREY, "one rate for all")):
        for row in runs(rows, kind, analysis):
            size, updates = row["options"]["batch_size"], row["summary"]["target"]["reached_after_updates"]
            if updates is None:
                axes.plot(size, row["summary"]["updates"], marker="^", color=colour, markerfacecolor="none")
            else:
                axes.plot(size, updates, "o", color=colour, alpha=0.7, label=label)
                label = None
    if fit := analysis["fit"]:
        sizes = sorted({row["options"]["batch_size"] for row in runs(rows, "tuned", analysis)})
        ends = math.log10(sizes[0]), math.log10(sizes[-1])
        grid = [10 ** (ends[0] + (ends[1] - ends[0]) * i / 60) for i in range(61)]
        least, critical = fit["min_steps"], fit["critical_batch_size"]
        axes.plot(grid, [least * (1 + critical / b) for b in grid], "-", color=COLOUR, linewidth=1.5, label="fit")
        low, high = fit["intervals"]["critical_batch_size"]
        axes.axvspan(max(low, sizes[0]), min(high, sizes[-1]), color=COLOUR, alpha=0.08)
        axes.axvline(critical, color=COLOUR, linewidth=0.8)
        for at, text in ((0.03, "twice the batch,\nhalf the updates"), (0.97, "a larger batch\nbuys little")):
            align = "left" if at < 0.5 else "right"
            axes.text(at, 0.04, text, transform=axes.transAxes, ha=align, fontsize=8, color="#5a6475")
        axes.annotate(
            "critical batch size", (critical, axes.get_ylim()[1]), (4, -12), textcoords="offset points", fontsize=8
        )
    axes.set(xscale="log", yscale="log", xlabel="global batch size", ylabel=f"updates to {analysis['target']:.1%}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    return drawing


def rate_figure(folder: str | Path) -> Figure:
    """The best rate against batch size, with lines of the linear and the square-root rule through the first."""
    tuned = [t for t in json.loads((Path(folder) / ANALYSIS).read_text())["tuned"] if t["rate"] is not None]
    drawing = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = drawing.subplots()
    sizes, rates = [t["batch_size"] for t in tuned], [t["rate"] for t in tuned]
    for power, name, style in ((1.0, "linear", ":"), (0.5, "square root", "--")):
        axes.plot(sizes, [rates[0] * (b / sizes[0]) ** power for b in sizes], style, color=GREY, label=name)
    inside = [(b, r) for t, b, r in zip(tuned, sizes, rates, strict=True) if not t["on_edge"]]
    edge = [(b, r) for t, b, r in zip(tuned, sizes, rates, strict=True) if t["on_edge"]]
    for points, face, label in ((inside, COLOUR, "best rate"), (edge, "none", "best rate, on the edge of its grid")):
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=COLOUR, markerfacecolor=face, label=label)
    axes.set(xscale="log", yscale="log", xlabel="global batch size", ylabel="peak rate")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return drawing


def runs(rows: Sequence[dict[str, Any]], kind: str, analysis: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs to show: at one rate, or at the best rate of each size. Those with an error have no place."""
    best = {(t["batch_size"], t["rate"]) for t in analysis["tuned"]}
    return [
        row
        for row in rows
        if row["key"].startswith(f"{kind}-")
        and "summary" in row
        and row["options"]["seed"] in analysis["seeds"]
        and (kind == "fixed" or (row["options"]["batch_size"], row["options"]["learning_rate"]) in best)
    ]


def convergence_parts(folder: Path, rows: Sequence[dict[str, Any]]) -> list[str]:
    """The sections of the page, if the part was run."""
    if not (folder / ANALYSIS).exists():
        return []
    analysis = json.loads((folder / ANALYSIS).read_text())
    target = f"{analysis['target']:.1%}"
    parts = [
        f"<h2>How many updates to {target}?</h2>",
        f"<p>{_sentence(analysis)}</p>",
        figure(
            convergence_figure(folder, rows),
            "Each dot is a run. An open triangle: not reached within the updates that it was given. The band is the "
            "interval of the critical batch size.",
        ),
    ]
    for kind, title in (("fixed", "one rate for all"), ("tuned", "the rate tuned at each size")):
        if shown := runs(rows, kind, analysis):
            head = (title, "rate", "runs", "reached", "updates", "epochs", "seconds", "of them computing")
            parts.append(table(head, _table(shown)))
    if any(t["rate"] is not None for t in analysis["tuned"]):
        parts += ["<h2>Which rate is best at each batch size?</h2>", f"<p>{_rate_sentence(analysis)}</p>"]
        parts.append(figure(rate_figure(folder), "Rates of a search are a factor of two apart, one seed."))
    return parts


def _sentence(analysis: dict[str, Any]) -> str:
    fit = analysis["fit"]
    if fit is None:
        return f"There is no fit: {html.escape(analysis['no_fit'])}."
    low, high = fit["intervals"]["critical_batch_size"]
    upper = f"{high:,.0f}" if math.isfinite(high) else "any size"
    return (
        f"With the rate tuned, the critical batch size is {fit['critical_batch_size']:,.0f} ({low:,.0f} to {upper}, "
        f"{analysis['confidence']:.0%}): there a run takes twice the fewest updates, {fit['min_steps']:,.0f}, and "
        f"twice the fewest examples, {fit['min_examples']:,.0f}."
    )


def _rate_sentence(analysis: dict[str, Any]) -> str:
    found = [t for t in analysis["tuned"] if t["rate"] is not None]
    if len(found) < 2:
        return "One batch size reached the target."
    steps = "; ".join(
        f"{a['batch_size']:,} to {b['batch_size']:,}: "
        f"{math.log(b['rate'] / a['rate']) / math.log(b['batch_size'] / a['batch_size']):.2f}"
        for a, b in itertools.pairwise(found)
    )
    edges = [f"{t['batch_size']:,}" for t in found if t["on_edge"]]
    text = f"The power with which the best rate grows (1 is linear, 0.5 the square root): {steps}."
    return text + (f" On the edge of its grid: {', '.join(edges)}." if edges else "")


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
