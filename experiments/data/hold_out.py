"""Holding out a part of the training examples, to choose a recipe by."""

import numpy as np

from experiments._errors import UsageError
from experiments.data.arrays import Dataset, Examples

SEED = 20_211


def validation(dataset: Dataset, examples: int) -> Dataset:
    """The data set with some training examples taken out, which become its only split to evaluate on.

    Args:
      dataset: in memory, with independent training examples.
      examples: how many to hold out; which ones is the same in every run.

    Returns:
      A data set whose `test` holds the split "validation" alone: who chooses a recipe by it does not see the test
      splits.

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
    # In their order, so that what is left is read as it was before.
    held, kept = np.sort(order[:examples]), np.sort(order[examples:])
    return dataset._replace(train=train.read(kept), test={"validation": train.read(held)})
