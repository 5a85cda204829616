"""Holds out training examples, for choosing a recipe."""

import numpy as np

from experiments._errors import UsageError
from experiments.data.arrays import Dataset, Examples

SEED = 20_211


def validation(dataset: Dataset, examples: int) -> Dataset:
    """Returns a data set with some training examples taken out, which become its only split to evaluate on.

    Args:
      dataset: in memory, with independent training examples.
      examples: how many to hold out; every run holds out the same ones.

    Returns:
      A data set whose `test` holds only the split "validation", so that the test splits do not influence the choice.

    Raises:
      UsageError: the data set is streamed, its training examples share originals, or too few would be left.
    """
    train = dataset.train
    if not isinstance(train, Examples):
        raise UsageError(
            f"--validation_examples needs a data set in memory, and {dataset.name!r} is streamed; "
            "make a split of it with TFDS"
        )
    if not dataset.independent:
        raise UsageError(
            f"--validation_examples={examples}: training examples of {dataset.name!r} are views of the same images, so "
            "views of one image would be on both sides; choose by another data set"
        )
    if examples >= train.size:
        raise UsageError(f"--validation_examples={examples} leaves none of the {train.size} training examples")
    order = np.random.default_rng(SEED).permutation(train.size)
    # In their original order, so that the remaining examples are read as before.
    held, kept = np.sort(order[:examples]), np.sort(order[examples:])
    return dataset._replace(train=train.read(kept), test={"validation": train.read(held)})
