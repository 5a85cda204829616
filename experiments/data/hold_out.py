"""Holds out training examples for choosing a recipe, so that the test split does not influence the choice."""

import numpy as np

from .._errors import UsageError
from .arrays import Dataset, Examples

# A fixed seed, so that all runs hold out the same examples.
SEED = 20_211


def validation(dataset: Dataset, examples: int) -> Dataset:
    """Moves some training examples of a data set to a split "validation", its only split to evaluate on.

    Args:
      dataset: a data set in memory with independent training examples.
      examples: the number of examples to hold out; every run holds out the same ones.

    Returns:
      A data set whose `test` holds only the split "validation", so that the test splits do not influence the choice.

    Raises:
      UsageError: the data set is streamed, its training examples share originals, or no training example would be left.
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
    # Both parts keep their original order, so that the numbering of the remaining examples follows the data set's.
    held, kept = np.sort(order[:examples]), np.sort(order[examples:])
    return dataset._replace(train=train.read(kept), test={"validation": train.read(held)})
