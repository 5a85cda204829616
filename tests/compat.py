"""Names and calls of the tests that differ between versions of JAX and Flax; the library has its own `_compat`."""

from typing import Any

import jax
import pytest
from flax import nnx

# JAX 0.10.1. Before it, the error has no public name.
TypePromotionError: Any = getattr(jax.dtypes, "TypePromotionError", ValueError)


def _view(model: nnx.Module, **modes: Any) -> nnx.Module:
    copy = nnx.clone(model)
    copy.set_attributes(**modes)
    return copy


# Flax 0.12.4. Before it there are no views: a test that needs no more than a model in another mode has a copy.
view: Any = getattr(nnx, "view", _view)


def needs(what: str, since: str, *, there: bool):
    """Returns a mark that skips a test of something that only newer versions have.

    Args:
      what: the thing that the test needs.
      since: the first version that has it, such as "Flax 0.12.4".
      there: whether this version has it.
    """
    return pytest.mark.skipif(not there, reason=f"{what} came with {since}")
