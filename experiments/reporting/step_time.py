"""Question 1: how long an epoch takes, from the study's files alone."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

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


def time_figure(folder: str | Path) -> Figure:
    """Seconds of an epoch against batch size, in all and computing only, with the fitted curve and the knee.

    Raises:
      FileNotFoundError: the part `time` of the study has not been run.
    """
    found = analysis(folder, "time")
    if found is None:
        raise FileNotFoundError(f"{folder} holds no time.json: run --parts=time of the study")
    drawing, (axes,) = canvas()
    sizes = [entry["batch_size"] for entry in found["sizes"]]
    for name, colour, marker, label in (
        ("epoch_in_all", GREY, "s", "in all"),
        ("epoch_computing", COLOUR, "o", "computing"),
    ):
        values = [entry[name] for entry in found["sizes"]]
        axes.plot(sizes, values, marker, color=colour, markersize=4, alpha=0.8, label=label)
    if fit := found["fit"]:
        low, high = min(sizes), max(sizes)
        grid = [low * (high / low) ** (i / 60) for i in range(61)]
        curve = [found["train_size"] * (fit["overhead"] / b + 1 / fit["throughput"]) for b in grid]
        axes.plot(grid, curve, "-", color=COLOUR, linewidth=1.2, label="t0 + B / R, of whole epochs")
        if low < fit["knee"] < high:
            axes.axvline(fit["knee"], color=SECOND, linewidth=1)
            axes.annotate(
                "knee",
                (fit["knee"], 0.95),
                xycoords=("data", "axes fraction"),
                xytext=(4, -6),
                textcoords="offset points",
                fontsize=9,
                color=SECOND,
            )
    sizes_axis(axes, sizes)
    logarithmic(axes, "seconds of an epoch")
    axes.legend(frameon=False, fontsize=8)
    return drawing


def time_sections(folder: str | Path) -> list[Section]:
    """The section, if the part was run."""
    found = analysis(folder, "time")
    if found is None or not found["sizes"]:
        return []
    rows = [
        (
            f"{entry['batch_size']:,}",
            entry["kind"],
            number(1000 * statistics.median(entry["computing"])),
            f"{number(1000 * min(entry['computing']))} to {number(1000 * max(entry['computing']))}",
            number(entry["epoch_computing"]),
            number(entry["epoch_in_all"]),
            number(entry["batch_size"] / statistics.median(entry["computing"])),
        )
        for entry in found["sizes"]
    ]
    head = ("batch size", "kind", "ms an update", "rounds", "epoch, s", "in all, s", "examples/s")
    parts = [
        figure(
            time_figure(folder),
            "Medians over the rounds. In all: with what the compiled step does not hide, without start, compilation "
            "and evaluation.",
        ),
        table(head, rows),
    ]
    if found["neighbours"]:
        parts += [
            "<p>Throughput of a size over that of the power of two beside it, in the same round:</p>",
            table(
                ("batch size", "kind", "beside", "median", "rounds"),
                [
                    (
                        f"{entry['batch_size']:,}",
                        entry["kind"],
                        f"{entry['power']:,}",
                        f"{entry['throughput'][0]:.2f}",
                        f"{entry['throughput'][1]:.2f} to {entry['throughput'][2]:.2f}",
                    )
                    for entry in found["neighbours"]
                ],
            ),
        ]
    title = "How long is an epoch, and where does a larger batch stop helping?"
    return [Section(1, title, _answer(found), parts)]


def _answer(found: dict[str, Any]) -> str:
    first, best = found["sizes"][0], min(found["sizes"], key=lambda entry: entry["epoch_computing"])
    text = (
        f"An epoch takes {number(first['epoch_computing'])} s of computing at a batch of {first['batch_size']:,} and "
        f"{number(best['epoch_computing'])} s, the least, at {best['batch_size']:,}"
    )
    if fit := found["fit"]:
        text += (
            f"; half of an update is overhead at {number(fit['knee'])} ({interval(fit['intervals']['knee'])}), and "
            "well beyond that a larger batch does not make an epoch faster"
        )
    if found["neighbours"]:
        ratios = [entry["throughput"][0] for entry in found["neighbours"]]
        spread = [end for entry in found["neighbours"] for end in entry["throughput"][1:]]
        verdict = "not told apart from" if min(spread) <= 1 <= max(spread) else "different from"
        text += (
            f". Sizes beside a power of two have {min(ratios):.2f} to {max(ratios):.2f} of its throughput, which is "
            f"{verdict} 1 by the spread of the rounds"
        )
    return text + "."
