"""Data sets of TensorFlow Datasets, read without TensorFlow: decoded once into memory, or streamed if too large.

TFDS itself prepares a data set once, which needs TensorFlow (`pip install .[prepare]`); reading does not need it.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .. import _files
from .._errors import UsageError, unknown_name
from . import contents
from .arrays import Dataset, Examples, Split, cached
from .outline import Outline
from .stream import Stream

# A split whose decoded images take more bytes than this is streamed.
MAX_IN_MEMORY_BYTES = 4 * 2**30

# Caveats to show wherever a number from this version of a data set is shown.
NOTES = {("cifar10", "3.0.2"): "CIFAR-10 as stored by TFDS 3.0.2; a prepared copy may have passed through JPEG once."}

# Data sets whose sizes and shapes are known without a prepared copy. Images of several sizes have none of their own.
_ANY_SIZE: Any = (None, None, 3)
OUTLINES: dict[str, Outline] = {
    "mnist": Outline({"train": 60_000, "test": 10_000}, (28, 28, 1), 10),
    "fashion_mnist": Outline({"train": 60_000, "test": 10_000}, (28, 28, 1), 10),
    "cifar10": Outline({"train": 50_000, "test": 10_000}, (32, 32, 3), 10),
    "cifar100": Outline({"train": 50_000, "test": 10_000}, (32, 32, 3), 100),
    # Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", arXiv 1409.0575, 2014, table 2.
    "imagenet2012": Outline({"train": 1_281_167, "test": 50_000}, _ANY_SIZE, 1000),
}


def load(name: str, data_dir: str | None, image_size: int | None = None, known: tuple[str, ...] = ()) -> Dataset:
    """Loads the splits `train` and `test` (or `validation`) of a prepared TFDS classification data set.

    Args:
      name: the name of the data set, with or without a version: "mnist", "cifar10:3.0.2".
      data_dir: the TFDS data directory; None: TFDS's own default.
      image_size: the height and the width to which images are cropped and resized when they are read, with random crops
        in training; None: images are read as they are stored.
      known: names of data sets that need no TFDS, which errors list.

    Returns:
      The data set. Images of one size that fit in memory are decoded once, in parallel, and then read from the cache;
      other images are streamed.

    Raises:
      UsageError: the data set is not prepared in `data_dir`, its files are damaged, it has no labelled images, or it
        has images of several sizes and no `image_size` was given.
    """
    directory, base = _directory(data_dir), name.partition(":")[0]
    with _opened(name, directory, known) as (builder, outline):
        splits = {
            which: _split(name, builder, which, image_size, place=directory / base)
            for which in ("train", _test(builder))
        }
    note = NOTES.get((base, str(builder.version)), "")
    return Dataset(name, splits.pop("train"), {"test": splits.popitem()[1]}, outline.num_classes, note)


def outline(
    name: str, data_dir: str | None, image_size: int | None = None, known: tuple[str, ...] = ()
) -> tuple[Outline, str]:
    """Returns the sizes and shapes of a data set, and where they are from, without reading an example.

    Args:
      name: the name of the data set, as in `load`.
      data_dir: the TFDS data directory; None: TFDS's own default.
      image_size: the height and the width to which images are cropped and resized; None: images keep their sizes.
      known: names of data sets that need no TFDS, which errors list.

    Raises:
      UsageError: the data set is neither prepared nor one of `OUTLINES`, or has images of several sizes and no
        `image_size` was given.
    """
    directory, base = _directory(data_dir), name.partition(":")[0]
    if (directory / base).is_dir():
        with _opened(name, directory, known) as (_, found):
            source = "as its description in the TFDS data directory says"
    elif base in OUTLINES:
        found, source = OUTLINES[base], "assumed as published, since it is not prepared here"
    else:
        raise UsageError(
            f"the images of dataset {name!r} are not known: it is not prepared in {directory}, and is none of "
            f"{', '.join(sorted([*known, *OUTLINES]))}; prepare it, or name one of these"
        )
    if image_size is not None:
        shape = (image_size, image_size, found.image_shape[2])
        return found._replace(image_shape=shape, is_streamed=True), source
    fits = all(_fits(name, found.image_shape, size) for size in found.examples.values())
    return found._replace(is_streamed=not fits), source


def _directory(data_dir: str | None) -> Path:
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets").expanduser()


def _test(builder: Any) -> str:
    return "test" if "test" in builder.info.splits else "validation"


@contextlib.contextmanager
def _opened(name: str, directory: Path, known: tuple[str, ...]) -> Iterator[tuple[Any, Outline]]:
    """Opens a prepared data set, checks its description, and yields the TFDS builder and what the description says."""
    base = name.partition(":")[0]
    if not (directory / base).is_dir():
        raise _not_prepared(base, directory, known)
    try:
        # TFDS is slow to import, and the default data set does not need it.
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.registered import DatasetNotFoundError
    except ImportError as error:
        raise UsageError(
            "TFDS data sets need the package tensorflow-datasets: pip install tensorflow-datasets"
        ) from error
    with _reading(name, directory / base):
        try:
            builder: Any = tfds.builder(name, data_dir=str(directory), try_gcs=False)
        except (DatasetNotFoundError, AssertionError) as error:
            raise _not_prepared(name, directory, known) from error
        if not builder.info.splits:
            raise _not_prepared(name, directory, known)
        if builder.info.supervised_keys is None or not {"image", "label"} <= set(builder.info.features):
            raise UsageError(
                f"dataset {name!r} has no labelled images (its features: {', '.join(builder.info.features)})"
            )
        test = _test(builder)
        if not {"train", test} <= set(builder.info.splits):
            raise UsageError(
                f"dataset {name!r} needs the splits train and test; it has {', '.join(builder.info.splits)}"
            )
        shape = builder.info.features["image"].shape
        if len(shape) != 3 or 0 in shape or shape[2] is None:
            raise ValueError(f"features.json gives images the shape {shape}, and not height, width and channels")
        num_classes = getattr(builder.info.features["label"], "num_classes", None)
        if not num_classes:
            raise UsageError(f"the labels of dataset {name!r} are no classes: {builder.info.features['label']}")
        examples = {"train": builder.info.splits["train"].num_examples, "test": builder.info.splits[test].num_examples}
        yield builder, Outline(examples, tuple(shape), num_classes)


def _split(name: str, builder: Any, which: str, image_size: int | None, *, place: Path) -> Split:
    """Loads a split of a prepared data set: into memory if it fits, else as a stream."""
    _check_shards(builder, which)
    try:
        source = _Source(builder.as_data_source(split=which), name, place, builder.info.features["label"].num_classes)
    except NotImplementedError as error:
        raise UsageError(f"dataset {name!r} must be prepared with --file_format=array_record ({error})") from error
    if image_size is not None:
        return Stream(source, image_size, random_crops=which == "train")
    shape = tuple(builder.info.features["image"].shape)
    if not _fits(name, shape, builder.info.splits[which].num_examples):
        return Stream(source, None, random_crops=False)
    # The key of the cache follows from the contents of the files, so that changed files do not find the old arrays.
    described = [Path(builder.data_path) / file for file in ("dataset_info.json", "features.json")]
    held = contents.of_files([*described, *_shards(builder, which)])
    arrays = cached(f"tfds-{builder.name}-{builder.version}-{which}-{held}", lambda: _decode(source, shape))
    return Examples(arrays["images"], arrays["labels"])


def _shards(builder: Any, which: str) -> list[Path]:
    return [Path(path) for path in builder.info.splits[which].filepaths]


def _check_shards(builder: Any, which: str) -> None:
    """Checks that each shard of a split holds the number of examples that `dataset_info.json` states.

    Raises:
      ValueError: a shard is missing or holds another number of examples.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    info = builder.info.splits[which]
    for path, said in zip(_shards(builder, which), info.shard_lengths, strict=True):
        if not path.is_file():
            raise ValueError(f"its shard {path.name} is missing")
        # For other formats TFDS itself raises an error.
        if ".array_record" in path.name:
            reader = ArrayRecordReader(str(path))
            holds = reader.num_records()
            reader.close()
            if holds != said:
                raise ValueError(f"its shard {path.name} holds {holds:,} examples, and dataset_info.json says {said:,}")


