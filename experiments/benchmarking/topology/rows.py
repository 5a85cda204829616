"""Compares the figures of a program with those of Flax's program, and estimates the largest batch that fits."""

from ...records.benchmarks.topology import Figures, LargestBatch, Ratio

# Temporary memory is compared only where Flax's is at least this share of its total: a single layer's is close to zero.
COMPARABLE_SHARE = 0.01


def ratio(figures: Figures, flax: Figures) -> Ratio:
    """Returns the figures of a program divided by those of Flax's program."""
    comparable = flax.temporary >= COMPARABLE_SHARE * flax.total
    return Ratio(
        cycles=_divided(figures.cycles, flax.cycles),
        bytes=_divided(figures.bytes, flax.bytes),
        temporary=_divided(figures.temporary, flax.temporary) if comparable else None,
        total=_divided(figures.total, flax.total),
        collectives=_divided(figures.collectives, flax.collectives),
    )


def _divided(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None


def on_line(first: tuple[int, int], second: tuple[int, int], memory: int) -> LargestBatch:
    """Returns the largest batch that fits by the line through the memory of two batch sizes.

    Args:
      first: the examples and the bytes of one batch.
      second: the examples and the bytes of another batch.
      memory: the bytes of the device's memory.

    Example:
      >>> on_line((10, 300), (20, 500), memory=1000)
      LargestBatch(examples=45, how='line through batches of 10 and 20')
    """
    (a, bytes_a), (b, bytes_b) = first, second
    how = f"line through batches of {a} and {b}"
    per_example = (bytes_b - bytes_a) / (b - a)
    if per_example <= 0:
        return LargestBatch(examples=None, how=f"{how}, which does not rise")
    return LargestBatch(examples=max(0, int(a + (memory - bytes_a) / per_example)), how=how)
