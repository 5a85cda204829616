"""Data sets of TensorFlow Datasets, read without TensorFlow, decoded once.

A data set is prepared once by TFDS itself, which needs TensorFlow (`pip install .[prepare]`); reading does not.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from experiments._errors import UsageError, unknown_name
from experiments.data.arrays import Dataset, Examples, cached

# What must be said wherever a number from a data set of this version is shown.
NOTES = {("cifar10", "3.0.2"): "CIFAR-10 as stored by TFDS 3.0.2; a prepared copy may have passed through JPEG once."}


def load(name: str, data_dir: str | None) -> Dataset:
    """The splits `train` and `test` (or `validation`) of a prepared TFDS classification data set, as arrays.

    Args:
      name: of the data set, with or without a version: "mnist", "cifar10:3.0.2".
      data_dir: the TFDS data directory; None: TFDS's own default.

    Returns:
      The data set. Its arrays are decoded once, in parallel, and then read from the cache.

    Raises:
      UsageError: it is not prepared in `data_dir`, or not one of labelled images of one size.
    """
    directory = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets").expanduser()
    base = name.partition(":")[0]
    if not (directory / base).is_dir():
        raise _not_prepared(base, directory)
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
        raise _not_prepared(name, directory) from error
    if not builder.info.splits:
        raise _not_prepared(name, directory)
    if builder.info.supervised_keys is None or not {"image", "label"} <= set(builder.info.features):
        raise UsageError(f"dataset {name!r} has no labelled images (its features: {', '.join(builder.info.features)})")
    test = "test" if "test" in builder.info.splits else "validation"
    if not {"train", test} <= set(builder.info.splits):
        raise UsageError(f"dataset {name!r} needs the splits train and test; it has {', '.join(builder.info.splits)}")

    place = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:8]
    version = str(builder.version)

    def decoded(split: str) -> Examples:
        key = f"tfds-{base}-{version}-{split}-{place}"
        try:
            arrays = cached(key, lambda: _decode(builder.as_data_source(split=split)))
        except NotImplementedError as error:
            raise UsageError(f"dataset {name!r} must be prepared with --file_format=array_record ({error})") from error
        return Examples(arrays["images"], arrays["labels"])

    num_classes = builder.info.features["label"].num_classes
    return Dataset(name, decoded("train"), {"test": decoded(test)}, num_classes, NOTES.get((base, version), ""))


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
    shapes = {image.shape for image, _ in pairs}
    if len(shapes) > 1:
        raise UsageError(f"the images must have one size, and these have {len(shapes)} (such as {sorted(shapes)[:3]})")
    return {
        "images": np.stack([image for image, _ in pairs]),
        "labels": np.array([label for _, label in pairs], np.int32),
    }


def _not_prepared(name: str, directory: Path) -> UsageError:
    here = prepared(str(directory))
    if here and name not in here:
        listed = unknown_name("dataset", name, ["digits", *here])
    else:
        listed = f"dataset {name!r} is not there."
    return UsageError(
        f"{listed} Looked in {directory}. To prepare it once, with a network: pip install '.[prepare]' && "
        f"tfds build {name} --data_dir={directory} --file_format=array_record. "
        "The data set 'digits' needs neither."
    )
