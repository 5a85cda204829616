"""Data sets of TensorFlow Datasets, read without TensorFlow: decoded once into memory, or streamed if too large.

A data set is prepared once by TFDS itself, which needs TensorFlow (`pip install .[prepare]`); reading does not.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from experiments._errors import UsageError, unknown_name
from experiments.data.arrays import Dataset, Examples, Split, cached
from experiments.data.stream import Stream

# Of decoded images, in bytes: a set above this is streamed.
LARGEST_IN_MEMORY = 4 * 2**30

# What must be said wherever a number from a data set of this version is shown.
NOTES = {("cifar10", "3.0.2"): "CIFAR-10 as stored by TFDS 3.0.2; a prepared copy may have passed through JPEG once."}


def load(name: str, data_dir: str | None, image_size: int | None = None, known: tuple[str, ...] = ()) -> Dataset:
    """The splits `train` and `test` (or `validation`) of a prepared TFDS classification data set.

    Args:
      name: of the data set, with or without a version: "mnist", "cifar10:3.0.2".
      data_dir: the TFDS data directory; None: TFDS's own default.
      image_size: the height and width to which images are cropped and resized as they are read, at random places in
        training; None: as they are stored.
      known: names of data sets that need no TFDS, to be listed in errors.

    Returns:
      The data set. Images of one size that fit in memory are decoded once, in parallel, and then read from the cache;
      others are streamed.

    Raises:
      UsageError: it is not prepared in `data_dir`, is not one of labelled images, or has images of several sizes and
        no `image_size` was given.
    """
    directory = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets").expanduser()
    base = name.partition(":")[0]
    if not (directory / base).is_dir():
        raise _not_prepared(base, directory, known)
    try:
        # Slow to import, and the default data set does without it.
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.registered import DatasetNotFoundError
    except ImportError as error:
        raise UsageError(
            "TFDS data sets need the package tensorflow-datasets: pip install tensorflow-datasets"
        ) from error
    try:
        builder: Any = tfds.builder(name, data_dir=str(directory), try_gcs=False)
    except (DatasetNotFoundError, AssertionError) as error:
        raise _not_prepared(name, directory, known) from error
    if not builder.info.splits:
        raise _not_prepared(name, directory, known)
    if builder.info.supervised_keys is None or not {"image", "label"} <= set(builder.info.features):
        raise UsageError(f"dataset {name!r} has no labelled images (its features: {', '.join(builder.info.features)})")
    test = "test" if "test" in builder.info.splits else "validation"
    if not {"train", test} <= set(builder.info.splits):
        raise UsageError(f"dataset {name!r} needs the splits train and test; it has {', '.join(builder.info.splits)}")

    place = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:8]
    version = str(builder.version)

    def split(which: str) -> Split:
        try:
            source = builder.as_data_source(split=which)
        except NotImplementedError as error:
            raise UsageError(f"dataset {name!r} must be prepared with --file_format=array_record ({error})") from error
        if image_size is not None:
            return Stream(source, image_size, random_crops=which == "train")
        if not _fits(name, builder, which):
            return Stream(source, None, random_crops=False)
        arrays = cached(f"tfds-{base}-{version}-{which}-{place}", lambda: _decode(source))
        return Examples(arrays["images"], arrays["labels"])

    num_classes = builder.info.features["label"].num_classes
    return Dataset(name, split("train"), {"test": split(test)}, num_classes, NOTES.get((base, version), ""))


def _fits(name: str, builder: Any, split: str) -> bool:
    """Whether the decoded images are few enough to be kept in memory; refuses those of several sizes."""
    shape = builder.info.features["image"].shape
    if None in shape[:2]:
        raise UsageError(
            f"the images of dataset {name!r} have several sizes (shape {shape}); give --image_size, such as 224: they "
            "are then cropped and resized as they are read"
        )
    return builder.info.splits[split].num_examples * np.prod(shape) <= LARGEST_IN_MEMORY


def prepared(data_dir: str | None) -> list[str]:
    """The names of the data sets that `data_dir` holds."""
    directory = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets").expanduser()
    return sorted(p.name for p in directory.iterdir() if p.is_dir()) if directory.is_dir() else []


def _decode(source) -> dict[str, np.ndarray]:
    def example(i):
        record = source[i]
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
        listed = f"dataset {name!r} is not there."
    return UsageError(
        f"{listed} Looked in {directory}. To prepare it once, with a network: pip install '.[prepare]' && "
        f"tfds build {name} --data_dir={directory} --file_format=array_record. "
        f"These need neither: {', '.join(sorted(known))}."
    )
