"""Questions 5 and 6: several updates a forward pass, and very large batches; from the study's files alone."""

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.reporting.document import figure, table
from experiments.reporting.section import Section, rows_of
from experiments.reporting.style import (
    COLOUR,
    OPTIMIZERS,
    SECOND,
    TEXT,
    canvas,
    legend,
    sizes_axis,
)

# Hoffer et al., arXiv 1705.08741, 2017: a fully connected network (F1) on MNIST, test accuracy in percent.
PUBLISHED = (
    "small batch 98.27, large batch 97.05, with its rate adapted 97.55, with ghost batches 97.60, trained longer 98.53"
)


def accuracy(row: dict[str, Any]) -> float:
    """In percent, on the first split that the run evaluates; not a number where the loss was not finite."""
    if "summary" not in row:
        return math.nan
    return 100 * next(iter(row["summary"]["results"].values()))["accuracy"]


def accuracy_figure(folder: str | Path) -> Figure:
    """Test accuracy against batch size at a fixed number of epochs: every seed, and their mean."""
    groups = _by_batch_size(rows_of(folder, "search"))
    drawing, (axes,) = canvas()
    for batch_size, rows in groups.items():
        axes.plot(
            [batch_size] * len(rows),
            [accuracy(row) for row in rows],
            "o",
            color=COLOUR,
            alpha=0.5,
            label=None if batch_size != min(groups) else "a seed",
        )
    means = [statistics.mean(accuracy(row) for row in rows) for rows in groups.values()]
    axes.plot(list(groups), means, "-", color=COLOUR, linewidth=1.5, label="mean")
    for (batch_size, rows), mean in zip(groups.items(), means, strict=True):
        name = rows[0]["options"]["optimizer"]
        text = f"{mean:.2f}\n{OPTIMIZERS.get(name, name)}"
        # Above every seed and every line.
        at = (batch_size, max([*(accuracy(row) for row in rows), *means]))
        axes.annotate(text, at, (0, 8), textcoords="offset points", ha="center", fontsize=TEXT)
    sizes_axis(axes, list(groups))
    axes.set(ylabel="test accuracy (%)")
    axes.margins(0.12, 0.3)
    axes.set_ylim(top=axes.get_ylim()[1] + 0.1 * (axes.get_ylim()[1] - axes.get_ylim()[0]))
    legend(axes)
    return drawing


