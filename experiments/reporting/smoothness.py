"""Question 2: how much the loss swings and how noisy the gradient is, from the study's files alone."""

import itertools
import math
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
    needed,
    number,
    sizes_axis,
)

_SHADES = ("#9cc3f0", "#5b97dd", "#1764c0", "#0d3f7c", "#061f3e")


def smoothness_figure(folder: str | Path) -> Figure:
    """The losses of the first updates, their swing against batch size, and the noise scale as training goes on.

    Raises:
      UsageError: the part `smoothness` of the study has not been run.
    """
    found = needed(folder, "smoothness")
    drawing, (curves, swing, noise) = canvas(2.7, panels=3)
    for entry, shade in zip(found["sizes"], itertools.cycle(_SHADES), strict=False):
        curves.plot(entry["losses"], color=shade, linewidth=0.6, label=f"batch {entry['batch_size']:,}")
    curves.set(xlabel="update")
    logarithmic(curves, "loss")
    if found["sizes"]:
        curves.legend(frameon=False, fontsize=8, loc="lower left")
    sizes, values = ([entry[name] for entry in found["sizes"]] for name in ("batch_size", "swing"))
    swing.plot(sizes, values, "o", color=COLOUR)
    rule = [values[0] * (size / sizes[0]) ** -0.5 for size in sizes]
    swing.plot(sizes, rule, "--", color=GREY, linewidth=1, label="one over the square root")
    sizes_axis(swing, sizes)
    logarithmic(swing, "swing of the loss")
    if sizes:
        swing.legend(frameon=False, fontsize=8)
    windows = [w for w in found["noise"] if math.isfinite(w["scale"])]
    bounds = [end for w in found["noise"] for end in (w["scale"], *w["interval"]) if 0 < end < math.inf]
    top = 2 * max(bounds, default=1.0)
    for window in found["noise"]:
        low, high = window["interval"]
        noise.plot([window["update"]] * 2, [max(low, min(bounds, default=1.0)), min(high, top)], "-", color=SECOND)
        if not math.isfinite(high):
            noise.plot(window["update"], top, "^", color=SECOND, markerfacecolor="none")
    noise.plot([w["update"] for w in windows], [w["scale"] for w in windows], "o-", color=SECOND, markersize=4)
    noise.set(xlabel="update")
    logarithmic(noise, "noise scale (examples)")
    return drawing


def smoothness_sections(folder: str | Path) -> list[Section]:
    """The section, if the part was run."""
    found = analysis(folder, "smoothness")
    if found is None or not (found["sizes"] and found["noise"]):
        return []
    parts = [
        figure(
            smoothness_figure(folder),
            f"Above: the loss of each of the first {len(found['sizes'][0]['losses']):,} updates at one rate. Middle: "
            "how far one loss is from the next. Below: the gradient noise scale of a run with batch "
            f"{found['noise_batch_size']}, averaged over parts of it, with intervals of "
            f"{found['confidence']:.0%}; a triangle: no upper bound.",
        ),
        table(
            ("batch size", "swing", "mean loss", "swing / loss"),
            [
                (f"{e['batch_size']:,}", number(e["swing"]), number(e["loss"]), f"{e['swing'] / e['loss']:.2f}")
                for e in found["sizes"]
            ],
        ),
    ]
    if found["noise"]:
        parts.append(
            table(
                ("update", "loss", "noise scale", f"interval ({found['confidence']:.0%})"),
                [
                    (f"{w['update']:,.0f}", number(w["loss"]), number(w["scale"]), interval(w["interval"]))
                    for w in found["noise"]
                ],
            )
        )
    title = "How much does the loss swing, and how noisy is the gradient?"
    return [Section(2, title, _answer(found), parts)]


def _answer(found: dict[str, Any]) -> str:
    sizes = found["sizes"]
    text = (
        f"Over the first {len(sizes[0]['losses']):,} updates the loss swings by {number(sizes[0]['swing'])} at a batch "
        f"of {sizes[0]['batch_size']:,} and by {number(sizes[-1]['swing'])} at {sizes[-1]['batch_size']:,}"
    )
    if found["power"] is not None:
        text += f", with the power {found['power']:.2f} of the batch size (-0.5 is the square root of the examples)"
    if len(found["noise"]) == 1:
        (only,) = found["noise"]
        text += (
            f". The noise scale is {number(only['scale'])} ({interval(only['interval'])}) examples at a loss of "
            f"{number(only['loss'])}; too few measurements to tell how it changes"
        )
    elif found["noise"]:
        first, last = found["noise"][0], found["noise"][-1]
        text += (
            f". The noise scale goes from {number(first['scale'])} ({interval(first['interval'])}) to "
            f"{number(last['scale'])} ({interval(last['interval'])}) examples as the loss goes from "
            f"{number(first['loss'])} to {number(last['loss'])}"
        )
    return text + "."
