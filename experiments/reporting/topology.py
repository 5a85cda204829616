"""The norm as compiled for accelerators that were not there, beside Flax's, in one picture."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import _files, benchmark_records
from experiments.reporting.section import fitting
from experiments.reporting.style import legend

FLAX = "flax"
FUSIONS = {"": "norm", "relu": "norm, ReLU", "residual": "norm + residual, ReLU"}
COLOURS = {
    FLAX: "#7b8494",
    "plain": "#1764c0",
    "fused": "#6aa5e8",
    "policy": "#d2691e",
    "span": "#2a9d8f",
    "local": "#b07aa1",
    "none": "#d5dae2",
}
BAR_HEIGHT = 0.8


def topology_figure(path: str | Path) -> Figure:
    """Layers and networks as ratios to Flax's, the networks' memory, and pooling by devices: a panel for each there is.

    Args:
      path: the result of `experiments.benchmark --suite=norm --topology=...`.

    Raises:
      UsageError: the file is not there, or is damaged.
    """
    with fitting(path):
        return _drawn(_files.read_json(Path(path), benchmark_records.TOPOLOGY)["rows"])


def _drawn(results: dict[str, Any]) -> Figure:
    layers, networks = (_compiled(results.get(part, ())) for part in ("layers", "resnet50"))
    panels = [(_layers, layers)] if layers else []
    panels += [(_work, networks), (_memory, networks)] if networks else []
    costs = results.get("pods", ())
    panels += [(_pods, costs)] if costs else []
    # Each bar of a layer has a number beside it.
    height = max(4.2, 1.4 + 0.16 * len(layers))
    figure = Figure(figsize=(max(7.5, 5.2 * len(panels)), height), layout="constrained")
    figure.suptitle(f"Compiled for {results['topology']} ({results['title']}), figures of one device", fontsize=11)
    for axes, (draw, rows) in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
        draw(axes, rows)
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
    if not panels:
        (axes,) = figure.axes
        axes.set_axis_off()
        notes = {row["note"] for part in ("layers", "resnet50") for row in results.get(part, ())}
        axes.text(0.5, 0.5, "\n".join(sorted(notes)), ha="center", wrap=True)
    return figure


def _compiled(rows) -> list[dict[str, Any]]:
    return [row for row in rows if row["figures"] is not None]


def _metric(rows) -> tuple[str, str]:
    """The figure that tells the work: cycles where the compiler estimates them."""
    if all(row["figures"]["cycles"] is not None for row in rows):
        return "cycles", "estimated cycles"
    return "bytes", "bytes moved in main memory"


def _layers(axes: Axes, rows) -> None:
    """A group of bars for each shape and fusion, a bar for each variant."""
    metric, name = _metric(rows)
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        shape = ",".join(map(str, row["job"]["shape"]))
        groups.setdefault(f"{FUSIONS[row['job']['fusion']]}\n{shape}", []).append(row)
    named: set[str] = set()
    for i, group in enumerate(groups.values()):
        height = BAR_HEIGHT / len(group)
        for j, row in enumerate(group):
            value = (row["ratio"] or {}).get(metric)
            if value is None:
                continue
            y, variant = i - BAR_HEIGHT / 2 + (j + 0.5) * height, row["job"]["variant"]
            label = None if variant in named else row["title"]
            named.add(variant)
            axes.barh(y, value, height=0.9 * height, color=COLOURS.get(variant), label=label)
            axes.text(value, y, f" {value:.2f}", va="center", fontsize=7)
    axes.axvline(1, color="black", linewidth=0.6, label="as much as Flax's")
    axes.set_yticks(range(len(groups)), list(groups), fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=f"{name}, relative to Flax")
    axes.margins(x=0.12)
    legend(axes, "One layer, forward and backward, bfloat16", columns=2)


def _work(axes: Axes, rows) -> None:
    metric, name = _metric(rows)
    scale, unit = (1e6, "millions") if metric == "cycles" else (1e9, "GB")
    _bars(axes, rows, [row["figures"][metric] / scale for row in rows], metric)
    axes.set(title=f"ResNet-50 train step: {name}", xlabel=f"{unit} ({_case(rows)})")


def _memory(axes: Axes, rows) -> None:
    largest = {row["title"]: (row["largest"] or {}).get("examples") for row in rows}
    notes = {title: f"largest batch {examples}" for title, examples in largest.items() if examples}
    _bars(axes, rows, [row["figures"]["temporary"] / 2**30 for row in rows], "temporary", notes)
    axes.set(title="ResNet-50 train step: temporary memory", xlabel=f"GiB ({_case(rows)})")


def _pods(axes: Axes, rows) -> None:
    """Draws the time that pooling adds to a step by the number of devices, for the whole batch and for spans."""
    devices = [row["devices"] for row in rows]
    for name, title, colour in (
        ("whole_seconds", "the whole batch", COLOURS["plain"]),
        ("span_seconds", f"spans of {devices[0]} devices", COLOURS["span"]),
    ):
        axes.plot(devices, [1e3 * row[name] for row in rows], marker="o", color=colour, label=title)
    step = 1e3 * rows[0]["step_seconds"]
    axes.set(xlabel="devices", ylabel="ms per step")
    axes.set_xscale("log", base=2)
    axes.set_xticks(devices, [f"{n:,}" for n in devices], rotation=45)
    axes.set_ylim(bottom=0)
    legend(axes, f"What pooling adds to a step of {step:.3g} ms, computed")


def _bars(axes: Axes, rows, values: list[float], metric: str, notes: dict[str, str] | None = None) -> None:
    axes.barh(range(len(rows)), values, color=[COLOURS.get(row["job"]["variant"]) for row in rows], height=0.6)
    for i, (value, row) in enumerate(zip(values, rows, strict=True)):
        ratio = (row["ratio"] or {}).get(metric)
        text = f" {value:.3g}" + ("" if ratio is None or row["job"]["variant"] == FLAX else f", {ratio:.2f} of Flax")
        note = (notes or {}).get(row["title"])
        axes.text(value, i, f"{text}\n {note}" if note else text, va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row["title"].replace(", ", ",\n", 1) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.5 * max(values))


def _case(rows) -> str:
    job = rows[0]["job"]
    return f"{job['batch_size']} images of {job['image_size']} px, bfloat16"
