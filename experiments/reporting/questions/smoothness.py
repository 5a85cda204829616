"""Question 2: how much the loss swings and how noisy the gradient is, from the study's files alone."""

import itertools
import math
from typing import Any

from matplotlib.figure import Figure

from ...records.questions.smoothness import Analysis
from ..document import figure, table
from ..question import Report
from ..section import Section, interval
from ..study_files import Source, StudyFiles, opened
from ..style import (
    COLOUR,
    GREY,
    PALETTE,
    SECOND,
    canvas,
    legend,
    logarithmic,
    number,
    sizes_axis,
)


def smoothness_figure(study: Source) -> Figure:
    """Draws the losses of the first updates, their swing against batch size, and the noise scale of a run.

    Args:
      study: the study, or its folder.

    Raises:
      UsageError: the part `smoothness` of the study has not been run.
    """
    found = opened(study).needed("smoothness", Analysis)
    drawing, (curves, swing, noise) = canvas(3.1, panels=3)
    for entry, colour in zip(found.sizes, itertools.cycle(PALETTE), strict=False):
        # Calmer ones lie upon those that swing more.
        curves.plot(entry.losses, color=colour, linewidth=0.7, label=f"batch {entry.batch_size:,}")
    curves.set(xlabel="update")
    logarithmic(curves, "loss")
    legend(curves, "Loss of each update")
    sizes, values = [entry.batch_size for entry in found.sizes], [entry.swing for entry in found.sizes]
    swing.plot(sizes, values, "o", color=COLOUR, label="measured")
    # Through the middle of the points, none of which is exact.
    middle = [value * size**0.5 for size, value in zip(sizes, values, strict=True)]
    rule = [math.prod(middle) ** (1 / len(middle)) * size**-0.5 for size in sizes]
    swing.plot(sizes, rule, "--", color=GREY, linewidth=1, label="one over the square root of the batch")
    sizes_axis(swing, sizes)
    logarithmic(swing, "swing of the loss")
    legend(swing, "How far one loss is from the next")
    windows = [w for w in found.noise if math.isfinite(w.scale)]
    bounds = [end for w in found.noise for end in (w.scale, *w.interval) if 0 < end < math.inf]
    top = 2 * max(bounds, default=1.0)
    for window in found.noise:
        low, high = window.interval
        noise.vlines(window.update, max(low, min(bounds, default=1.0)), min(high, top), color=SECOND)
    if endless := [w.update for w in found.noise if not math.isfinite(w.interval[1])]:
        style: dict[str, Any] = {"color": SECOND, "markerfacecolor": "none", "label": "no upper bound"}
        noise.plot(endless, [top] * len(endless), "^", **style)
    noise.plot(
        [w.update for w in windows],
        [w.scale for w in windows],
        "o-",
        color=SECOND,
        markersize=4,
        label="measured, with interval",
    )
    noise.set(xlabel="update")
    logarithmic(noise, "noise scale (examples)")
    legend(noise, "Gradient noise scale")
    return drawing


def smoothness_sections(study: StudyFiles) -> list[Section]:
    """Returns the section, if the part was run."""
    found = study.analysis("smoothness", Analysis)
    if found is None or not (found.sizes and found.noise):
        return []
    parts = [
        figure(
            smoothness_figure(study),
            f"The first {len(found.sizes[0].losses):,} updates at one rate; and the gradient noise scale of a "
            f"run with batch {found.noise_batch_size}, averaged over parts of it, with intervals of "
            f"{found.confidence:.0%}.",
        ),
        table(
            ("batch size", "swing", "mean loss", "swing / loss"),
            [(f"{e.batch_size:,}", number(e.swing), number(e.loss), f"{e.swing / e.loss:.2f}") for e in found.sizes],
        ),
    ]
    if found.noise:
        parts.append(
            table(
                ("update", "loss", "noise scale", f"interval ({found.confidence:.0%})"),
                [(f"{w.update:,.0f}", number(w.loss), number(w.scale), interval(w.interval)) for w in found.noise],
            )
        )
    title = "How much does the loss swing, and how noisy is the gradient?"
    return [Section(2, title, answer(found), parts)]


def answer(found: Analysis) -> str:
    """Returns the swing at the smallest and the largest batch size, and the noise scale at both ends of the run."""
    sizes = found.sizes
    text = (
        f"Over the first {len(sizes[0].losses):,} updates the loss swings by {number(sizes[0].swing)} at a batch "
        f"of {sizes[0].batch_size:,} and by {number(sizes[-1].swing)} at {sizes[-1].batch_size:,}"
    )
    if found.power is not None:
        text += f", with the power {found.power:.2f} of the batch size (-0.5 is the square root of the examples)"
    if len(found.noise) == 1:
        (only,) = found.noise
        text += (
            f". The noise scale is {number(only.scale)} ({interval(only.interval)}) examples at a loss of "
            f"{number(only.loss)}; too few measurements to tell how it changes"
        )
    elif found.noise:
        first, last = found.noise[0], found.noise[-1]
        text += (
            f". The noise scale goes from {number(first.scale)} ({interval(first.interval)}) to "
            f"{number(last.scale)} ({interval(last.interval)}) examples as the loss goes from "
            f"{number(first.loss)} to {number(last.loss)}"
        )
    return text + "."


REPORT = Report(order=20, sections=(smoothness_sections,))
