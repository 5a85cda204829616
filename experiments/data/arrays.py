"""What a data set is: splits of images and labels, in memory or streamed; and a cache of arrays on disk."""

import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from absl import logging

CACHE_VARIABLE = "BATCHNORM_JAX_CACHE"


class Split(Protocol):
    """Some examples that can be read by their numbers: `Examples` in memory, or a `Stream`."""

    @property
    def size(self) -> int:
        """How many examples there are."""
        ...

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one image: (height, width, channels)."""
        ...

    def read(self, indices: np.ndarray, epoch: int = 0) -> "Examples":
        """The examples of these numbers; the epoch decides a random crop, where there is one."""
        ...


class Examples(NamedTuple):
    """A split in memory.

    Attributes:
      images: shape (n, height, width, channels), uint8.
      labels: int32, shape (n,); or (n, height, width), a class for every pixel.
    """

    images: np.ndarray
    labels: np.ndarray

    @property
    def size(self) -> int:
        """How many examples there are."""
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one image: (height, width, channels)."""
        return self.images.shape[1:]

    def read(self, indices: np.ndarray, epoch: int = 0) -> "Examples":
        """The examples of these numbers."""
        del epoch
        return Examples(self.images[indices], self.labels[indices])


class Dataset(NamedTuple):
    """A training split and the splits to evaluate on; the first of these is the one that counts.

    Attributes:
      name: as given to `data.load`.
      train: what is trained on.
      test: by name.
      num_classes: labels are 0 to num_classes - 1.
      note: what must be said wherever a number from it is shown, or nothing.
      independent: no two training examples were made from one original, so that some can be held out.
    """

    name: str
    train: Split
    test: Mapping[str, Split]
    num_classes: int
    note: str = ""
    independent: bool = True


def cache_dir() -> Path:
    """Where made and decoded data sets are kept: $BATCHNORM_JAX_CACHE, else the user's cache folder."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchnorm_jax"


def cached(key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that `make` gives, from disk if they were made before.

    A file that cannot be read is named and made again; a folder that cannot be written costs the caching alone.
    """
    path = cache_dir() / f"{key}.npz"
    if path.exists():
        try:
            with path.open("rb") as file, np.load(file) as stored:
                return dict(stored)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            logging.warning("The cached data set %s cannot be read (%s); it is made again.", path, error)
    logging.info("Preparing %s, to be kept at %s", key, path)
    arrays = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed, so that no process ever reads half a file.
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            try:
                np.savez(file, allow_pickle=False, **arrays)
            except OSError:
                os.unlink(file.name)
                raise
        os.replace(file.name, path)
    except OSError as error:
        logging.warning("The data set cannot be kept at %s (%s); it will be made again next time.", path, error)
    return arrays
