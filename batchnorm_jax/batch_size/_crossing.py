"""The updates to a target, read off the noisy losses of a run."""

import math

import numpy as np
import scipy
from numpy.typing import ArrayLike


def steps_to_target(steps: ArrayLike, losses: ArrayLike, target: float) -> float:
    """Finds the updates after which a run's loss, without its noise, is at a target.

    The first evaluation at or below the target comes too early, by luck, and earlier the more often a run is evaluated;
    where evaluations are rare it comes too late. Here the losses are first replaced by the falling sequence that is
    nearest to them in the sense of least squares, each of whose levels stands at the middle of its evaluations, and the
    updates follow by interpolation. Train a little beyond the target: a run that stops at it has the luck in it still.

    Args:
      steps: the updates before each evaluation, rising, shape (evaluations,). Begin with 0, or a target that the first
        evaluation reaches was reached at an unknown time before.
      losses: the held-out losses, shape (evaluations,). For accuracies give them and the target with a minus sign.
      target: the loss to reach.

    Returns:
      The updates; infinite if the target is not reached, and the first of `steps` if the first loss is at it already.

    Raises:
      ValueError: the shapes differ or are empty, the steps do not rise, or a number is not one.

    Example:
      >>> round(steps_to_target([0, 100, 200, 300], [2.0, 1.0, 1.2, 0.8], 1.1), 3)
      150.0
      >>> round(steps_to_target([0, 100, 200], [-0.1, -0.8, -0.9], -0.85), 3)
      150.0

    Source: isotonic regression, Barlow et al., "Statistical Inference under Order Restrictions", 1972.
    """
    caller = "steps_to_target"
    places, values = np.asarray(steps, float), np.asarray(losses, float)
    if places.ndim != 1 or places.shape != values.shape or not places.size:
        raise ValueError(f"{caller}: steps has shape {places.shape} and losses {values.shape}; give one of each a time")
    if not np.all(np.diff(places) > 0):
        raise ValueError(f"{caller}: steps must rise, and are {places.tolist()}")
    if math.isnan(target) or np.any(np.isnan(values)):
        raise ValueError(f"{caller}: losses and target must be numbers; leave out what came after the first nan")
    # A run that diverged falls no further; infinite values would make every mean infinite.
    finite = np.isfinite(values)
    ended = len(values) if finite.all() else int(np.argmin(finite))
    if ended == 0:
        return math.inf
    places, fitted = places[:ended], scipy.optimize.isotonic_regression(values[:ended], increasing=False)
    firsts = fitted.blocks[:-1]
    levels = fitted.x[firsts]
    if levels[-1] > target:
        return math.inf
    middles = np.add.reduceat(places, firsts) / np.diff(fitted.blocks)
    return float(np.interp(-target, -levels, middles))