class _Source:
    """The decoded examples of a split; the error for an unreadable example names the data set."""

    def __init__(self, source: Any, name: str, place: Path, num_classes: int):
        self._source, self._name, self._place, self._num_classes = source, name, place, num_classes

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with _reading(self._name, self._place):
            record = self._source[index]
            if not 0 <= int(record["label"]) < self._num_classes:
                raise ValueError(
                    f"example {index} has the label {record['label']}, and there are {self._num_classes} classes"
                )
            return record


@contextlib.contextmanager
def _reading(name: str, place: Path) -> Iterator[None]:
    """Turns errors that TFDS raises for damaged files into a `UsageError` that names the data set and the remedy."""
    try:
        yield
    except UsageError:
        raise
    # Parsers, decoders and readers raise many kinds of errors.
    except Exception as error:
        why = _broken_description(place) or _files.reason(error)[:200].rstrip(".") or type(error).__name__
        raise UsageError(
            f"dataset {name!r} cannot be read from {place}: {why}. Move that folder away and prepare it again, with a "
            f"network: pip install '.[prepare]' && tfds build {name} --data_dir={place.parent} "
            "--file_format=array_record"
        ) from error


def _broken_description(place: Path) -> str:
    """Returns an error that names a damaged JSON file of the data set, whose name TFDS omits; "": none is damaged."""
    for path in sorted(place.glob("**/*.json")):
        try:
            _files.read_json(path, dict)
        except UsageError as error:
            return str(error)
    return ""


def _fits(name: str, shape: tuple[int, ...], examples: int) -> bool:
    """Returns whether the decoded images of a split fit in memory.

    Raises:
      UsageError: the images have several sizes.
    """
    if None in shape[:2]:
        raise UsageError(
            f"the images of dataset {name!r} have several sizes (shape {shape}); give --image_size, such as 224: they "
            "are then cropped and resized as they are read"
        )
    return examples * math.prod(shape) <= MAX_IN_MEMORY_BYTES


def prepared(data_dir: str | None) -> list[str]:
    """Returns the names of the data sets in `data_dir`; None: in TFDS's own directory."""
    directory = _directory(data_dir)
    return sorted(p.name for p in directory.iterdir() if p.is_dir()) if directory.is_dir() else []


def _decode(source: Any, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    def example(i):
        record = source[i]
        if record["image"].shape != shape:
            raise ValueError(f"the image of example {i} has the shape {record['image'].shape}, and not {shape}")
        return record["image"], record["label"]

    with ThreadPoolExecutor() as pool:
        pairs = list(pool.map(example, range(len(source)), chunksize=256))
    return {
        "images": np.stack([image for image, _ in pairs]),
        "labels": np.array([label for _, label in pairs], np.int32),
    }


def _not_prepared(name: str, directory: Path, known: tuple[str, ...]) -> UsageError:
    here = prepared(str(directory))
    if here and name not in here:
        listed = unknown_name("dataset", name, [*known, *here])
    else:
        listed = f"dataset {name!r} does not exist."
    return UsageError(
        f"{listed} Looked in {directory}. To prepare it once, with a network: pip install '.[prepare]' && "
        f"tfds build {name} --data_dir={directory} --file_format=array_record. "
        f"These need neither: {', '.join(sorted(known))}."
    )
