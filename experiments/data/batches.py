"""The order in which training and evaluation read examples, cut into batches."""

from typing import NamedTuple

import numpy as np


class Segment(NamedTuple):
    """Batches of one size.

    Attributes:
      indices: the numbers of the examples, int32, shape (batches, batch size).
      mask: True where an example counts, of the same shape; None: all count.
    """

    indices: np.ndarray
    mask: np.ndarray | None


def epoch_segments(
    examples: int, batch_size: int, *, seed: int, epoch: int, drop_remainder: bool = True, multiple_of: int = 1
) -> list[Segment]:
    """Returns a random order of the examples, cut into batches.

    The order is a function of the arguments alone, so a run that resumes reads what an uninterrupted run reads.

    Args:
      examples: the number of examples.
      batch_size: examples per batch.
      seed: the seed of the run.
      epoch: counted from 0.
      drop_remainder: leave out the examples after the last full batch; else they make a smaller one.
      multiple_of: the smaller batch is padded to a multiple of this, and the padding masked.

    Returns:
      The full batches, and the smaller one if there is one.

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
    """Cuts indices into batches, the last one padded with index 0 and masked.

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
