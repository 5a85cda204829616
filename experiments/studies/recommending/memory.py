"""The bytes that a training step takes, by batch size, and the largest batch that fits."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments._errors import UsageError

# Of the memory there is: the program's own figure leaves out what the runtime and the host hold.
USABLE = 0.9


class MemoryLine(NamedTuple):
    """Bytes of a step, fixed + per_example B.

    Attributes:
      fixed: of parameters, optimizer and resident data, in bytes.
      per_example: bytes.
      error: the largest deviation of a compiled program from the line, relative to it.
    """

    fixed: float
    per_example: float
    error: float


def fit_memory(batch_sizes: Sequence[int], needed: Sequence[int]) -> MemoryLine:
    """The line through the bytes of compiled programs, by least squares of relative deviations.

    Args:
      batch_sizes: of the programs, in examples.
      needed: bytes that each takes.

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
    """The largest batch that fits, with a tenth of the memory and the deviation of the line kept free.

    Args:
      line: bytes by batch size.
      limit: bytes there are.
      multiple_of: the devices, by which a batch is divided.

    Returns:
      Examples; 0 if not even `multiple_of` fit.

    Example:
      >>> largest_batch(MemoryLine(1_000.0, 10.0, 0.0), limit=10_000, multiple_of=64)
      768
    """
    room = limit * USABLE / (1 + line.error)
    fits = max(0, int((room - line.fixed) / line.per_example))
    return fits // multiple_of * multiple_of
