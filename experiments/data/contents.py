"""Digests of the splits of a data set, which make sure that a run resumes only with the data that it began with."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .arrays import Dataset, Examples, Split

# Above this total size only evenly spaced blocks of the files are read. That takes seconds, which is little beside the
# minutes that decoding takes.
READ_WHOLE_BYTES = 256 * 2**20
BLOCK_BYTES, BLOCKS = 2**16, 1024
# The number of evenly spaced examples that are read from a split that is not in memory.
SAMPLED_EXAMPLES = 64


def digests(dataset: Dataset) -> dict[str, str]:
    """Returns a digest of the images and labels of each split, by the name of the split, "train" first.

    The digest of a split in memory covers every byte; that of a streamed split covers the number of examples and some
    of the examples.
    """
    return {name: _digest(split) for name, split in {"train": dataset.train, **dataset.test}.items()}


def _digest(split: Split) -> str:
    total = hashlib.sha256(f"{split.size} {split.image_shape}".encode())
    if not isinstance(split, Examples):
        split = split.read(np.unique(np.linspace(0, split.size - 1, SAMPLED_EXAMPLES).astype(np.int64)))
    for array in (split.images, split.labels):
        total.update(f"{array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()[:16]


def of_files(paths: Iterable[Path]) -> str:
    """Returns a digest of the names, sizes and bytes of files, but not of their folder.

    Above a total of 256 MiB, the digest covers 64 MiB in evenly spaced blocks, and the times of the files' last
    changes.

    Raises:
      OSError: a file is missing or cannot be read.
    """
    sizes = {path: path.stat().st_size for path in paths}
    size_of_all = sum(sizes.values())
    total = hashlib.sha256()
    for path, size in sorted(sizes.items()):
        total.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size_of_all <= READ_WHOLE_BYTES:
                while content := file.read(2**20):
                    total.update(content)
                continue
            total.update(f"{path.stat().st_mtime_ns}\n".encode())
            blocks = max(2, round(BLOCKS * size / size_of_all))
            for at in np.linspace(0, max(0, size - BLOCK_BYTES), blocks).astype(np.int64):
                file.seek(int(at))
                total.update(file.read(BLOCK_BYTES))
    return total.hexdigest()[:16]
