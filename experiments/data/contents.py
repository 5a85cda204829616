"""Digests of what the splits of a data set hold, so that a run does not go on with other data than it began with."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from experiments.data.arrays import Dataset, Examples, Split

# Of files of more bytes than this only evenly spaced blocks are read: some seconds for what is decoded in minutes.
READ_WHOLE = 256 * 2**20
BLOCK, BLOCKS = 2**16, 1024
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


def of_files(paths: Iterable[Path]) -> str:
    """A digest of the names, sizes and bytes of files, wherever they lie.

    Of more than 256 MiB in all, it is of the times of their last change too, and of 64 MiB of evenly spaced blocks.

    Raises:
      OSError: a file is not there or cannot be read.
    """
    sizes = {path: path.stat().st_size for path in paths}
    size_of_all = sum(sizes.values())
    total = hashlib.sha256()
    for path, size in sorted(sizes.items()):
        total.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size_of_all <= READ_WHOLE:
                while content := file.read(2**20):
                    total.update(content)
                continue
            total.update(f"{path.stat().st_mtime_ns}\n".encode())
            blocks = max(2, round(BLOCKS * size / size_of_all))
            for at in np.linspace(0, max(0, size - BLOCK), blocks).astype(np.int64):
                file.seek(int(at))
                total.update(file.read(BLOCK))
    return total.hexdigest()[:16]
