"""Compiles the layers and networks for a topology and compares each with Flax's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from experiments.benchmarking.topology import jobs, pods, table, targets
from experiments.benchmarking.topology.compiler import Compiler
from experiments.benchmarking.topology.jobs import FLAX, VARIANTS, Figures, LayerJob, NetworkJob
from experiments.benchmarking.topology.rows import AnyJob, LargestBatch, Row, on_line, ratio

LAYERS, NETWORK, LARGEST, PODS = PARTS = ("layers", "resnet50", "largest_batch", "pods")
# Of one device: an early and a late layer of ResNet-50, with the same number of elements.
SHAPES = ((64, 56, 56, 256), (256, 14, 14, 1024))
FUSIONS = ("", "relu", "residual")


@dataclass(frozen=True)
class Options:
    """Options of the networks.

    Attributes:
      batch_size: of one device.
      image_size: height and width.
      remat: what the policy is applied to, one of `jobs.REMAT`.
    """

    batch_size: int = 128
    image_size: int = 224
    remat: str = jobs.REMAT[0]


def run(
    topology: str,
    parts: Sequence[str] = PARTS,
    variants: Sequence[str] = tuple(VARIANTS),
    options: Options | None = None,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
) -> dict[str, Any]:
    """Compiles every row of the parts, and prints each as it is done.

    Args:
      topology: a name that `targets.parse` knows.
      parts: names from `PARTS`; the largest batch includes ResNet-50 and compiles it at a second batch size, and the
        pods include it and compute from its rows.
      variants: keys of `VARIANTS`.
      options: of the networks.
      shapes: of one device's input to a layer, NHWC.

    Returns:
      What the rows were compiled for, and the rows by part, as JSON can hold them. Where the compiler of the topology
      is not installed, each row says how to install it.
    """
    target = targets.parse(topology)
    chip = targets.CHIPS[target.chip]
    where = f"{topology} ({chip.title})"
    options = options or Options()
    results: dict[str, Any] = {
        "topology": topology,
        "title": chip.title,
        "memory_bytes": chip.memory_bytes,
        "memory_source": chip.memory_source,
    }
    with Compiler(target) as compiler:
        if LAYERS in parts:
            print(table.layer_head(where), flush=True)
            results[LAYERS] = []
            for shape in shapes:
                for fusion in FUSIONS:
                    layers = [LayerJob(topology, v, shape, fusion) for v in variants if is_sensible(v, fusion)]
                    rows = _rows(compiler, layers, table.layer_line)
                    results[LAYERS] += [asdict(row) for row in rows]
        if {NETWORK, LARGEST, PODS} & set(parts):
            print(table.network_head(where, options.batch_size, options.image_size), flush=True)
            networks = [NetworkJob(topology, v, **asdict(options)) for v in variants]
            memory = chip.memory_bytes if LARGEST in parts else None
            rows = _rows(compiler, networks, table.network_line, memory)
            results[NETWORK] = [asdict(row) for row in rows]
            if PODS in parts:
                results[PODS] = _pods(target.chip, {row.job.variant: row.figures for row in rows})
    return results


def _pods(chip: str, figures: Mapping[str, Figures | None]) -> list[dict[str, Any]]:
    """Prints and returns the cost of pooling by the number of devices, from the rows of a network."""
    whole, local = (figures.get(name) for name in (pods.WHOLE, pods.LOCAL))
    if chip not in pods.SPEEDS or whole is None or local is None:
        needed = f"the rows {pods.WHOLE} and {pods.LOCAL} of one of {', '.join(pods.SPEEDS)}"
        print(f"\nWhat pooling costs by the number of devices is computed from {needed}.")
        return []
    costs = pods.costs(chip, whole, local)
    print("\n".join(table.pods_lines(chip, costs)), flush=True)
    return [asdict(cost) for cost in costs]


def is_sensible(variant: str, fusion: str) -> bool:
    """Whether a layer of a variant is another program than those of the other variants."""
    chosen = VARIANTS[variant]
    if chosen.policy or chosen.span_devices or not chosen.pooled:
        return False
    return bool(fusion) or (chosen.has_norm and variant != "fused")


def _rows(
    compiler: Compiler, chosen: Sequence[AnyJob], line: Callable[[Row[AnyJob]], str], memory: int | None = None
) -> list[Row[AnyJob]]:
    """The rows of jobs of one kind, which are compared with Flax's, the first of them."""
    rows = []
    flax = None
    for job in chosen:
        row = _row(compiler, job)
        if job.variant == FLAX:
            flax = row.figures
        if row.figures and flax:
            row = replace(row, ratio=ratio(row.figures, flax))
        if row.figures and memory and isinstance(job, NetworkJob):
            row = replace(row, largest=_largest_batch(compiler, job, row.figures.total, memory))
        rows.append(row)
        print(line(row), flush=True)
    return rows


def _row(compiler: Compiler, job: AnyJob) -> Row[AnyJob]:
    title = VARIANTS[job.variant].title
    if VARIANTS[job.variant].policy and jobs.policy() is None:
        return Row(job, title, None, f"left out: this version has no batchnorm_jax.{jobs.POLICY}")
    figures = compiler.figures(job)
    return Row(job, title, None, figures) if isinstance(figures, str) else Row(job, title, figures, None)


def _largest_batch(compiler: Compiler, job: NetworkJob, needed: int, memory: int) -> LargestBatch:
    """By the line through the job's batch and its double, or its half where the compiler refuses the double."""
    refused = ""
    for other in (2 * job.batch_size, max(1, job.batch_size // 2)):
        second = compiler.figures(replace(job, batch_size=other))
        if not isinstance(second, str):
            return on_line((job.batch_size, needed), (other, second.total), memory)
        refused = second
    return LargestBatch(None, refused)