def rungs_figure(folder: str | Path, part: str = "ladder") -> Figure:
    """Test accuracy of the rungs of the ladder, or with "backwards" of the ways to make several updates."""
    groups = list(_seeds(rows_of(folder, part)).values())[::-1]
    drawing, (axes,) = canvas(0.36 * len(groups) + 1.2)
    named: dict[str, str] = {}
    for place, rows in enumerate(groups):
        values = [accuracy(row) for row in rows if "summary" in row]
        if not values:
            axes.annotate("not finite", (0.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=TEXT)
            continue
        label = None if "seed" in named else named.setdefault("seed", "a seed")
        axes.plot(values, [place] * len(values), "o", color=COLOUR, alpha=0.6, markersize=4, label=label)
        if len(values) > 1:
            label = None if "mean" in named else named.setdefault("mean", "mean")
            axes.plot(_mean(rows), place, "|", color=SECOND, markersize=12, markeredgewidth=2, label=label)
        at = (max(values), place)
        axes.annotate(f"{_mean(rows):.2f}", at, (8, 0), textcoords="offset points", va="center", fontsize=TEXT)
    axes.set_yticks(range(len(groups)), [_label(rows) for rows in groups], fontsize=TEXT)
    axes.set(xlabel="test accuracy (%)")
    axes.margins(x=0.25)
    axes.set_ylim(-0.6, len(groups) - 0.4)
    axes.grid(visible=False, axis="y")
    legend(axes)
    return drawing


def large_batch_sections(folder: str | Path) -> list[Section]:
    """The two sections, of what has been run of them."""
    sections = []
    if backwards := _seeds(rows_of(folder, "backwards")):
        parts = [
            figure(rungs_figure(folder, "backwards"), _seeds_caption(backwards)),
            _seed_table("updates", backwards),
        ]
        title = "Does one forward pass with k updates buy anything over k times the rate?"
        sections.append(Section(5, title, _backwards_answer(backwards), parts))
    ladder, parts = _seeds(rows_of(folder, "ladder")), []
    if ladder:
        parts = [figure(rungs_figure(folder), _seeds_caption(ladder)), _seed_table("recipe", ladder)]
        parts.append(
            f"<p>Published (Hoffer et al., arXiv 1705.08741, F1 on MNIST; quoted at second hand): {PUBLISHED}.</p>"
        )
    found = rows_of(folder, "search")
    if groups := _by_batch_size(found):
        parts += [
            "<p>The best recipe of a search at each batch size, the same number of epochs:</p>",
            figure(accuracy_figure(folder), "The line joins the means over the seeds."),
            table(
                ("batch size", "updates", "optimizer", "peak rate", "mean", "least", "greatest"),
                [_final_cells(batch_size, group) for batch_size, group in groups.items()],
            ),
        ]
    if searched := [row for row in found if row["key"].startswith("search-")]:
        parts += [
            "<p>The search: accuracy (%) on training images that were held out, one seed. A best rate on the edge of "
            "its grid is marked with *: a better one may lie beyond.</p>",
            table(("batch size", "optimizer", "rates: accuracy"), _search_cells(searched)),
        ]
    if parts:
        answer = _ladder_answer(ladder) if ladder else "The ladder has not been run; below, what a search found."
        sections.append(Section(6, "What repairs a very large batch, and by how much?", answer, parts))
    return sections


def _backwards_answer(groups: dict[str, list[dict[str, Any]]]) -> str:
    sentences = []
    for name in dict.fromkeys(_label(rows).split(",")[0] for rows in groups.values()):
        of_name = [rows for rows in groups.values() if _label(rows).startswith(f"{name},")]
        times = next((rows for rows in of_name if "rate x" in _label(rows) and not _label(rows).endswith("x1")), None)
        split = next((rows for rows in of_name if "updates" in _label(rows)), None)
        if times is None or split is None:
            continue
        text = f"with {name}, {_said(split)} and {_said(times)}"
        seconds = [[r["summary"]["seconds"]["compute"] for r in rows if "summary" in r] for rows in (split, times)]
        if all(seconds):
            text += f", for {statistics.median(seconds[0]) / statistics.median(seconds[1]):.1f} times the computing"
        sentences.append(text)
    text = "; ".join(sentences) or "not all of it has been run"
    return text[:1].upper() + text[1:] + "."


def _said(rows: Sequence[dict[str, Any]]) -> str:
    what = _label(rows).split(", ")[1]
    return f"{what}: {_mean(rows):.2f}%" if math.isfinite(_mean(rows)) else f"{what}: not finite"


def _ladder_answer(groups: dict[str, list[dict[str, Any]]]) -> str:
    means = [(_label(rows), _mean(rows)) for rows in groups.values()]
    means = [(name, mean if math.isfinite(mean) else 0.0) for name, mean in means]
    size = max(row["options"]["batch_size"] for rows in groups.values() for row in rows)
    best = max(means, key=lambda pair: pair[1])
    if best == means[0]:
        text = f"At a batch of {size:,} nothing is better than {means[0][0]}, {means[0][1]:.2f}%"
    else:
        text = f"A batch of {size:,} goes from {means[0][1]:.2f}% ({means[0][0]}) to {best[1]:.2f}% ({best[0]})"
        # Over the best of all before it: what takes a bad change back is no gain.
        highest = itertools.accumulate((mean for _, mean in means), max)
        gains = [(name, mean - before) for (name, mean), before in zip(means[1:], highest, strict=False)]
        step = max(gains, key=lambda pair: pair[1])
        text += f"; the largest single gain over all before it is “{step[0].lstrip('+ ')}”, {step[1]:+.2f} points"
    seeds = max(len(rows) for rows in groups.values())
    if seeds == 1:
        return f"{text}. One seed a rung, so steps of a tenth of a point say little."
    spread = max(_spread(rows)[2] - _spread(rows)[1] for rows in groups.values() if math.isfinite(_mean(rows)))
    return f"{text}. {seeds} seeds a rung, which lie up to {spread:.2f} points apart."


def _mean(rows: Sequence[dict[str, Any]]) -> float:
    """Of the seeds whose loss was finite."""
    return statistics.mean([accuracy(row) for row in rows if "summary" in row] or [math.nan])


def _spread(rows: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Mean, least and greatest of the seeds whose loss was finite."""
    values = [accuracy(row) for row in rows if "summary" in row] or [math.nan]
    return statistics.mean(values), min(values), max(values)


def _label(rows: Sequence[dict[str, Any]]) -> str:
    return rows[0].get("label", rows[0]["key"].rpartition("-seed")[0])


def _by_batch_size(rows: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    groups = defaultdict(list)
    for row in rows:
        if row["key"].startswith("final-") and "summary" in row:
            groups[row["options"]["batch_size"]].append(row)
    return dict(sorted(groups.items()))


def _seeds(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The runs whose keys differ by the seed alone; not those that failed, but by a loss that is not finite."""
    groups = defaultdict(list)
    for row in rows:
        if "summary" in row or row.get("diverged"):
            groups[row["key"].rpartition("-seed")[0]].append(row)
    return dict(groups)


def _final_cells(batch_size: int, group: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    options = group[0]["options"]
    return (
        f"{batch_size:,}",
        f"{group[0]['summary']['updates']:,}",
        options["optimizer"],
        f"{options['learning_rate']:g}",
        *(f"{value:.2f}" for value in _spread(group)),
    )


def _search_cells(searched: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    grids = defaultdict(list)
    for row in (row for row in searched if "summary" in row):
        grids[row["options"]["batch_size"], row["options"]["optimizer"]].append(row)
    cells = []
    for (batch_size, optimizer), grid in sorted(grids.items()):
        grid.sort(key=lambda row: row["options"]["learning_rate"])
        best = max(grid, key=accuracy)
        edge = "*" if best in (grid[0], grid[-1]) else ""
        scores = ",  ".join(
            f"{row['options']['learning_rate']:g}: {accuracy(row):.2f}{edge if row is best else ''}" for row in grid
        )
        cells.append((f"{batch_size:,}", optimizer, scores))
    return cells


def _seed_table(what: str, groups: dict[str, list[dict[str, Any]]]) -> str:
    # Of one seed mean, least and greatest are the same number.
    single = max(map(len, groups.values())) == 1
    accuracies = ("accuracy (%)",) if single else ("mean (%)", "least", "greatest")
    return table(
        (what, "seeds", "not finite", *accuracies, "updates", "computing, s"),
        [(_label(group), *_seed_cells(group, single=single)) for group in groups.values()],
    )


def _seeds_caption(groups: dict[str, list[dict[str, Any]]]) -> str:
    return "Each dot is a seed." if max(map(len, groups.values())) > 1 else "One seed each."


def _seed_cells(group: Sequence[dict[str, Any]], *, single: bool) -> tuple[str, ...]:
    ended = [row["summary"] for row in group if "summary" in row]
    counts = str(len(group)), str(len(group) - len(ended))
    if not ended:
        return *counts, *["-"] * (3 if single else 5)
    computing = statistics.median(summary["seconds"]["compute"] for summary in ended)
    accuracies = _spread(group)[:1] if single else _spread(group)
    return *counts, *(f"{v:.2f}" for v in accuracies), f"{ended[0]['updates']:,}", f"{computing:.0f}"
