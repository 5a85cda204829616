"""Types of a training step: its state, its batches and its settings."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax


class TrainState(NamedTuple):
    """Everything that the next step depends on, except the order of the data, which follows from seed and step.

    Attributes:
      step: the number of updates so far.
      params: the parameters of the model.
      batch_stats: the running statistics of the model's norms; empty for a model without.
      opt_state: the state of the optimizer.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


# The fields of `Batch` and `Indexed` hold arrays; `specs` puts the partition spec of each array in its place.
class Batch(NamedTuple):
    """A global batch, sharded over the devices along its first axis.

    Attributes:
      images: uint8, shape (n, height, width, channels).
      labels: int32, shape (n,), or (n, height, width) with one label per pixel.
      mask: True for each example that counts, shape (n,); None: all count.
    """

    images: Any
    labels: Any
    mask: Any


class Indexed(NamedTuple):
    """Batches that are given by indices into a split, which is replicated on every device.

    Attributes:
      images: images of the whole split, uint8, shape (n, height, width, channels).
      labels: labels of the whole split, int32, shape (n,), or (n, height, width) with one label per pixel.
      order: the indices of the examples of each batch, shape (batches, batch size), sharded along the second axis.
      mask: True for each example that counts, with the shape and sharding of `order`; None: all count.
      first: the number of updates before the one that reads the first batch.
    """

    images: Any
    labels: Any
    order: Any
    mask: Any
    first: Any


Source = Batch | Indexed


class Recipe(NamedTuple):
    """Settings of a step that neither the model nor the optimizer holds.

    Attributes:
      mean: mean of the training pixels, whose values are in [0, 1], shape (channels,); subtracted from each image.
      std: standard deviation of the training pixels, shape (channels,); each image is divided by it.
      num_classes: the number of classes.
      label_smoothing: the share of the target that is spread over all classes.
      augmentation: a name in `augmentation.AUGMENTATIONS`.
      seed: seed of the augmentation and of the model's random numbers.
      local_statistics: the norms of each device normalise by its own examples; the mean of the devices' running
        statistics is kept.
      own_norms: the model builds some norms itself, and these name no axis to pool over.
      span: examples that those norms normalise together; None: the whole batch.
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
    """The optimizer and the learning-rate schedule, as functions of the peak learning rate.

    The peak is an input of the compiled programs, so that another peak needs no new compilation.

    Attributes:
      optimizer: peak rate -> Optax transformation; the structure of its state does not depend on the peak.
      schedule: peak rate -> (step -> learning rate).
    """

    optimizer: Callable[[Any], Any]
    schedule: Callable[[Any], optax.Schedule]
