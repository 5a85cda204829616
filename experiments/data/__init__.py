"""The data sets, as arrays in memory, and the order in which training reads them."""

from experiments.data import digits, tfds
from experiments.data.arrays import Dataset, Examples
from experiments.data.batches import epoch_order, padded_batches

__all__ = ["Dataset", "Examples", "epoch_order", "load", "padded_batches"]


def load(name: str, data_dir: str | None = None) -> Dataset:
    """The data set of that name: "digits", which needs no network, or any prepared TFDS data set.

    Args:
      name: "digits", or a TFDS name such as "mnist".
      data_dir: the TFDS data directory; not used by "digits".

    Raises:
      UsageError: there is no such data set; the message says where it looked and what prepares it.
    """
    return digits.load() if name == "digits" else tfds.load(name, data_dir)
