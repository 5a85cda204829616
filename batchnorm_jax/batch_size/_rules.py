"""Rules that carry an optimizer's numbers from one batch size to another."""

import math
from typing import Literal

# The power of the ratio of batch sizes, where noise dominates the gradient.
_POWERS = {"linear": 1.0, "sqrt": 0.5}


def scale_learning_rate(
    learning_rate: float,
    batch_size: float,
    new_batch_size: float,
    *,
    rule: Literal["linear", "sqrt"] = "linear",
    critical_batch_size: float = math.inf,
) -> float:
    """Scales a learning rate to another batch size.

        new rate = rate ((1 + B_crit / B) / (1 + B_crit / B_new))^p,   p = 1 (linear) or 1/2 (sqrt)

    Well below the critical batch size this is (B_new / B)^p; well above it the rate stays as it is, since a mean over
    more examples no longer changes the gradient. Without a critical batch size the power holds everywhere, and a rate
    that it makes very large needs a warmup.

    Args:
      learning_rate: the rate that is good at `batch_size`.
      batch_size: B, in examples.
      new_batch_size: B_new, in examples.
      rule: "linear" for SGD, with or without momentum; "sqrt" for Adam and others that divide by the size of the
        gradient.
      critical_batch_size: B_crit, in examples, measured at this rate's target: by `fit_steps_to_target`, or by the
        noise scale.

    Raises:
      ValueError: the rate is negative or not finite, a batch size is not positive, or the rule is unknown.

    Example:
      >>> scale_learning_rate(0.1, 256, 8192)
      3.2
      >>> round(scale_learning_rate(0.1, 256, 8192, critical_batch_size=256), 3)
      0.194

    Sources: linear, Goyal et al., "Accurate, Large Minibatch SGD", arXiv 1706.02677, 2017; the square root, Krizhevsky,
    "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997, 2014, and for Adam, Malladi et
    al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", arXiv 2205.10287, 2022; the bend at the
    critical batch size, McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018,
    section 2.2.
    """
    caller = "scale_learning_rate"
    if rule not in _POWERS:
        raise ValueError(f"{caller}: rule must be 'linear' or 'sqrt', not {rule!r}")
    if not 0 <= learning_rate < math.inf:
        raise ValueError(f"{caller}: learning_rate must be at least 0 and finite, not {learning_rate!r}")
    _check_sizes(caller, batch_size, new_batch_size)
    if not critical_batch_size >= 0:
        raise ValueError(f"{caller}: critical_batch_size must be at least 0, not {critical_batch_size!r}")
    # The ratio above, with both of its parts divided by the critical batch size: which may be infinite.
    ratio = new_batch_size / batch_size
    if critical_batch_size < math.inf:
        ratio *= (batch_size + critical_batch_size) / (new_batch_size + critical_batch_size)
    return learning_rate * ratio ** _POWERS[rule]


def scale_decay(decay: float, batch_size: float, new_batch_size: float, *, floor: float = 0.0) -> float:
    """Scales the decay of a running average, so that its half-life in examples stays as it is.

        new decay = decay^(B_new / B)

    For Adam's b2, the weights of an exponential moving average, and the momentum of a norm's running statistics: what
    an average forgets should depend on the examples that were seen since, not on how many updates they were cut into.

    Args:
      decay: the share of the average that one update of `batch_size` examples keeps, such as 0.999.
      batch_size: B, in examples.
      new_batch_size: B_new, in examples.
      floor: the least result, at least 0. At very large batches the rule leaves an average of hardly more than the
        last update. That suits statistics, but Adam must keep b1 below the square root of b2 to converge: with a b1 of
        0.9, a floor of 0.9 does.

    Raises:
      ValueError: a decay or the floor is not at least 0 and below 1, or a batch size is not positive.

    Example:
      >>> round(scale_decay(0.999, 512, 64), 6)
      0.999875
      >>> round(scale_decay(0.95, 512, 8192), 3), scale_decay(0.95, 512, 8192, floor=0.9)
      (0.44, 0.9)

    Sources: averages of weights, Busbridge et al., "How to Scale Your EMA", arXiv 2307.13813, 2023; Adam's b2, Marek et
    al., "Small Batch Size Training for Language Models", arXiv 2507.07101, 2025; its convergence, Zhang et al., "Adam
    Can Converge Without Any Modification On Update Rules", arXiv 2208.09632, 2022.
    """
    caller = "scale_decay"
    for name, value in {"decay": decay, "floor": floor}.items():
        if not 0 <= value < 1:
            raise ValueError(f"{caller}: {name} must be at least 0 and below 1, not {value!r}")
    _check_sizes(caller, batch_size, new_batch_size)
    return max(floor, decay ** (new_batch_size / batch_size))


def half_life(decay: float, batch_size: float) -> float:
    """Returns the examples after which a running average has forgotten half of what it held.

    Args:
      decay: the share of the average that one update keeps, at least 0 and below 1.
      batch_size: examples per update.

    Raises:
      ValueError: the decay is not at least 0 and below 1, or the batch size is not positive.

    Example:
      >>> round(half_life(0.999, 256))
      177357
    """
    if not 0 <= decay < 1:
        raise ValueError(f"half_life: decay must be at least 0 and below 1, not {decay!r}")
    _check_sizes("half_life", batch_size)
    return batch_size * math.log(0.5) / math.log(decay) if decay else 0.0


def _check_sizes(caller: str, *sizes: float) -> None:
    for size in sizes:
        if not 0 < size < math.inf:
            raise ValueError(f"{caller}: a batch size must be positive and finite, not {size!r}")
