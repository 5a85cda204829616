"""Data sets as splits of images and labels, in memory or streamed; and a cache of arrays on disk."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from absl import logging

from experiments import _files
from experiments._errors import StorageError, UsageError

CACHE_VARIABLE = "BATCHNORM_JAX_CACHE"
# The entry of a cached file that lists its other entries. Checksums guard only the bytes of arrays, not their names and
# shapes.
CONTENTS = "contents"


class Split(Protocol):
    """Some examples that can be read by their numbers: `Examples` in memory, or a `Stream`."""

    @property
    def size(self) -> int:
        """The number of examples."""
        ...

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image: (height, width, channels)."""
        ...

    def read(self, indices: np.ndarray, epoch: int = 0) -> "Examples":
        """Returns the examples of these numbers; the epoch decides a random crop, where there is one."""
        ...


class Examples(NamedTuple):
    """A split in memory.

    Attributes:
      images: shape (n, height, width, channels), uint8.
      labels: int32, shape (n,); or (n, height, width), one class per pixel.
    """

    images: np.ndarray
    labels: np.ndarray

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image: (height, width, channels)."""
        return self.images.shape[1:]

    def read(self, indices: np.ndarray, epoch: int = 0) -> "Examples":
        """Returns the examples of these numbers."""
        del epoch
        return Examples(self.images[indices], self.labels[indices])


class Dataset(NamedTuple):
    """A training split and the splits to evaluate on; the first of those decides whether a target is reached.

    Attributes:
      name: as given to `data.load`.
      train: the split to train on.
      test: the splits to evaluate on, by name.
      num_classes: labels are 0 to num_classes - 1.
      note: a caveat to show wherever a number from this data set is shown, or nothing.
      independent: no two training examples were made from the same original, so that some can be held out.
    """

    name: str
    train: Split
    test: Mapping[str, Split]
    num_classes: int
    note: str = ""
    independent: bool = True


def cache_dir() -> Path:
    """Returns the folder of made and decoded data sets: $BATCHNORM_JAX_CACHE, else the user's cache folder."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchnorm_jax"


def cached(key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the arrays that `make` returns, from disk if they were made before.

    A file that cannot be read is named and made again; where the folder cannot be written, nothing is cached.
    """
    path = cache_dir() / f"{key}.npz"
    if path.exists():
        try:
            return _read(path)
        # zip and NumPy raise errors of many kinds for a damaged file; whichever it is, the arrays can be made again.
        except Exception as error:
            why = _files.reason(error) or type(error).__name__
            logging.warning("The cached data set %s cannot be read (%s); it is made again.", path, why)
    logging.info("Preparing %s, to be kept at %s", key, path)
    arrays = make()
    try:
        _files.make_folder(path.parent)
        with _files.writing(path) as file:
            np.savez(file, allow_pickle=False, **arrays, **{CONTENTS: np.frombuffer(_contents(arrays), np.uint8)})
    except (StorageError, UsageError) as error:
        why = error.__cause__ or error
        logging.warning("The data set cannot be kept at %s (%s); it will be made again next time.", path, why)
    return arrays


def _read(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a cached file.

    Raises:
      ValueError: they are not those that were written; a damaged file may raise other errors, too.
    """
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        if CONTENTS not in stored.files:
            raise ValueError("it does not say what it holds")
        written = stored[CONTENTS].tobytes()
        arrays = {name: stored[name] for name in stored.files if name != CONTENTS}
    if written != _contents(arrays):
        raise ValueError("it does not hold what it says")
    return arrays


def _contents(arrays: dict[str, np.ndarray]) -> bytes:
    """Returns the name, type and shape of every array, as text."""
    return json.dumps([[name, str(a.dtype), list(a.shape)] for name, a in sorted(arrays.items())]).encode()
