"""What a training step takes and gives, and what it needs to know beside that."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax


class TrainState(NamedTuple):
    """Everything that the next step depends on, the order of the data aside, which is a function of seed and step."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


# The fields of both hold arrays; or, in `specs`, how each is cut over the devices.
class Batch(NamedTuple):
    """A global batch, cut over the devices along its first axis.

    Attributes:
      images: uint8, shape (n, height, width, channels).
      labels: int32, shape (n,) or (n, height, width).
      mask: which examples count, shape (n,); None: all.
    """

    images: Any
    labels: Any
    mask: Any


class Indexed(NamedTuple):
    """Batches of a split that lives on every device.

    Attributes:
      images: of the whole split, uint8, shape (n, height, width, channels).
      labels: of the whole split, int32, shape (n,) or (n, height, width).
      order: the indices of batches, shape (batches, batch size), cut over the devices along the batch.
      mask: which of them count, of the same shape, cut likewise; None: all.
      first: the number of the update that reads the first batch.
    """

    images: Any
    labels: Any
    order: Any
    mask: Any
    first: Any


Source = Batch | Indexed


class Recipe(NamedTuple):
    """What a step does beside model and optimizer.

    Attributes:
      mean: what a pixel has subtracted from it, of its value from 0 to 1; shape (channels,).
      std: what it is divided by then; shape (channels,).
      num_classes: of the labels.
      label_smoothing: share of the target spread over all classes.
      augmentation: the name of one in `augmentation.AUGMENTATIONS`.
      seed: of the augmentation.
      local_statistics: each device's norms have running statistics of their own, and their mean is kept.
      own_norms: some norms of the model are made by itself, and name no axis over which to pool.
      span: of those.
    """

    mean: np.ndarray
    std: np.ndarray
    num_classes: int
    label_smoothing: float = 0.0
    augmentation: str = "none"
    seed: int = 0
    local_statistics: bool = False
    own_norms: bool = False
    span: int | None = None


class Descent(NamedTuple):
    """How parameters follow a gradient. The peak of the rate is an input of a program: other rates compile nothing.

    Attributes:
      optimizer: peak rate -> Optax transformation, whose state is the same for any peak.
      schedule: peak rate -> step -> rate.
    """

    optimizer: Callable[[Any], Any]
    schedule: Callable[[Any], optax.Schedule]
