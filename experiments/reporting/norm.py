"""The figure of the norm suite: the norm's time, memory and exactness beside its peers."""

import math
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import _files
from ..records.benchmarks.norm import AccuracyRow, Memory, NormFile, NormRows, Speed
from .section import fitting
from .style import dress, legend

OUR_COLOUR, PEER_COLOUR = "#1764c0", "#b9c1ce"
LABELS = {"torch": "PyTorch", "torch_nchw": "PyTorch, NCHW", "flax": "Flax", "flax_stable": "Flax, stable variance"}


class ErrorLine(NamedTuple):
    """The look of the line that shows the errors of one way to compute.

    Attributes:
      colour: the colour of the line.
      style: the style of the line and its markers.
      label: the label in the legend.
      of_first_step: whether the line shows the first step of training, which has no running mean, or any later step.
    """

    colour: str
    style: str
    label: str
    of_first_step: bool = True


# The looks of the lines, by the name of the way to compute.
ERROR_LINES = {
    "default": ErrorLine(OUR_COLOUR, "o-", "batchnorm_jax, the default: running mean 1 std off", of_first_step=False),
    "all_gather": ErrorLine("#009e73", "v-", "batchnorm_jax, all_gather"),
    "psum": ErrorLine("#56b4e9", "s--", "batchnorm_jax, psum, first step: no running mean"),
    "flax": ErrorLine("#5a6475", "^:", "Flax, fast variance"),
    "flax_stable": ErrorLine("#d55e00", "D-", "Flax, stable variance"),
}


def norm_figure(path: str | Path) -> Figure:
    """Draws the norm's time, memory and exactness, one panel per part that was measured.

    Args:
      path: the `norm.json` of `experiments.benchmark --suite=norm`.

    Raises:
      UsageError: the file is missing or damaged.
    """
    with fitting(path):
        return _drawn(_files.read_json(Path(path), NormFile).rows)


def _drawn(results: NormRows) -> Figure:
    panels = [
        *((_speed, speed) for speed in (results.speed, results.gpu) if speed is not None and speed.note is None),
        *(
            (draw, part)
            for draw, part in ((_memory, results.memory), (_accuracy, results.accuracy))
            if part is not None
        ),
    ]
    columns = max(1, len(panels))
    figure = Figure(figsize=(4.6 * columns, 4.4), layout="constrained")
    for axes, (draw, part) in zip(figure.subplots(1, columns, squeeze=False)[0], panels, strict=False):
        draw(axes, part)
        dress(axes)
    return figure


def _speed(axes: Axes, result: Speed) -> None:
    """Draws this library's time divided by each peer's: one dot per case, and a bar for their geometric mean."""
    peers = list(result.rows[0].ratio)[::-1]
    labels, dots = [], []
    for i, peer in enumerate(peers):
        values = [row.ratio[peer].median for row in result.rows]
        mean = math.prod(values) ** (1 / len(values))
        labels.append(f"{LABELS.get(peer, peer.capitalize())}  {mean:.2f}")
        dots += [(value, i) for value in values]
        axes.barh(i, mean, color=PEER_COLOUR, height=0.6, label="geometric mean" if i == 0 else None)
    axes.plot(*zip(*dots, strict=True), "o", color="black", markersize=3, alpha=0.6, label="a shape")
    axes.axvline(1, color=OUR_COLOUR, label="as long as the peer")
    axes.set_yticks(range(len(peers)), labels)
    axes.set(xlabel="time of batchnorm_jax / time of the peer", xlim=(0, None))
    legend(axes, "Forward and backward time (less is better)")


def _memory(axes: Axes, result: Memory) -> None:
    """Draws the temporary memory of each network."""
    network = result.resnet50
    rows = network.rows[::-1]
    sizes = [row.temporary / 2**30 for row in rows]
    axes.barh(range(len(rows)), sizes, color=[OUR_COLOUR if row.is_ours else PEER_COLOUR for row in rows], height=0.6)
    for i, size in enumerate(sizes):
        axes.text(size, i, f" {size:.2f}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [LABELS.get(row.name, row.name.replace(", ", ",\n")) for row in rows])
    axes.set(
        xlabel=f"GiB (batch {network.batch_size}, {network.image_size} px, bfloat16)",
        xlim=(0, 1.15 * max(sizes)),
    )
    legend(axes, "Temporary memory of a ResNet-50 step (less is better)")


def _accuracy(axes: Axes, rows: list[AccuracyRow]) -> None:
    """Draws the greatest error of y by the distance of the mean from zero."""
    for name, line in ERROR_LINES.items():
        chosen = [row for row in rows if row.name == name and (row.has_no_shift or not line.of_first_step)]
        if chosen:
            places, errors = [row.mean_over_std for row in chosen], [row.y for row in chosen]
            axes.loglog(places, errors, line.style, color=line.colour, label=line.label, markersize=4)
    axes.axhline(1e-5, color="black", linewidth=0.8, linestyle="--", label="an error of 1e-5")
    axes.set(xlabel="mean / standard deviation", ylabel="greatest error of y", ylim=(1e-8, 1e4))
    legend(axes, "Exactness in float32 (less is better)")
