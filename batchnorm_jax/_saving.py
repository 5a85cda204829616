"""The choices of `save_for_backward`: the array that is kept for the backward pass, and what each choice requires."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from batchnorm_jax._activations import inverse, recognised
from batchnorm_jax._warnings import warn_of_negative_scale
from batchnorm_jax.typing import SaveForBackward

# Added to |scale| where y is to be inverted, as InPlace-ABN does (arXiv 1712.02616, section 3).
SCALE_FLOOR = 1e-5


class Saving(NamedTuple):
    """One choice of `save_for_backward`.

    Attributes:
      keeps_output: keep y and compute the input from it, not the input itself.
      names_input: give the input the name that the policy `save_norm_inputs` keeps.
    """

    keeps_output: bool
    names_input: bool


SAVINGS: dict[SaveForBackward, Saving] = {
    "input": Saving(keeps_output=False, names_input=True),
    "output": Saving(keeps_output=True, names_input=True),
    "nothing": Saving(keeps_output=False, names_input=False),
}


def effective_scale(scale: jax.Array | None, save_for_backward: SaveForBackward) -> jax.Array | None:
    """Returns the scale that is applied: |scale| + 1e-5 where y is to be inverted. Warns of negative scales."""
    if scale is None or not SAVINGS[save_for_backward].keeps_output:
        return scale
    warn_of_negative_scale(scale)
    return jnp.abs(scale) + SCALE_FLOOR


def check_saving(save_for_backward: SaveForBackward, activation: Any, *, has_residual: bool, caller: str) -> None:
    """Checks that y can be inverted where it is what is kept."""
    if not SAVINGS[save_for_backward].keeps_output:
        return
    if inverse(recognised(activation)) is None:
        name = getattr(activation, "__name__", activation)
        raise ValueError(
            f"{caller}: save_for_backward='output' undoes the activation, which {name} does not allow; use none, "
            "jax.nn.leaky_relu or jax.nn.elu, or save_for_backward='input'"
        )
    if has_residual:
        raise ValueError(
            f"{caller}: save_for_backward='output' cannot tell the residual from the rest of y; add it outside, or use "
            "save_for_backward='input'"
        )


def check_scale(scale: Any, save_for_backward: SaveForBackward, *, caller: str) -> None:
    """Checks, where the values are known, that no scale is zero if the backward pass divides by it."""
    known = SAVINGS[save_for_backward].keeps_output and scale is not None and not isinstance(scale, Tracer)
    if known and np.any(np.asarray(scale) == 0):
        raise ValueError(
            f"{caller}: save_for_backward='output' divides by the scale, and some of it is zero; initialise it with "
            "other values, or use save_for_backward='input'"
        )
