"""A warning in place of a variance that lost its digits unseen."""

import warnings
from functools import partial

import jax

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
