"""The norm beside its peers, in one picture."""

import json
import math
from pathlib import Path

from matplotlib.figure import Figure

OURS = "batchnorm_jax"
OUR_COLOUR, PEER_COLOUR = "#1764c0", "#b9c1ce"
LABELS = {"torch": "PyTorch", "torch_nchw": "PyTorch, NCHW", "flax": "Flax", "flax_stable": "Flax, stable variance"}


def norm_figure(path: str | Path) -> Figure:
    """Time, memory and exactness of the norm, a panel for each part that was measured.

    Args:
      path: the `norm.json` of `experiments.benchmark --suite=norm`.
    """
    results = json.loads(Path(path).read_text())["rows"]
    panels = [
        (part, draw)
        for part, draw in (("speed", _speed), ("gpu", _speed), ("memory", _memory), ("accuracy", _accuracy))
        if part in results and "note" not in results[part]
    ]
    figure = Figure(figsize=(4.2 * max(1, len(panels)), 3.6), layout="constrained")
    for axes, (part, draw) in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
        draw(axes, results[part])
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _speed(axes, result) -> None:
    """For each peer how many times as long as ours it takes: a dot a case, a bar for the geometric mean."""
    rows = result["rows"]
    peers = list(rows[0]["ratio"])
    labels = []
    for i, peer in enumerate(peers[::-1]):
        values = [1 / row["ratio"][peer]["median"] for row in rows]
        mean = math.prod(values) ** (1 / len(values))
        labels.append(f"{LABELS.get(peer, peer.capitalize())}  {mean:.2f}")
        axes.barh(i, mean, color=PEER_COLOUR, height=0.6)
        axes.plot(values, [i] * len(values), "o", color="black", markersize=3, alpha=0.6)
    axes.axvline(1, color=OUR_COLOUR)
    axes.set_yticks(range(len(peers)), labels)
    axes.set(title="Forward and backward time", xlabel="times that of batchnorm_jax (a dot a shape)", xlim=(0, None))


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
        title="Temporary memory of a ResNet-50 step",
        xlabel=f"GiB (batch {net['batch_size']}, {net['image_size']} px, bfloat16)",
        xlim=(0, 1.15 * max(sizes)),
    )


def _accuracy(axes, rows) -> None:
    styles = {
        "all_gather": (OUR_COLOUR, "o-", "batchnorm_jax, all_gather"),
        "psum": (OUR_COLOUR, "s--", "batchnorm_jax, psum, no shift"),
        "flax": ("#7b8494", "^:", "Flax"),
        "flax_stable": ("#d2691e", "D-", "Flax, stable variance"),
    }
    for name, (colour, style, label) in styles.items():
        chosen = [r for r in rows if r["name"] == name and "no shift" in r["what"]]
        ratios = [float(r["what"].split()[1].rstrip(",")) for r in chosen]
        axes.loglog(ratios, [r["y"] for r in chosen], style, color=colour, label=label, markersize=4)
    axes.axhline(1e-5, color="black", linewidth=0.6)
    axes.set(title="Greatest error of y, float32", xlabel="mean / standard deviation", ylim=(1e-8, 1e4))
    axes.legend(frameon=False, fontsize=7, loc="upper left")
