"""The cost per step of pooling a norm's statistics, by the number of devices: computed, not measured.

A ResNet-50 train step is compiled with pooled statistics and with those of each device alone. The all-reduces that the
first has beyond those of the second, and their bytes, are what pooling adds; each is taken to stop the step for as long
as `interconnect` says, since the next layer waits for it. The rest of the step takes what the compiler estimates in
cycles (TPU), or at least the time in which its bytes cross the main memory (GPU).
"""

from dataclasses import dataclass

from experiments.benchmarking.topology.interconnect import INTERCONNECTS
from experiments.benchmarking.topology.jobs import SPAN_DEVICES
from experiments.records.benchmarks.topology import Figures, PoolingCost

# A span is worth a thought where pooling the whole batch takes more than this part of a step.
NOTICEABLE = 0.05


@dataclass(frozen=True)
class Speed:
    """The speed of a device.

    Attributes:
      clock_hertz: clock of a TPU: its peak in bfloat16 divided by what its matrix units do per cycle.
      memory_bytes_per_second: bandwidth of a GPU's main memory.
      source: where the figure is from.
    """

    clock_hertz: float | None
    memory_bytes_per_second: float | None
    source: str


_CLOUD = "https://docs.cloud.google.com/tpu/docs"
# A matrix unit of 128 x 128 multiplies and adds in each cell once per cycle.
_UNIT = 2 * 128**2
SPEEDS: dict[str, Speed] = {
    "v5e": Speed(197e12 / (4 * _UNIT), None, f"197 TFLOP/s, 4 matrix units: {_CLOUD}/v5e"),
    "v5p": Speed(459e12 / (8 * _UNIT), None, f"459 TFLOP/s, 2 cores of 4 matrix units: {_CLOUD}/v5p"),
    "h100": Speed(None, 3.35e12, "3.35 TB/s: NVIDIA H100 SXM data sheet"),
}


def costs(chip: str, whole: Figures, local: Figures) -> list[PoolingCost]:
    """Returns the cost of pooling by powers of two, from one span of devices to all that the links connect.

    Args:
      chip: a key of `SPEEDS`.
      whole: figures of a step with pooled statistics.
      local: figures of the step with each device's own statistics.

    Example:
      >>> import msgspec
      >>> step = Figures(passes=None, bytes=0, cycles=15_000_000, cycles_usually=None, temporary=0, total=0,
      ...     collectives=1, collective_elements=0, collective_bytes=0, seconds=0)
      >>> pooled = msgspec.structs.replace(step, collectives=101, collective_bytes=400_000)
      >>> cost = costs("v5e", pooled, step)[-1]
      >>> cost.devices, round(1e3 * cost.step_seconds, 1), round(1e3 * cost.whole_seconds, 1)
      (256, 10.0, 3.2)
    """
    links, number = INTERCONNECTS[chip], whole.collectives - local.collectives
    size = whole.collective_bytes - local.collective_bytes

    def seconds(devices: int) -> float:
        return number * links.all_reduce_seconds(devices, size / number) if number else 0.0

    found, devices = [], SPAN_DEVICES
    while devices <= links.largest:
        found.append(
            PoolingCost(
                devices=devices,
                all_reduces=number,
                bytes=size,
                step_seconds=_step(chip, whole),
                whole_seconds=seconds(devices),
                span_seconds=seconds(SPAN_DEVICES),
            )
        )
        devices *= 2
    return found


def _step(chip: str, figures: Figures) -> float:
    speed = SPEEDS[chip]
    if speed.clock_hertz is not None:
        return (figures.cycles or 0) / speed.clock_hertz
    return figures.bytes / (speed.memory_bytes_per_second or 1)


def first_noticeable(found: list[PoolingCost]) -> int | None:
    """Returns the smallest number of devices where the whole batch takes more than `NOTICEABLE`; None: none does."""
    return next((cost.devices for cost in found if cost.share > NOTICEABLE), None)
