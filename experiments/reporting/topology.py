"""The figure of the norm compiled for accelerators that the machine lacks, beside Flax's norm."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import _files
from ..records.benchmarks.topology import (
    FLAX,
    FUSIONS,
    AnyJob,
    Figures,
    LayerJob,
    NetworkJob,
    PoolingCost,
    Row,
    TopologyFile,
    TopologyRows,
)
from .section import fitting
from .style import legend

# The colours of bars, by the variant of the norm.
COLOURS = {
    FLAX: "#7b8494",
    "plain": "#1764c0",
    "fused": "#6aa5e8",
    "policy": "#d2691e",
    "span": "#2a9d8f",
    "local": "#b07aa1",
    "none": "#d5dae2",
}
WHOLE_BATCH_COLOUR, SPAN_COLOUR = COLOURS["plain"], COLOURS["span"]
# The height of a group of bars, as a share of the distance between two groups.
GROUP_HEIGHT_SHARE = 0.8
# The height of a layer's bar in inches, which leaves room for the number beside the bar.
BAR_INCHES = 0.16


def topology_figure(path: str | Path) -> Figure:
    """Draws the work and the memory of layers and networks relative to Flax's, and the cost of pooling by devices.

    Each part of the file has one or two panels.

    Args:
      path: the path of the file that `experiments.benchmark --suite=norm --topology=...` has written.

    Raises:
      UsageError: the file is missing or damaged.
    """
    with fitting(path):
        return _drawn(_files.read_json(Path(path), TopologyFile).rows)


def _drawn(results: TopologyRows) -> Figure:
    layers, networks, costs = _compiled(results.layers), _compiled(results.resnet50), results.pods or []
    panels: list[Callable[[Axes], None]] = [lambda axes: _layers(axes, layers)] if layers else []
    panels += [lambda axes: _work(axes, networks), lambda axes: _memory(axes, networks)] if networks else []
    panels += [lambda axes: _pods(axes, costs)] if costs else []
    height = max(4.2, 1.4 + BAR_INCHES * len(layers))
    figure = Figure(figsize=(max(7.5, 5.2 * len(panels)), height), layout="constrained")
    figure.suptitle(f"Compiled for {results.topology} ({results.title}), figures of one device", fontsize=11)
    for axes, draw in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
        draw(axes)
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
    if not panels:
        (axes,) = figure.axes
        axes.set_axis_off()
        notes = {row.note or "" for row in (*(results.layers or ()), *(results.resnet50 or ()))}
        axes.text(0.5, 0.5, "\n".join(sorted(notes)), ha="center", wrap=True)
    return figure


class _Compiled(NamedTuple):
    """A row that was compiled."""

    row: Row
    figures: Figures

    @property
    def colour(self) -> str | None:
        return COLOURS.get(self.row.job.variant)


def _compiled(rows: Sequence[Row[AnyJob]] | None) -> list[_Compiled]:
    return [_Compiled(row, row.figures) for row in rows or () if row.figures is not None]


class _Metric(NamedTuple):
    """The figure that measures the work of a program.

    Attributes:
      name: the name of the figure, in words.
      value: a function that reads the figure.
      ratio: a function that reads the ratio to Flax's figure.
      scale: the unit of a network's figure, and the name of the unit.
    """

    name: str
    value: Callable[[Figures], float]
    ratio: Callable[[Row], float | None]
    scale: tuple[float, str]


_CYCLES = _Metric(
    "estimated cycles",
    lambda figures: figures.cycles or 0,
    lambda row: row.ratio.cycles if row.ratio else None,
    (1e6, "millions"),
)
_BYTES = _Metric(
    "bytes moved in main memory",
    lambda figures: figures.bytes,
    lambda row: row.ratio.bytes if row.ratio else None,
    (1e9, "GB"),
)


def _metric(rows: Sequence[_Compiled]) -> _Metric:
    """Returns the metric of the rows: cycles if the compiler estimates them for all rows, else bytes."""
    return _CYCLES if all(figures.cycles is not None for _, figures in rows) else _BYTES


def _layers(axes: Axes, rows: Sequence[_Compiled]) -> None:
    """Draws one group of bars per shape and fusion, and one bar per variant in it."""
    metric = _metric(rows)
    groups: dict[str, list[_Compiled]] = {}
    for row in rows:
        job: LayerJob = row.row.job
        groups.setdefault(f"{FUSIONS[job.fusion]}\n{','.join(map(str, job.shape))}", []).append(row)
    named: set[str] = set()
    for i, group in enumerate(groups.values()):
        height = GROUP_HEIGHT_SHARE / len(group)
        for j, one in enumerate(group):
            value = metric.ratio(one.row)
            if value is None:
                continue
            y, variant = i - GROUP_HEIGHT_SHARE / 2 + (j + 0.5) * height, one.row.job.variant
            label = None if variant in named else one.row.title
            named.add(variant)
            axes.barh(y, value, height=0.9 * height, color=one.colour, label=label)
            axes.text(value, y, f" {value:.2f}", va="center", fontsize=7)
    axes.axvline(1, color="black", linewidth=0.6, label="as much as Flax's")
    axes.set_yticks(range(len(groups)), list(groups), fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=f"{metric.name}, relative to Flax")
    axes.margins(x=0.12)
    legend(axes, "One layer, forward and backward, bfloat16", columns=2)


def _work(axes: Axes, rows: Sequence[_Compiled]) -> None:
    """Draws the work of each network."""
    metric = _metric(rows)
    scale, unit = metric.scale
    _bars(axes, rows, [metric.value(figures) / scale for _, figures in rows], metric.ratio)
    axes.set(title=f"ResNet-50 train step: {metric.name}", xlabel=f"{unit} ({_case(rows)})")


def _memory(axes: Axes, rows: Sequence[_Compiled]) -> None:
    """Draws the temporary memory of each network, with the largest batch that fits."""
    largest = {row.title: row.largest.examples for row, _ in rows if row.largest}
    notes = {title: f"largest batch {examples}" for title, examples in largest.items() if examples}
    sizes = [figures.temporary / 2**30 for _, figures in rows]
    _bars(axes, rows, sizes, lambda row: row.ratio.temporary if row.ratio else None, notes)
    axes.set(title="ResNet-50 train step: temporary memory", xlabel=f"GiB ({_case(rows)})")


def _pods(axes: Axes, rows: Sequence[PoolingCost]) -> None:
    """Draws the time that pooling adds to a step, by the number of devices, for the whole batch and for spans."""
    devices = [row.devices for row in rows]
    for seconds, title, colour in (
        ([row.whole_seconds for row in rows], "the whole batch", WHOLE_BATCH_COLOUR),
        ([row.span_seconds for row in rows], f"spans of {devices[0]} devices", SPAN_COLOUR),
    ):
        axes.plot(devices, [1e3 * value for value in seconds], marker="o", color=colour, label=title)
    step = 1e3 * rows[0].step_seconds
    axes.set(xlabel="devices", ylabel="ms per step")
    axes.set_xscale("log", base=2)
    axes.set_xticks(devices, [f"{n:,}" for n in devices], rotation=45)
    axes.set_ylim(bottom=0)
    legend(axes, f"What pooling adds to a step of {step:.3g} ms, computed")


def _bars(
    axes: Axes,
    rows: Sequence[_Compiled],
    values: list[float],
    ratio: Callable[[Row], float | None],
    notes: dict[str, str] | None = None,
) -> None:
    """Draws one bar per network, with its value, its ratio to Flax's and a note, which is looked up by its title."""
    axes.barh(range(len(rows)), values, color=[row.colour for row in rows], height=0.6)
    for i, (value, (row, _)) in enumerate(zip(values, rows, strict=True)):
        of_flax = ratio(row)
        text = f" {value:.3g}" + ("" if of_flax is None or row.is_reference else f", {of_flax:.2f} of Flax")
        note = (notes or {}).get(row.title)
        axes.text(value, i, f"{text}\n {note}" if note else text, va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row.title.replace(", ", ",\n", 1) for row, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.5 * max(values))


def _case(rows: Sequence[_Compiled]) -> str:
    job: NetworkJob = rows[0].row.job
    return f"{job.batch_size} images of {job.image_size} px, bfloat16"
