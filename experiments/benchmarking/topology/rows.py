"""The rows of a topology's result: what was compiled, its figures, and how they compare with Flax's."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from experiments.benchmarking.topology.jobs import Figures, LayerJob, NetworkJob

AnyJob = TypeVar("AnyJob", LayerJob, NetworkJob)
RATIOS = ("cycles", "bytes", "temporary", "total", "collectives")
# Flax's temporary memory is compared with where it is at least this part of all its memory: a layer's is next to none.
COMPARABLE_SHARE = 0.01


@dataclass(frozen=True)
class Ratio:
    """Figures divided by those of Flax's row; None where either has none, or Flax's are too small to compare with."""

    cycles: float | None
    bytes: float | None
    temporary: float | None
    total: float | None
    collectives: float | None


@dataclass(frozen=True)
class LargestBatch:
    """The largest batch per device whose step fits the device's memory.

    Attributes:
      examples: None where it is not known.
      how: the way it was found, or why it is not known.
    """

    examples: int | None
    how: str


@dataclass(frozen=True)
class Row(Generic[AnyJob]):
    """One program.

    Attributes:
      job: what was compiled.
      title: of the variant.
      figures: None where it was not compiled.
      note: why it was not.
      ratio: to Flax's row; None where one of the two was not compiled.
      largest: of a network, where it was asked for.
    """

    job: AnyJob
    title: str
    figures: Figures | None
    note: str | None
    ratio: Ratio | None = None
    largest: LargestBatch | None = None


def ratio(figures: Figures, flax: Figures) -> Ratio:
    """Figures divided by Flax's."""

    def divided(name: str) -> float | None:
        a, b = getattr(figures, name), getattr(flax, name)
        if name == "temporary" and b < COMPARABLE_SHARE * flax.total:
            return None
        return a / b if a is not None and b else None

    return Ratio(**{name: divided(name) for name in RATIOS})


def on_line(first: tuple[int, int], second: tuple[int, int], memory: int) -> LargestBatch:
    """The largest batch that fits by the line through the memory of two batch sizes.

    Args:
      first: examples and bytes.
      second: the same pair for another batch size.
      memory: bytes there are.

    Example:
      >>> on_line((10, 300), (20, 500), memory=1000)
      LargestBatch(examples=45, how='line through batches of 10 and 20')
    """
    (a, bytes_a), (b, bytes_b) = first, second
    how = f"line through batches of {a} and {b}"
    per_example = (bytes_b - bytes_a) / (b - a)
    if per_example <= 0:
        return LargestBatch(None, f"{how}, which does not rise")
    return LargestBatch(max(0, int(a + (memory - bytes_a) / per_example)), how)
