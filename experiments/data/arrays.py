"""Data sets as splits of images and labels, in memory or streamed, and a cache of arrays on disk."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from absl import logging

from .. import _files
from .._errors import StorageError, UsageError

CACHE_VARIABLE = "BATCHNORM_JAX_CACHE"
# The entry of a cached file that lists its other entries. It is needed because checksums guard only the bytes of
# arrays, not their names and shapes.
CONTENTS = "contents"


class Split(Protocol):
    """A set of examples that can be read by number: `Examples` in memory, or a `Stream`."""

    @property
    def size(self) -> int:
        """The number of examples."""
        ...

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image: (height, width, channels)."""
        ...

    def read(self, indices: np.ndarray, epoch: int = 0) -> "Examples":
        """Returns the examples with these numbers; the epoch decides their random crops, if the split has crops."""
        ...


class Examples(NamedTuple):
    """A split in memory.

    Attributes:
      images: the images, uint8, shape (n, height, width, channels).
      labels: the classes, int32, shape (n,); or one class per pixel, shape (n, height, width).
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
        """Returns the examples with these numbers; the epoch has no effect."""
        del epoch
        return Examples(self.images[indices], self.labels[indices])


class Dataset(NamedTuple):
    """A training split and the splits to evaluate on.

    Attributes:
      name: the name of the data set, as given to `data.load`.
      train: the split to train on.
      test: the splits to evaluate on, by name; the first one decides whether a target accuracy is reached.
      num_classes: the number of classes; labels are 0 to num_classes - 1.
      note: a caveat to show wherever a number from this data set is shown; "": there is none.
      independent: whether all training examples come from different originals, so that some can be held out.
    """

    name: str
    train: Split
    test: Mapping[str, Split]
    num_classes: int
    note: str = ""
    independent: bool = True


def cache_dir() -> Path:
    """Returns the cache folder for data sets: $BATCHNORM_JAX_CACHE, or a folder in the user's cache folder."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchnorm_jax"


def cached(key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the arrays that `make` returns, from disk if they were made before.

    A warning names a cached file that cannot be read, and the file is made again. If the folder cannot be written,
    nothing is cached, and a warning says so.

    Args:
      key: the name of the cached file, without its ending.
      make: a function that makes the arrays, by name.
    """
    path = cache_dir() / f"{key}.npz"
    if path.exists():
        try:
            return _read(path)
        # zip and NumPy raise many kinds of errors for a damaged file; after any of them the arrays can be made again.
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
    """Reads the arrays of a cached file.

    Raises:
      ValueError: the arrays are not those that were written. A damaged file may raise other errors too.
    """
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        if CONTENTS not in stored.files:
            raise ValueError("the description of its arrays is missing")
        written = stored[CONTENTS].tobytes()
        arrays = {name: stored[name] for name in stored.files if name != CONTENTS}
    if written != _contents(arrays):
        raise ValueError("its arrays do not fit their description")
    return arrays


def _contents(arrays: dict[str, np.ndarray]) -> bytes:
    """Returns the name, the dtype and the shape of every array, as JSON."""
    return json.dumps([[name, str(a.dtype), list(a.shape)] for name, a in sorted(arrays.items())]).encode()
