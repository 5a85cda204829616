"""Computes, without measuring, the cost per step of pooling a norm's statistics, by the number of devices.

A ResNet-50 train step is compiled twice: with pooled statistics, and with statistics of each device alone. Pooling adds
the difference in all-reduces and in their bytes. Each all-reduce is assumed to stop the step for the time that
`interconnect` gives, since the next layer waits for its result. The time of the rest of the step is the compiler's
estimate in cycles (TPU), or at least the time in which the step's bytes cross the main memory (GPU).
"""

from ...compiled.speeds import SPEEDS
from ...records.benchmarks.topology import Figures, PoolingCost
from .interconnect import INTERCONNECTS
from .jobs import SPAN_DEVICES

# Smaller spans are worth considering where pooling the whole batch takes more than this share of a step.
NOTICEABLE_SHARE = 0.05


def costs(chip: str, whole: Figures, local: Figures) -> list[PoolingCost]:
    """Returns the cost of pooling for powers of two of devices, from one span to the most that the links connect.

    Args:
      chip: a key of `speeds.SPEEDS`.
      whole: the figures of a step with pooled statistics.
      local: the figures of a step with statistics of each device alone.

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
                step_seconds=SPEEDS[chip].seconds(whole),
                whole_seconds=seconds(devices),
                span_seconds=seconds(SPAN_DEVICES),
            )
        )
        devices *= 2
    return found


def first_noticeable(found: list[PoolingCost]) -> int | None:
    """Returns the fewest devices at which pooling the whole batch exceeds `NOTICEABLE_SHARE`; None: none of these."""
    return next((cost.devices for cost in found if cost.share > NOTICEABLE_SHARE), None)
