"""Fits the bytes of a training step by batch size, and computes the largest batch that fits in memory."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..._errors import UsageError

# The rest of the memory is left for the runtime and the host, which the figure of a compiled program does not count.
USABLE_SHARE = 0.9


class MemoryLine(NamedTuple):
    """The bytes of a step as a line in the batch size B: fixed + per_example B.

    Attributes:
      fixed: the bytes of parameters, optimizer state and resident data.
      per_example: the bytes per example of a batch.
      error: the largest relative deviation of a compiled program from the line.
    """

    fixed: float
    per_example: float
    error: float


def fit_memory(batch_sizes: Sequence[int], needed: Sequence[int]) -> MemoryLine:
    """Fits a line to the bytes of compiled programs, by least squares of relative deviations.

    Args:
      batch_sizes: the batch size of each program, in examples.
      needed: the bytes that each program takes.

    Raises:
      UsageError: there are fewer than two batch sizes, or the bytes do not grow with them.

    Example:
      >>> line = fit_memory([8, 32, 128], [1_080, 1_320, 2_280])
      >>> round(line.fixed), round(line.per_example), line.error < 1e-9
      (1000, 10, True)
    """
    sizes, values = np.asarray(batch_sizes, float), np.asarray(needed, float)
    if len(set(sizes)) < 2:
        raise UsageError(f"fit_memory: at least two batch sizes are needed, not {sorted(set(batch_sizes))}")
    columns = np.stack([np.ones_like(sizes), sizes], axis=1)
    (fixed, slope), *_ = np.linalg.lstsq(columns / values[:, None], np.ones_like(values), rcond=None)
    if slope <= 0:
        raise UsageError(
            f"fit_memory: the bytes {list(map(int, needed))} do not grow with the batch sizes {list(batch_sizes)}; "
            "give larger ones"
        )
    error = np.max(np.abs(columns @ (fixed, slope) / values - 1))
    return MemoryLine(float(fixed), float(slope), float(error))


def largest_batch(line: MemoryLine, limit: float, multiple_of: int = 1) -> int:
    """Returns the largest batch that fits, leaving a tenth of the memory and the deviation of the line free.

    Args:
      line: the bytes by batch size.
      limit: the bytes of the device's memory.
      multiple_of: the number that must divide the batch size, such as the number of devices.

    Returns:
      The number of examples; 0 if not even `multiple_of` examples fit.

    Example:
      >>> largest_batch(MemoryLine(1_000.0, 10.0, 0.0), limit=10_000, multiple_of=64)
      768
    """
    room = limit * USABLE_SHARE / (1 + line.error)
    fits = max(0, int((room - line.fixed) / line.per_example))
    return fits // multiple_of * multiple_of
