"""The norm beside its peers, in one picture."""

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import _files, benchmark_records
from experiments.reporting.section import fitting
from experiments.reporting.style import dress, legend

OURS = "batchnorm_jax"
OUR_COLOUR, PEER_COLOUR = "#1764c0", "#b9c1ce"
ERRORS = {
    "default": (OUR_COLOUR, "o-", "batchnorm_jax, the default: running mean 1 std off"),
    "all_gather": ("#009e73", "v-", "batchnorm_jax, all_gather"),
    "psum": ("#56b4e9", "s--", "batchnorm_jax, psum, first step: no running mean"),
    "flax": ("#5a6475", "^:", "Flax, fast variance"),
    "flax_stable": ("#d55e00", "D-", "Flax, stable variance"),
}
LABELS = {"torch": "PyTorch", "torch_nchw": "PyTorch, NCHW", "flax": "Flax", "flax_stable": "Flax, stable variance"}


def norm_figure(path: str | Path) -> Figure:
    """Time, memory and exactness of the norm, a panel for each part that was measured.

    Args:
      path: the `norm.json` of `experiments.benchmark --suite=norm`.

    Raises:
      UsageError: the file is not there, or is damaged.
    """
    with fitting(path):
        return _drawn(_files.read_json(Path(path), benchmark_records.NORM)["rows"])


def _drawn(results: dict[str, Any]) -> Figure:
    panels = [
        (part, draw)
        for part, draw in (("speed", _speed), ("gpu", _speed), ("memory", _memory), ("accuracy", _accuracy))
        if part in results and "note" not in results[part]
    ]
    figure = Figure(figsize=(4.6 * max(1, len(panels)), 4.4), layout="constrained")
    for axes, (part, draw) in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
        draw(axes, results[part])
        dress(axes)
    return figure


def _speed(axes: Axes, result: dict[str, Any]) -> None:
    """The time of ours as a share of each peer's, as the table has it: a dot a case, a bar for the geometric mean."""
    rows = result["rows"]
    peers = list(rows[0]["ratio"])[::-1]
    labels, dots = [], []
    for i, peer in enumerate(peers):
        values = [row["ratio"][peer]["median"] for row in rows]
        mean = math.prod(values) ** (1 / len(values))
        labels.append(f"{LABELS.get(peer, peer.capitalize())}  {mean:.2f}")
        dots += [(value, i) for value in values]
        axes.barh(i, mean, color=PEER_COLOUR, height=0.6, label="geometric mean" if i == 0 else None)
    axes.plot(*zip(*dots, strict=True), "o", color="black", markersize=3, alpha=0.6, label="a shape")
    axes.axvline(1, color=OUR_COLOUR, label="as long as the peer")
    axes.set_yticks(range(len(peers)), labels)
    axes.set(xlabel="time of batchnorm_jax / time of the peer", xlim=(0, None))
    legend(axes, "Forward and backward time (less is better)")


def _memory(axes, result) -> None:
    rows = result["resnet50"]["rows"][::-1]
    sizes = [row["temporary"] / 2**30 for row in rows]
    colours = [OUR_COLOUR if row["name"].startswith(OURS) else PEER_COLOUR for row in rows]
    axes.barh(range(len(rows)), sizes, color=colours, height=0.6)
    for i, (size, row) in enumerate(zip(sizes, rows, strict=True)):
        axes.text(size, i, f" {size:.2f}", va="center", fontsize=8)
        row["label"] = LABELS.get(row["name"], row["name"].replace(", ", ",\n"))
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    net = result["resnet50"]
    axes.set(
        xlabel=f"GiB (batch {net['batch_size']}, {net['image_size']} px, bfloat16)",
        xlim=(0, 1.15 * max(sizes)),
    )
    legend(axes, "Temporary memory of a ResNet-50 step (less is better)")


def _accuracy(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """The greatest error of y by the distance of the mean from zero."""
    for name, (colour, style, label) in ERRORS.items():
        # Without a shift it is the first step of training; with one, the default at any later step.
        chosen = [row for row in rows if row["name"] == name and (name == "default" or "no shift" in row["what"])]
        if chosen:
            ratios = [float(row["what"].split()[1].rstrip(",")) for row in chosen]
            axes.loglog(ratios, [row["y"] for row in chosen], style, color=colour, label=label, markersize=4)
    axes.axhline(1e-5, color="black", linewidth=0.8, linestyle="--", label="an error of 1e-5")
    axes.set(xlabel="mean / standard deviation", ylabel="greatest error of y", ylim=(1e-8, 1e4))
    legend(axes, "Exactness in float32 (less is better)")
