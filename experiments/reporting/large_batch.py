"""The part of the study's report on very large batches, from its rows alone."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.reporting.curves import read_study
from experiments.reporting.document import figure, table

LADDER = (
    "the rate of batch 64",
    "linear rate",
    "+ warmup of 2 epochs",
    "+ no decay on norms and biases",
    "+ span of 128",
    "span off again, + label smoothing 0.1",
    "LARS in place of Nesterov",
    "Nesterov again, twice the epochs",
)


def read(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The runs of a study that ended well, by key.

    Raises:
      UsageError: the folder holds no rows.
    """
    return {key: row for key, row in read_study(folder).items() if "summary" in row}


def accuracy(row: dict[str, Any]) -> float:
    """In percent, on the first split that the run evaluates."""
    return 100 * next(iter(row["summary"]["results"].values()))["accuracy"]


def accuracy_figure(folder: str | Path) -> Figure:
    """Test accuracy against batch size: every seed, and their mean."""
    groups = _by_batch_size(read(folder))
    drawing = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = drawing.subplots()
    for batch_size, rows in groups.items():
        axes.plot([batch_size] * len(rows), [accuracy(row) for row in rows], "o", color="#1764c0", alpha=0.5)
    means = [statistics.mean(accuracy(row) for row in rows) for rows in groups.values()]
    axes.plot(list(groups), means, "-", color="#1764c0", linewidth=1.5)
    for (batch_size, rows), mean in zip(groups.items(), means, strict=True):
        text = f"{mean:.2f}\n{rows[0]['options']['optimizer']}"
        axes.annotate(text, (batch_size, mean), (0, 12), textcoords="offset points", ha="center", fontsize=8)
    axes.set(xscale="log", xlabel="global batch size", ylabel="test accuracy (%)")
    axes.set_xticks(list(groups), [f"{b:,}" for b in groups])
    axes.minorticks_off()
    axes.margins(0.12, 0.3)
    axes.set_ylim(top=min(100, axes.get_ylim()[1]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return drawing


def large_batch_parts(folder: str | Path, rows: dict[str, dict[str, Any]]) -> list[str]:
    """The sections on very large batches: one for each part of them that has been run."""
    parts: list[str] = []
    if groups := _by_batch_size(rows):
        parts += [
            "<h2>Accuracy against batch size</h2>",
            figure(
                accuracy_figure(folder), "Each dot is a seed; the line joins their means. The same number of epochs."
            ),
            table(
                ("batch size", "updates", "optimizer", "peak rate", "mean", "least", "greatest"),
                [_final_cells(batch_size, group) for batch_size, group in groups.items()],
            ),
        ]
    searched = [row for key, row in rows.items() if key.startswith("search-")]
    if searched:
        parts += [
            "<h2>The search</h2>",
            "<p>Accuracy (%) on training images that were held out, one seed. A best rate on the edge of its grid is "
            "marked with *: a better one may lie beyond.</p>",
            table(("batch size", "optimizer", "rates: accuracy"), _search_cells(searched)),
        ]
    if ladder := _seeds(rows, "ladder-"):
        names = [(LADDER[int(key)], group) for key, group in sorted(ladder.items(), key=lambda item: int(item[0]))]
        parts += ["<h2>What does it at a batch of 8192</h2>", _seed_table("recipe", names)]
    if backwards := _seeds(rows, "backwards-"):
        parts += [
            "<h2>One forward pass with ten updates, and ten times the rate</h2>",
            _seed_table("updates", list(backwards.items())),
        ]
    return parts


def _by_batch_size(rows: dict[str, dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    groups = defaultdict(list)
    for key, row in rows.items():
        if key.startswith("final-"):
            groups[row["options"]["batch_size"]].append(row)
    return dict(sorted(groups.items()))


def _seeds(rows: dict[str, dict[str, Any]], prefix: str) -> dict[str, list[dict[str, Any]]]:
    groups = defaultdict(list)
    for key, row in rows.items():
        if key.startswith(prefix):
            groups[key.removeprefix(prefix).rpartition("-seed")[0]].append(row)
    return dict(groups)


def _final_cells(batch_size: int, group: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    options = group[0]["options"]
    return (
        f"{batch_size:,}",
        f"{group[0]['summary']['updates']:,}",
        options["optimizer"],
        f"{options['learning_rate']:g}",
        *_spread(group),
    )


def _spread(group: Sequence[dict[str, Any]]) -> tuple[str, str, str]:
    values = [accuracy(row) for row in group]
    return f"{statistics.mean(values):.2f}", f"{min(values):.2f}", f"{max(values):.2f}"


def _search_cells(searched: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    grids = defaultdict(list)
    for row in searched:
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


def _seed_table(what: str, groups: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> str:
    return table(
        (what, "seeds", "mean", "least", "greatest", "updates", "computing, s"),
        [
            (
                name,
                str(len(group)),
                *_spread(group),
                f"{group[0]['summary']['updates']:,}",
                f"{statistics.median(row['summary']['seconds']['compute'] for row in group):.0f}",
            )
            for name, group in groups
        ],
    )
