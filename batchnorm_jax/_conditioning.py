"""Warnings in place of results that are other than meant, unseen: lost digits, and scales whose sign is dropped."""

import warnings
from functools import partial

import jax
import numpy as np
from jax.core import Tracer

# From here on a relative error of the variance of over 1e-2 is to be expected in float32.
WARN_FROM = 1e5


class ConditioningWarning(UserWarning):
    """The mean is so far from the running mean, and from 0, that the variance has lost digits."""


def warn_of_conditioning(figure: jax.Array, name: str) -> None:
    """Warns, when the program runs, if `conditioning` gave a figure of `WARN_FROM` or more; `name` is the layer's."""
    jax.debug.callback(partial(_warn, name), figure)


def _warn(name: str, figure) -> None:
    if figure >= WARN_FROM:
        distance = min(float(figure) ** 0.5, 1e9)
        warnings.warn(
            f"{name}: the mean is {distance:.0f} standard deviations from the running mean, and at least as many from "
            "0, so the variance has lost digits. Use collective='all_gather' (or use_fast_variance=False) for the "
            "first steps, or bring the input nearer to zero",
            ConditioningWarning,
            stacklevel=2,
        )


class NegativeScaleWarning(UserWarning):
    """A layer that keeps its output applies |scale|, and was given a negative scale."""


def warn_of_negative_scale(scale: jax.Array) -> None:
    """Warns of negative scales in a layer that keeps its output; under `jit` their values are not known."""
    if isinstance(scale, Tracer):
        return
    number = int(np.sum(np.asarray(scale) < 0))
    if number:
        warnings.warn(
            f"save_for_backward='output' applies |scale| + 1e-5, and {number} of {np.size(scale)} scales are negative: "
            "the result is not that of the layer with save_for_backward='input'. Unless the model was trained with "
            "'output', evaluate and train it with 'input'",
            NegativeScaleWarning,
            stacklevel=2,
        )
