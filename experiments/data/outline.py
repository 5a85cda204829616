"""Data sets without their data: sizes and shapes, from which a training step can be compiled."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .arrays import Dataset, Examples, Split


class Outline(NamedTuple):
    """The sizes and shapes of a data set.

    Attributes:
      examples: the number of examples of each split, "train" and those to evaluate on.
      image_shape: the shape of one image: (height, width, channels).
      num_classes: the number of classes.
      per_pixel: whether there is one label per pixel or one per image.
      is_streamed: whether training reads the examples from disk because they do not fit in memory.
      independent: whether all training examples come from different originals, so that some can be held out.
    """

    examples: Mapping[str, int]
    image_shape: tuple[int, ...]
    num_classes: int
    per_pixel: bool = False
    is_streamed: bool = False
    independent: bool = True

    def dataset(self, name: str) -> Dataset:
        """Returns a data set of this outline, with a name; its images are black, and take no memory."""
        splits = {split: self._split(size) for split, size in self.examples.items()}
        train = splits.pop("train")
        return Dataset(name, train, splits, self.num_classes, independent=self.independent)

    def _split(self, size: int) -> Split:
        images = np.broadcast_to(np.uint8(0), (size, *self.image_shape))
        labels = np.broadcast_to(np.int32(0), (size, *(self.image_shape[:2] if self.per_pixel else ())))
        examples = Examples(images, labels)
        return BlackStream(examples) if self.is_streamed else examples


class BlackStream:
    """A split that stands for one that is read from disk during training."""

    is_streamed = True

    def __init__(self, examples: Examples):
        self._examples = examples

    @property
    def size(self) -> int:
        """The number of examples."""
        return self._examples.size

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image: (height, width, channels)."""
        return self._examples.image_shape

    def read(self, indices: np.ndarray, epoch: int = 0) -> Examples:
        """Returns black images; the epoch has no effect."""
        return self._examples.read(indices, epoch)
