"""Published speeds of accelerators, and the time of a program that follows from its figures without running it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..records.benchmarks.topology import Figures


@dataclass(frozen=True)
class Speed:
    """The speed of a device.

    Attributes:
      source: the source of the figures.
      clock_hertz: the clock of a TPU: its peak bfloat16 rate divided by the operations of its matrix units per cycle.
      memory_bytes_per_second: the bandwidth of a GPU's main memory.
      flop_per_second: the peak rate of a GPU's matrix units, by the dtype of the computation.
    """

    source: str
    clock_hertz: float | None = None
    memory_bytes_per_second: float = 0.0
    flop_per_second: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, figures: Figures, flop: float = 0.0, dtype: str = "bfloat16") -> float:
        """Returns the compiler's estimate of a program's time (TPU), or a lower bound of it (GPU).

        On a GPU the program takes at least as long as its bytes at the full bandwidth, and at least as long as its
        arithmetic at the peak rate.

        Args:
          figures: the figures of the program.
          flop: the floating-point operations of its matrix products and convolutions on one device.
          dtype: the dtype of the computation.

        Example:
          >>> step = Figures(passes=None, bytes=67_000_000_000, cycles=None, cycles_usually=None, temporary=0, total=0,
          ...     collectives=0, collective_elements=0, collective_bytes=0, seconds=0)
          >>> [round(SPEEDS["h100"].seconds(step, flop), 4) for flop in (0, 30e12)]
          [0.02, 0.0303]
        """
        if self.clock_hertz is not None:
            return (figures.cycles or 0) / self.clock_hertz
        return max(figures.bytes / self.memory_bytes_per_second, flop / self.flop_per_second[dtype])


_CLOUD = "https://docs.cloud.google.com/tpu/docs"
# A matrix unit has 128 x 128 cells, each of which multiplies and adds once per cycle.
_UNIT_FLOP_PER_CYCLE = 2 * 128**2
SPEEDS: dict[str, Speed] = {
    "v5e": Speed(f"197 TFLOP/s, 4 matrix units: {_CLOUD}/v5e", clock_hertz=197e12 / (4 * _UNIT_FLOP_PER_CYCLE)),
    "v5p": Speed(
        f"459 TFLOP/s, 2 cores of 4 matrix units: {_CLOUD}/v5p", clock_hertz=459e12 / (8 * _UNIT_FLOP_PER_CYCLE)
    ),
    # In float32 JAX multiplies in TF32 by default.
    "h100": Speed(
        "3.35 TB/s and, without sparsity, 989 TFLOP/s in bfloat16 or 495 in TF32: NVIDIA H100 SXM data sheet",
        memory_bytes_per_second=3.35e12,
        flop_per_second={"bfloat16": 989.4e12, "float32": 494.7e12},
    ),
}
