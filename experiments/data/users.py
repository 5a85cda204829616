"""Data sets from a user's own function, checked before training uses them."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _commands, _users
from .._errors import UsageError
from .arrays import Dataset, Examples, Split

# The kinds of rows in `metrics.jsonl` that are not evaluations of a split.
RESERVED = ("noise", "ramp", "train")


class Checked:
    """A split of the user's own class, whose examples are checked when they are read.

    Args:
      split: the user's object.
      dataset: the value of `--dataset`, which errors name.
      name: the name of the split.
      num_classes: the number of classes of the labels.
    """

    def __init__(self, split: Any, dataset: str, name: str, num_classes: int):
        self.split, self._dataset, self._name, self._classes = split, dataset, name, num_classes

    @property
    def size(self) -> int:
        """The number of examples."""
        return int(self.split.size)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image: (height, width, channels)."""
        return tuple(int(n) for n in self.split.image_shape)

    def read(self, indices: np.ndarray, epoch: int = 0) -> Examples:
        """Reads and checks the examples with these numbers.

        Raises:
          UsageError: the user's method fails, or returns something other than the requested examples.
        """
        with _users.running("dataset", self._dataset, f"reading {self._name}"):
            images, labels = self.split.read(indices, epoch)
        where = f"--dataset={self._dataset}: what {self._name} reads"
        examples = _checked_arrays(where, images, labels, self._classes)
        wanted = (len(indices), *self.image_shape)
        if examples.images.shape != wanted:
            raise UsageError(
                f"{where} must be the {len(indices)} examples that are asked for, images of {wanted}, not "
                f"images of {examples.images.shape}"
            )
        return examples


def dataset(name: str) -> Dataset:
    """Calls the user's function, and checks and returns its data set.

    Splits in memory are checked completely. The first and the last examples of other splits are checked here, and all
    other examples when they are read.

    Args:
      name: the value of `--dataset`, "package.module:function".

    Raises:
      UsageError: the function fails, or its result cannot be trained and evaluated on; the message names what was
        required and what came.
    """
    function = _users.function("dataset", name)
    with _users.running("dataset", name, "the function"):
        made = function()
    where = f"--dataset={name}"
    if not _is(Dataset, made):
        raise UsageError(f"{where} must return an {_commands.module('data')}.Dataset, and it returned {type(made)}")
    made = Dataset(*made)
    if not isinstance(made.test, Mapping):
        raise UsageError(
            f"{where}: its `test` must be a mapping of names to splits, such as {{'test': Examples(images, labels)}}, "
            f"not {type(made.test).__name__}"
        )
    if not made.test:
        raise UsageError(f"{where} has no split to evaluate on: its `test` is empty")
    for split in made.test:
        if not isinstance(split, str) or not re.fullmatch(r"\w[\w.-]{0,99}", split) or split in RESERVED:
            raise UsageError(
                f"{where}: a split is named by at most 100 letters, digits and '_', '.' or '-', not a '.' first, and "
                f"not {', '.join(RESERVED)}, and there is one named {split!r}"
            )
    classes: Any = made.num_classes
    if isinstance(classes, bool) or not isinstance(classes, int | np.integer) or classes < 2:
        raise UsageError(f"{where}: num_classes must be a whole number of at least 2, not {classes!r}")
    if not isinstance(made.note, str):
        raise UsageError(f"{where}: note must be text, not {type(made.note).__name__}")
    splits = {
        split: _checked(name, split, examples, int(classes))
        for split, examples in {"train": made.train, **made.test}.items()
    }
    train = splits.pop("train")
    first = train.read(np.arange(1))
    for split, examples in splits.items():
        other = examples.read(np.arange(1))
        if (other.images.shape, other.labels.shape) != (first.images.shape, first.labels.shape):
            raise UsageError(
                f"{where}: an image of {split} is of {other.images.shape[1:]} with labels of {other.labels.shape[1:]}, "
                f"and one of train of {first.images.shape[1:]} with labels of {first.labels.shape[1:]}; they must agree"
            )
    return made._replace(name=name, train=train, test=splits, num_classes=int(classes))


def _is(kind: type, value: Any) -> bool:
    """Returns whether a value is of a named tuple's type, of this package or of its copy under its other name."""
    return isinstance(value, tuple) and getattr(value, "_fields", None) == getattr(kind, "_fields", ())


def is_streamed(split: Split) -> bool:
    """Returns whether a split is read from disk during training because it does not fit in memory."""
    return getattr(split.split if isinstance(split, Checked) else split, "is_streamed", False)


def _checked(name: str, split: str, examples: Any, num_classes: int) -> Split:
    where = f"--dataset={name}"
    if _is(Examples, examples):
        images, labels = examples
        return _checked_arrays(f"{where}: {split}", images, labels, num_classes, nonempty=True)
    lacks = [attribute for attribute in ("size", "image_shape", "read") if not hasattr(examples, attribute)]
    if lacks:
        raise UsageError(
            f"{where}: {split} must be Examples(images, labels), or have size, image_shape and read, not "
            f"{type(examples).__name__}, which lacks {', '.join(lacks)}"
        )
    for attribute, value in (("size", (examples.size,)), ("image_shape", examples.image_shape)):
        whole = isinstance(value, tuple | list) and all(isinstance(n, int | np.integer) and n > 0 for n in value)
        if not whole or len(value) != (1 if attribute == "size" else 3):
            what = (
                "a whole number above 0" if attribute == "size" else "(height, width, channels), whole numbers above 0"
            )
            given = examples.size if attribute == "size" else value
            raise UsageError(f"{where}: the {attribute} of {split} must be {what}, not {given!r}")
    checked = Checked(examples, name, split, num_classes)
    checked.read(np.unique([0, min(1, checked.size - 1), checked.size - 1]))
    return checked


def _checked_arrays(where: str, images: Any, labels: Any, num_classes: int, *, nonempty: bool = False) -> Examples:
    """Checks images and labels, and returns them with the labels as int32."""
    for what, array in (("images", images), ("labels", labels)):
        if not isinstance(array, np.ndarray):
            raise UsageError(
                f"{where}: the {what} must be a NumPy array, and they are of type {type(array).__name__}; "
                "np.asarray makes one"
            )
    if images.dtype != np.uint8 or images.ndim != 4:
        raise UsageError(
            f"{where}: the images must be uint8 of shape (n, height, width, channels), and they are {images.dtype} of "
            f"{images.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim not in (1, 3):
        raise UsageError(
            f"{where}: the labels must be int32 of shape (n,), or (n, height, width), and they are {labels.dtype} of "
            f"{labels.shape}"
        )
    if len(images) != len(labels):
        raise UsageError(
            f"{where}: there must be a label for each image, and there are {len(images)} and {len(labels)}"
        )
    if labels.ndim == 3 and labels.shape != images.shape[:3]:
        raise UsageError(f"{where}: the labels of {labels.shape} must be those of the pixels, of {images.shape[:3]}")
    if nonempty and not len(images):
        raise UsageError(f"{where} is empty; it must have at least one example")
    if 0 in images.shape[1:]:
        raise UsageError(f"{where}: images of {images.shape[1:]} have no pixels; each number must be above 0")
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        raise UsageError(
            f"{where}: the labels must be from 0 to {num_classes - 1}, one less than num_classes, and they are from "
            f"{labels.min()} to {labels.max()}"
        )
    return Examples(images, labels.astype(np.int32, copy=False))
