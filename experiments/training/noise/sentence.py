"""Puts into words how far a batch size is from the critical one, and what a larger batch gains."""

import math


def larger_batch(critical: float, batch_size: int) -> str:
    """Describes how doubling the batch would change the number of updates and of examples.

    Training at batch size B takes a number of updates S proportional to 1 + B_crit / B, and B S examples.

    Args:
      critical: B_crit, the critical batch size in examples, such as a share of the noise scale.
      batch_size: B, in examples.

    Returns:
      A clause that completes a sentence about the critical batch size.

    Example:
      >>> larger_batch(100.0, 100)
      'about the batch of 100: twice the batch would take 25% fewer updates and 50% more examples'

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, section 2.3.
    """
    if not 0 < critical < math.inf:
        return "gradient not yet distinguishable from noise: a far larger batch would still take fewer updates"
    saved = _saved(critical, batch_size)
    where = "above" if critical > 3 * batch_size else "below" if critical < batch_size / 3 else "about"
    place = f"{where} the batch of {batch_size}" if where == "about" else f"far {where} the batch of {batch_size}"
    return f"{place}: twice the batch would take {saved:.0%} fewer updates and {1 - 2 * saved:.0%} more examples"


def expected_gain(critical: float, batch_size: int) -> str:
    """Says what a run should gain by a batch that has just doubled, and when it does not.

    Args:
      critical: B_crit, the critical batch size in examples.
      batch_size: B, the batch size before, in examples.

    Returns:
      A clause that says what is expected.

    Example:
      >>> expected_gain(100.0, 100)
      'expect 25% fewer updates, 50% more examples to the same loss; it pays if an update takes less than 1.33x as long'

    Source: as for `larger_batch`.
    """
    saved = _saved(critical, batch_size)
    return (
        f"expect {saved:.0%} fewer updates, {1 - 2 * saved:.0%} more examples to the same loss; it pays if an "
        f"update takes less than {1 / (1 - saved):.2f}x as long"
    )


def _saved(critical: float, batch_size: int) -> float:
    """Returns the share of the updates that twice the batch saves."""
    if math.isinf(critical):
        return 0.5
    return 1 - (1 + critical / (2 * batch_size)) / (1 + critical / batch_size)
