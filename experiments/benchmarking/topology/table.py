"""The printed tables of a topology."""

from collections.abc import Sequence

from ...compiled.speeds import SPEEDS
from ...records.benchmarks.topology import FUSIONS, Figures, LayerJob, NetworkJob, PoolingCost, Ratio, Row
from . import pods
from .jobs import SPAN_DEVICES

_RATIO = f"{'of Flax':>9}"
_COLUMNS = f"{'Mcycles':>9}{_RATIO}{'GB moved':>10}{_RATIO}{'temp MiB':>11}{_RATIO}{'total MiB':>11}{'collectives':>20}"


def layer_head(where: str) -> str:
    """Returns the heading of the table of layers."""
    title = f"One layer, forward and backward, bfloat16, figures of one device, compiled for {where}"
    return f"{title}\n{'':74}{'passes':>8}{_COLUMNS}"


def layer_line(row: Row[LayerJob]) -> str:
    """Returns the table's line for a layer."""
    name = f"{','.join(map(str, row.job.shape)):18}{FUSIONS[row.job.fusion]}"
    if row.figures is None:
        return f"{name:42}{row.title:32}  {row.note}"
    return f"{name:42}{row.title:32}{row.figures.passes or 0:8.1f}{_numbers(row.figures, row.ratio)}"


def network_head(where: str, batch_size: int, image_size: int) -> str:
    """Returns the heading of the table of networks."""
    images = f"{batch_size} images of {image_size} px"
    return (
        f"\nResNet-50 train step, bfloat16, {images} per device, figures of one device, compiled for {where}\n"
        f"{'':32}{_COLUMNS}  largest batch"
    )


def network_line(row: Row[NetworkJob]) -> str:
    """Returns the table's line for a network."""
    if row.figures is None:
        return f"{row.title:32}  {row.note}"
    line = f"{row.title:32}{_numbers(row.figures, row.ratio)}"
    if row.largest is None:
        return line
    return f"{line}  {row.largest.examples or 'unknown'} ({row.largest.how})"


def _numbers(figures: Figures, ratio: Ratio | None) -> str:
    of_flax = ratio or Ratio()
    cycles = "-" if figures.cycles is None else f"{figures.cycles / 1e6:.2f}"
    collectives = f"{figures.collectives} of {figures.collective_bytes / 2**10:,.0f} KiB"
    return (
        f"{cycles:>9}{_of(of_flax.cycles)}{figures.bytes / 1e9:>10.2f}{_of(of_flax.bytes)}"
        f"{figures.temporary / 2**20:>11,.1f}{_of(of_flax.temporary)}{figures.total / 2**20:>11,.1f}{collectives:>20}"
    )


def _of(ratio: float | None) -> str:
    return f"{'-' if ratio is None else f'{ratio:.2f}':>9}"


def pods_lines(chip: str, found: Sequence[PoolingCost]) -> list[str]:
    """Returns the table of the cost of pooling by the number of devices, as lines."""
    first = found[0]
    least = "at least " if SPEEDS[chip].clock_hertz is None else ""
    lines = [
        "",
        f"What pooling adds to a step: {first.all_reduces} all-reduces of {first.bytes / 2**10:,.0f} KiB in all; "
        f"the rest takes {least}{1e3 * first.step_seconds:.1f} ms. Computed, not measured.",
        f"{'devices':>9}{'whole batch, ms':>18}{'part of a step':>16}{f'spans of {SPAN_DEVICES}, ms':>17}",
    ]
    for cost in found:
        lines.append(
            f"{cost.devices:>9,}{1e3 * cost.whole_seconds:>18.2f}{cost.share:>16.1%}{1e3 * cost.span_seconds:>17.2f}"
        )
    noticeable = pods.first_noticeable(list(found))
    where = f"from {noticeable:,} devices on" if noticeable else "on none of these numbers of devices"
    return [*lines, f"Pooling the whole batch takes more than {pods.NOTICEABLE_SHARE:.0%} of a step {where}."]
