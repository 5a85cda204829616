"""Options of runs with very large batches at a fixed number of epochs, which several questions share."""

from typing import Any

from ..records.fields import Options

EPOCHS = 12
SEEDS = (0, 1, 2)
# The fewest updates of an epoch that tell anything.
FEWEST_UPDATES = 7


def fixed_epochs(dataset: Options, batch_size: int, **changes: Any) -> Options:
    """Returns the options of a run of 12 epochs.

    Args:
      dataset: options that all runs of a study share.
      batch_size: examples per update.
      **changes: other options, or other values of these.
    """
    return {
        **dataset,
        "batch_size": batch_size,
        "epochs": EPOCHS,
        "drop_remainder": False,
        **changes,
    }
