"""Which examples make up which batch."""

import numpy as np


def epoch_order(
    examples: int, batch_size: int, *, seed: int, epoch: int, drop_remainder: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """A random order of the examples, cut into batches.

    It is a function of its arguments alone, so a run that resumes reads what an uninterrupted one would have read.

    Args:
      examples: how many there are.
      batch_size: how many make a batch.
      seed: of the run.
      epoch: counted from 0.
      drop_remainder: leave out the examples after the last full batch; else pad them to a batch and mask the padding.

    Returns:
      Indices, of shape (batches, batch_size), int32; and which of them count, a mask of the same shape.

    Example:
      >>> indices, mask = epoch_order(5, 2, seed=0, epoch=0, drop_remainder=False)
      >>> indices.shape, int(mask.sum())
      ((3, 2), 5)
    """
    order = np.random.default_rng((seed, epoch)).permutation(examples).astype(np.int32)
    if drop_remainder:
        order = order[: examples // batch_size * batch_size].reshape(-1, batch_size)
        return order, np.ones(order.shape, bool)
    return padded_batches(order, batch_size)


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
