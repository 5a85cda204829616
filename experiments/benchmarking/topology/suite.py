"""Compiles layers and networks for a topology, and compares each norm with Flax's."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ...compiled import targets
from ...compiled.speeds import SPEEDS
from ...records.benchmarks.topology import (
    FUSIONS,
    AnyJob,
    Figures,
    LargestBatch,
    LayerJob,
    NetworkJob,
    PoolingCost,
    Row,
    TopologyFile,
    TopologyRows,
)
from ..suite import Chosen, Keep, Options, Suite, forget
from . import jobs, pods, table
from .compiler import Compiler
from .jobs import VARIANTS
from .rows import on_line, ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYERS, NETWORK, LARGEST, PODS = PARTS = ("layers", "resnet50", "largest_batch", "pods")
# Input shapes on one device: an early and a late layer of ResNet-50, with equal numbers of elements.
SHAPES = ((64, 56, 56, 256), (256, 14, 14, 1024))


@dataclass(frozen=True)
class Networks:
    """Options of the networks.

    Attributes:
      batch_size: examples per device.
      image_size: the height and the width of the images.
      remat: the extent of rematerialisation for variants that have a policy, one of `jobs.REMAT`.
    """

    batch_size: int = 128
    image_size: int = 224
    remat: str = jobs.REMAT[0]


def run(
    topology: str,
    parts: Sequence[str] = PARTS,
    variants: Sequence[str] = tuple(VARIANTS),
    networks: Networks | None = None,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    keep: Keep = forget,
) -> TopologyRows:
    """Compiles every row of the parts, and prints and keeps each when it is done.

    Args:
      topology: a name that `targets.parse` knows.
      parts: names from `PARTS`. `LARGEST` and `PODS` include `NETWORK`: `LARGEST` compiles the network at a second
        batch size, and `PODS` computes from its rows.
      variants: keys of `VARIANTS`.
      networks: the options of the networks; None: the defaults.
      shapes: the shapes of one device's input to a layer, NHWC.
      keep: a function that is given the rows so far.

    Returns:
      The rows by part. If the compiler of the topology is not installed, each row tells how to install it.
    """
    target = targets.parse(topology)
    chip = targets.CHIPS[target.chip]
    where = f"{topology} ({chip.title})"
    options = networks or Networks()
    rows = TopologyRows(
        topology=topology, title=chip.title, memory_bytes=chip.memory_bytes, memory_source=chip.memory_source
    )
    with Compiler(target) as compiler:
        if LAYERS in parts:
            print(table.layer_head(where), flush=True)
            layers: list[Row[LayerJob]] = []
            rows = replace(rows, layers=layers)
            for shape in shapes:
                for fusion in FUSIONS:
                    for row in _rows(compiler, _layer_jobs(topology, variants, shape, fusion), table.layer_line):
                        layers.append(row)
                        keep(rows)
        if {NETWORK, LARGEST, PODS} & set(parts):
            print(table.network_head(where, options.batch_size, options.image_size), flush=True)
            memory = chip.memory_bytes if LARGEST in parts else None
            largest = None if memory is None else partial(_with_largest_batch, compiler, memory=memory)
            compiled: list[Row[NetworkJob]] = []
            rows = replace(rows, resnet50=compiled)
            for row in _rows(compiler, _network_jobs(topology, variants, options), table.network_line, largest):
                compiled.append(row)
                keep(rows)
            if PODS in parts:
                costs = _pods(target.chip, {row.job.variant: row.figures for row in compiled})
                rows = replace(rows, pods=costs)
    return rows


def _layer_jobs(topology: str, variants: Sequence[str], shape: tuple[int, ...], fusion: str) -> list[LayerJob]:
    return [
        LayerJob(topology=topology, variant=name, shape=shape, fusion=fusion)
        for name in variants
        if VARIANTS[name].is_sensible(fusion)
    ]


def _network_jobs(topology: str, variants: Sequence[str], options: Networks) -> list[NetworkJob]:
    return [
        NetworkJob(
            topology=topology,
            variant=name,
            batch_size=options.batch_size,
            image_size=options.image_size,
            remat=options.remat,
        )
        for name in variants
    ]


def _pods(chip: str, figures: Mapping[str, Figures | None]) -> list[PoolingCost]:
    """Computes, prints and returns the cost of pooling by the number of devices.

    Args:
      chip: the key of the chip.
      figures: the figures of the networks, by variant.
    """
    whole, local = (figures.get(variant.name) for variant in (jobs.WHOLE, jobs.LOCAL))
    if chip not in SPEEDS or whole is None or local is None:
        needed = f"the rows {jobs.WHOLE.name} and {jobs.LOCAL.name} of one of {', '.join(SPEEDS)}"
        print(f"\nWhat pooling costs by the number of devices is computed from {needed}.")
        return []
    costs = pods.costs(chip, whole, local)
    print("\n".join(table.pods_lines(chip, costs)), flush=True)
    return costs


def _rows(
    compiler: Compiler,
    chosen: Sequence[AnyJob],
    line: Callable[[Row[AnyJob]], str],
    complete: Callable[[Row[AnyJob]], Row[AnyJob]] | None = None,
) -> Iterator[Row[AnyJob]]:
    """Compiles jobs of one kind, compares with Flax's row, which comes first, and prints and yields each row.

    Args:
      compiler: the compiler that compiles the jobs.
      chosen: the jobs.
      line: a function that returns the printed line of a row.
      complete: a function that completes a row that was compiled; None: nothing is added.
    """
    flax = None
    for job in chosen:
        row = _row(compiler, job)
        if row.is_reference:
            flax = row.figures
        if row.figures and flax:
            row = replace(row, ratio=ratio(row.figures, flax))
        if row.figures and complete is not None:
            row = complete(row)
        print(line(row), flush=True)
        yield row


def _row(compiler: Compiler, job: AnyJob) -> Row[AnyJob]:
    variant = VARIANTS[job.variant]
    if variant.policy and jobs.policy() is None:
        note = f"left out: this version has no batchnorm_jax.{jobs.POLICY}"
        return Row(job=job, title=variant.title, note=note)
    figures = compiler.figures(job)
    if isinstance(figures, str):
        return Row(job=job, title=variant.title, note=figures)
    return Row(job=job, title=variant.title, figures=figures)


def _with_largest_batch(compiler: Compiler, row: Row[NetworkJob], memory: int) -> Row[NetworkJob]:
    """Returns a row with its largest batch, by the line through the memory of the job's batch and of another batch.

    The other batch is twice as large, or half as large if the compiler refuses that one.
    """
    job, refused = row.job, ""
    if row.figures is None:
        return row
    for other in (2 * job.batch_size, max(1, job.batch_size // 2)):
        second = compiler.figures(replace(job, batch_size=other))
        if not isinstance(second, str):
            largest = on_line((job.batch_size, row.figures.total), (other, second.total), memory)
            return replace(row, largest=largest)
        refused = second
    return replace(row, largest=LargestBatch(examples=None, how=refused))


def _measure(chosen: Chosen, options: Options, keep: Keep) -> TopologyRows:
    networks = Networks(options.per_device_batch_size, options.image_size, options.remat)
    return run(options.topology or "", chosen.parts, chosen.peers, networks, keep=keep)


def _draw(path: Path) -> "Figure":
    from ...reporting import topology_figure

    return topology_figure(path)


SUITE = Suite(
    name="norm with a topology",
    help="the layer as compiled for accelerators that are not here",
    parts=PARTS,
    peers=tuple(VARIANTS),
    measure=_measure,
    file=TopologyFile,
    file_name=lambda options: f"norm-{(options.topology or '').replace(':', '-')}",
    draw=_draw,
)
