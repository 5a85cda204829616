"""A data set that a function of the user's own makes."""

import numpy as np

from experiments import _users
from experiments._errors import UsageError
from experiments.data.arrays import Dataset, Examples, Split


def dataset(name: str) -> Dataset:
    """The data set that the user's function returns, checked."""
    made = _users.function("dataset", name)()
    if not isinstance(made, Dataset):
        raise UsageError(f"--dataset={name} must return an experiments.data.Dataset, and it returned {type(made)}")
    if not made.test:
        raise UsageError(f"--dataset={name} has no split to evaluate on: its `test` is empty")
    made = made._replace(train=_cast(made.train), test={split: _cast(part) for split, part in made.test.items()})
    for split, examples in {"train": made.train, **made.test}.items():
        first = examples.read(np.arange(min(2, examples.size)))
        if first.images.dtype != np.uint8 or first.images.ndim != 4:
            raise UsageError(
                f"--dataset={name}: the images of {split} must be uint8 of shape (n, height, width, channels), and "
                f"they are {first.images.dtype} of {first.images.shape}"
            )
        if first.labels.dtype != np.int32 or first.labels.shape not in (first.images.shape[:1], first.images.shape[:3]):
            raise UsageError(
                f"--dataset={name}: the labels of {split} must be int32 of shape (n,), or (n, height, width), and they "
                f"are {first.labels.dtype} of {first.labels.shape}"
            )
        if not examples.size:
            raise UsageError(f"--dataset={name}: the split {split} is empty")
        labels = examples.labels if isinstance(examples, Examples) else first.labels
        if labels.min() < 0 or labels.max() >= made.num_classes:
            raise UsageError(
                f"--dataset={name}: the labels of {split} must be from 0 to {made.num_classes - 1}, one less than "
                f"num_classes, and they are from {labels.min()} to {labels.max()}"
            )
    return made._replace(name=name)


def _cast(split: Split) -> Split:
    """A split in memory with labels of any integer type as int32, where each of them is one that int32 holds."""
    if not isinstance(split, Examples):
        return split
    labels = np.asarray(split.labels)
    is_whole = np.issubdtype(labels.dtype, np.integer) and labels.dtype != np.int32
    if not is_whole or not labels.size:
        return split
    limits = np.iinfo(np.int32)
    fits = int(labels.min()) >= limits.min and int(labels.max()) <= limits.max
    return split._replace(labels=labels.astype(np.int32)) if fits else split
