"""The warnings of the library, which are given where a result would otherwise differ from what was meant, unseen."""

import warnings
from functools import partial

import jax
import numpy as np
from jax.core import Tracer

# From this figure of `conditioning` on, expect a relative error of the variance of over 1e-2 in float32.
MIN_WARNED_CONDITIONING = 1e5
# A longer number of standard deviations would only fill the message.
MAX_REPORTED_DISTANCE = 1e9


class NormWarning(UserWarning):
    """The category of every warning of this library, to filter all of them at once.

    Example:
      >>> import warnings
      >>> from batchnorm_jax import NormWarning
      >>> warnings.simplefilter("error", NormWarning)
    """


class ConditioningWarning(NormWarning):
    """The mean is so far from the running mean, and from 0, that the variance has lost digits.

    Given by a module with `check_conditioning=True` when its program runs.
    """


class NegativeScaleWarning(NormWarning):
    """A layer with `save_for_backward="output"` applies |scale|, and was given a negative scale."""


class UnchangedNormWarning(NormWarning):
    """A norm, or a module that looks like one, stays as it is in a call that changes a whole model.

    Given by `synchronize`, `recalibrate` and `fold`; the message names the modules and the reasons.
    """


def warn_of_conditioning(figure: jax.Array, name: str) -> None:
    """Warns, when the program runs, if the figure that `conditioning` gave is too large; `name` is the layer's."""
    jax.debug.callback(partial(_warn_of_figure, name), figure)


def _warn_of_figure(name: str, figure: np.ndarray) -> None:
    if figure >= MIN_WARNED_CONDITIONING:
        distance = min(float(figure) ** 0.5, MAX_REPORTED_DISTANCE)
        warnings.warn(
            f"{name}: the mean is {distance:.0f} standard deviations from the running mean, and at least as many from "
            "0, so the variance has lost digits. Use collective='all_gather' (or use_fast_variance=False) for the "
            "first steps, or bring the input nearer to zero",
            ConditioningWarning,
            stacklevel=2,
        )


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


def warn_of_unchanged(message: str, *, stacklevel: int) -> None:
    """Warns of norms that stay as they are; `stacklevel` counts from the function that calls this one."""
    warnings.warn(message, UnchangedNormWarning, stacklevel=stacklevel + 1)
