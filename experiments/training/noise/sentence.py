"""Puts into words how far a batch size is from the noise scale."""

import math


def larger_batch(scale: float, batch_size: int) -> str:
    """Describes how doubling the batch would change the number of updates and of examples.

    Training at batch size B takes a number of updates S proportional to 1 + B_simple / B, and B S examples.

    Args:
      scale: B_simple, the noise scale in examples.
      batch_size: B, in examples.

    Returns:
      A clause that completes a sentence about the noise scale.

    Example:
      >>> larger_batch(100.0, 100)
      'about the batch of 100: twice the batch would take 25% fewer updates and 50% more examples'

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, section 2.3.
    """
    if not 0 < scale < math.inf:
        return "gradient not yet distinguishable from noise: a far larger batch would still take fewer updates"
    saved = 1 - (1 + scale / (2 * batch_size)) / (1 + scale / batch_size)
    where = "above" if scale > 3 * batch_size else "below" if scale < batch_size / 3 else "about"
    place = f"{where} the batch of {batch_size}" if where == "about" else f"far {where} the batch of {batch_size}"
    return f"{place}: twice the batch would take {saved:.0%} fewer updates and {1 - 2 * saved:.0%} more examples"
