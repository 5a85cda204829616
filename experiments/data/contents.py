"""Digests of what the splits of a data set hold, so that a run does not go on with other data than it began with."""

import hashlib

import numpy as np

from experiments.data.arrays import Dataset, Examples, Split

# Of a split that is not in memory so many examples are read, evenly spaced.
SAMPLED = 64


def digests(dataset: Dataset) -> dict[str, str]:
    """A digest of the images and labels of each split, by its name, "train" first.

    Of a split in memory every byte counts; of one that is streamed the number of examples and some of them.
    """
    return {name: _digest(split) for name, split in {"train": dataset.train, **dataset.test}.items()}


def _digest(split: Split) -> str:
    total = hashlib.sha256(f"{split.size} {split.image_shape}".encode())
    if not isinstance(split, Examples):
        split = split.read(np.unique(np.linspace(0, split.size - 1, SAMPLED).astype(np.int64)))
    for array in (split.images, split.labels):
        total.update(f"{array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()[:16]
