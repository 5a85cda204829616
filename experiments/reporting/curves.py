"""The learning curves of a run."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments._errors import UsageError

TRAIN_COLOUR, TEST_COLOURS = "#8a93a6", ("#1764c0", "#d2691e", "#2e8b57")


def read_rows(path: Path) -> tuple[list[dict], int]:
    """The rows of a JSONL file, and how many lines could not be read."""
    rows, broken = [], 0
    for line in path.read_text(errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            broken += 1
    return rows, broken


def training_curves(workdir: str | Path) -> Figure:
    """Loss, accuracy and learning rate of a run against its updates.

    Args:
      workdir: the folder of the run, which holds `metrics.jsonl`.

    Returns:
      A figure of three panels; save it with `figure.savefig("curves.svg")`.
    """
    rows, _ = read_rows(Path(workdir) / "metrics.jsonl")
    series = defaultdict(list)
    for row in rows:
        series[row["kind"]].append(row)
    train = series.pop("train", [])
    # Its scale is that of a study, not of a run.
    series.pop("noise", None)
    ramp = series.pop("ramp", [])
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    steps = [row["step"] for row in train]
    loss.plot(steps, [row["loss"] for row in train], color=TRAIN_COLOUR, linewidth=1, label="training batch")
    accuracy.plot(
        steps, [100 * row["accuracy"] for row in train], color=TRAIN_COLOUR, linewidth=1, label="training batch"
    )
    rate.plot(steps, [row["learning_rate"] for row in train], color="black", linewidth=1.2)
    for (name, split), colour in zip(series.items(), TEST_COLOURS, strict=False):
        at = [row["step"] for row in split]
        loss.plot(at, [row["loss"] for row in split], "o-", color=colour, markersize=3, linewidth=1.2, label=name)
        values = [100 * row["accuracy"] for row in split]
        accuracy.plot(at, values, "o-", color=colour, markersize=3, linewidth=1.2, label=f"{name}: {values[-1]:.2f}%")
    for row in ramp:
        rate.axvline(row["step"], color=TRAIN_COLOUR, linewidth=0.8, linestyle=":")
        place = rate.get_xaxis_transform()
        rate.text(
            row["step"], 0.02, f" batch {row['batch_size']}", transform=place, rotation=90, fontsize=7, va="bottom"
        )
    loss.set(title="Loss", xlabel="update", yscale="log")
    accuracy.set(title="Accuracy (%)", xlabel="update", ylim=(max(0, _floor(series)), 100.2))
    rate.set(title="Learning rate", xlabel="update", ylim=(0, None))
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    loss.yaxis.set_minor_formatter(NullFormatter())
    for axes in (loss, accuracy, rate):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    loss.legend(frameon=False, fontsize=8)
    accuracy.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _floor(series) -> float:
    """Where the accuracy axis starts: low enough for the second half of training, so that the end can be read."""
    ends = [100 * row["accuracy"] for split in series.values() for row in split[len(split) // 2 :]]
    return min(ends) - 5 if ends else 0


def read_study(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The rows of a study, the last of each key, those with an error too.

    Raises:
      UsageError: the folder holds no rows.
    """
    path = Path(folder) / "results.jsonl"
    if not path.exists():
        raise UsageError(f"{folder} holds no study: it has no results.jsonl")
    return {row["key"]: row for row in read_rows(path)[0]}
