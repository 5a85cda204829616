"""The order in which training and evaluation read examples, cut into batches."""

from typing import NamedTuple

import numpy as np


class Segment(NamedTuple):
    """Batches of one size.

    Attributes:
      indices: the numbers of the examples, int32, shape (batches, batch size).
      mask: True where an example counts, shape (batches, batch size); None: all examples count.
    """

    indices: np.ndarray
    mask: np.ndarray | None


def epoch_segments(
    examples: int, batch_size: int, *, seed: int, epoch: int, drop_remainder: bool = True, multiple_of: int = 1
) -> list[Segment]:
    """Returns a random order of the examples, cut into batches.

    The order is a function of the arguments alone, so a resumed run reads the same batches as an uninterrupted run.

    Args:
      examples: the number of examples.
      batch_size: examples per batch.
      seed: the seed of the run.
      epoch: the number of the epoch, counted from 0.
      drop_remainder: whether the examples after the last full batch are left out; otherwise they make a smaller batch.
      multiple_of: the number to a multiple of which the smaller batch is padded, with the padding masked.

    Returns:
      One segment with the full batches, and one with the smaller batch; an empty segment is left out.

    Example:
      >>> full, rest = epoch_segments(23, 8, seed=0, epoch=0, drop_remainder=False, multiple_of=4)
      >>> full.indices.shape, full.mask, rest.indices.shape, int(rest.mask.sum())
      ((2, 8), None, (1, 8), 7)
    """
    order = np.random.default_rng((seed, epoch)).permutation(examples).astype(np.int32)
    full = examples // batch_size * batch_size
    segments = [Segment(order[:full].reshape(-1, batch_size), None)] if full else []
    if full < examples and not drop_remainder:
        rest = order[full:]
        indices, mask = padded_batches(rest, -(-len(rest) // multiple_of) * multiple_of)
        segments.append(Segment(indices, None if mask.all() else mask))
    return segments


def padded_batches(order: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts indices into batches, the last of which is padded with index 0 and masked.

    Args:
      order: the indices, shape (n,).
      batch_size: indices per batch.

    Returns:
      Indices and mask, both of shape (batches, batch_size).

    Example:
      >>> padded_batches(np.arange(3), 2)[1]
      array([[ True,  True],
             [ True, False]])
    """
    padding = -len(order) % batch_size
    indices = np.concatenate([order, np.zeros(padding, order.dtype)]).reshape(-1, batch_size)
    return indices, (np.arange(indices.size) < len(order)).reshape(-1, batch_size)
