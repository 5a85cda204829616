"""The data sets, in memory or streamed. Those that need no TFDS are each declared once, as a record of `DATASETS`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import _users
from .._errors import UsageError
from .._variants import Register
from . import digits, hold_out, shapes, tfds, users
from .arrays import Dataset, Examples, Split, cache_dir
from .batches import Segment, epoch_segments, padded_batches
from .contents import digests
from .outline import Outline
from .stream import Stream
from .users import is_streamed

__all__ = [
    "DATASETS",
    "DataSource",
    "Dataset",
    "Examples",
    "Segment",
    "Split",
    "Stream",
    "cache_dir",
    "digests",
    "epoch_segments",
    "is_streamed",
    "load",
    "outlined",
    "padded_batches",
]


@dataclass(frozen=True)
class DataSource:
    """A data set that this package makes itself, without a network or TFDS.

    Attributes:
      name: the value of `--dataset`.
      help: a phrase for the help of the flag.
      load: a function that makes the data set, or reads it from the cache.
      outline: a function that returns the sizes and shapes of the data set, without making it.
    """

    name: str
    help: str
    load: Callable[[], Dataset]
    outline: Callable[[], Outline]


DATASETS = Register(
    "dataset",
    DataSource("digits", "1,797 scanned digits, warped into many more; no network needed", digits.load, digits.outline),
    DataSource("shapes", "drawn shapes for segmentation; no network needed", shapes.load, shapes.outline),
)


def load(
    name: str, data_dir: str | None = None, *, image_size: int | None = None, validation_examples: int = 0
) -> Dataset:
    """Loads the data set with a name.

    Args:
      name: a name in `DATASETS`, which needs no network; any prepared TFDS data set, such as "mnist"; or a function of
        the user's own, "package.module:function", that takes no arguments and returns a `Dataset`.
      data_dir: the TFDS data directory; other data sets ignore it.
      image_size: the height and the width to which the images of a TFDS data set are resized when they are read; None:
        images keep their sizes.
      validation_examples: the number of training examples, a fixed random choice, that are held out and become the
        only split to evaluate on, for choosing a recipe; 0: no example is held out.

    Raises:
      UsageError: the data set is not known or not prepared; the message names the folder that was searched and the
        command that prepares the data set.
    """
    _check(name, image_size)
    if name in DATASETS:
        dataset = DATASETS[name].load()
    elif _users.is_users_own(name):
        dataset = users.dataset(name)
    else:
        dataset = tfds.load(name, data_dir, image_size, known=DATASETS.names)
    return hold_out.validation(dataset, validation_examples) if validation_examples else dataset


def outlined(
    name: str, data_dir: str | None = None, *, image_size: int | None = None, validation_examples: int = 0
) -> tuple[Dataset, str]:
    """Returns a data set with the sizes and shapes of the one with a name, and where they are from.

    Its images are black. Only a function of the user's own is called, and its data set returned as it is.

    Args:
      name: as in `load`.
      data_dir: as in `load`.
      image_size: as in `load`.
      validation_examples: as in `load`.

    Raises:
      UsageError: the sizes and shapes are not known, or `load` would refuse the arguments.
    """
    _check(name, image_size)
    if name in DATASETS:
        dataset, source = DATASETS[name].outline().dataset(name), "as this program makes it"
    elif _users.is_users_own(name):
        dataset, source = users.dataset(name), "as its function returns it"
    else:
        outline, source = tfds.outline(name, data_dir, image_size, known=DATASETS.names)
        dataset = outline.dataset(name)
    return (hold_out.validation(dataset, validation_examples) if validation_examples else dataset), source


def _check(name: str, image_size: int | None) -> None:
    own = name in DATASETS or _users.is_users_own(name)
    if own and image_size is not None:
        raise UsageError(f"--image_size is for TFDS data sets, and --dataset={name} has images of a size of its own")
    if not own and (Path.cwd() / f"{name}.py").is_file():
        raise UsageError(
            f"--dataset={name} names the file {name}.py of your own; name its function too: --dataset={name}:FUNCTION, "
            f"such as {name}:data"
        )
