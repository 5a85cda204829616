"""Names and calls that differ between versions of JAX.

No other module of the library tests for a version. Each test says which version has the newer spelling, so that the
older one can be deleted once `pyproject.toml` asks for that version.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import jax
from jax import core, lax
from jax.extend import core as extended_core

# JAX 0.10.0 gave these axes a type, and `lax.all_gather` the result that is known to be the same everywhere.
_HAS_AXIS_TYPE = hasattr(jax.typeof(0.0), "manual_axis_type")


def varying_axes(value: jax.Array | jax.ShapeDtypeStruct) -> frozenset[Hashable]:
    """Returns the manual axes that a value, or a result of `jax.eval_shape`, varies over."""
    kind: Any = value if isinstance(value, jax.ShapeDtypeStruct) else jax.typeof(value)
    if _HAS_AXIS_TYPE:
        kind = kind.manual_axis_type
    # The result of `jax.eval_shape` has none where no axes are checked.
    return frozenset() if kind is None else (kind.varying if _HAS_AXIS_TYPE else kind.vma) or frozenset()


def gather_invariant(value: jax.Array, axis_name: Any) -> jax.Array:
    """Gathers over a checked axis; the result is known to be the same for every participant."""
    if _HAS_AXIS_TYPE:
        return lax.all_gather(value, axis_name, to="invarying")
    # Up to 0.9.2 it has no public name.
    from jax._src.lax.parallel import all_gather_invariant  # pyright: ignore

    return all_gather_invariant(value, axis_name)


def bound_axis_names() -> list[str]:
    """Returns the names of the axes that are bound here; none where JAX does not tell.

    They are for a message: JAX gives them in a function that is meant for nothing else.
    """
    name = "unsafe_get_axis_names_DO_NOT_USE"
    home = extended_core if hasattr(extended_core, name) else core  # JAX 0.10.0 moved it.
    return [bound for bound in getattr(home, name, list)() if isinstance(bound, str)]


def scan_operands(params: Mapping[str, Any]) -> tuple[int, int]:
    """Returns how many of a scan's first operands are constants, and how many after these it carries.

    Args:
      params: the parameters of its equation.
    """
    if "ft_in" in params:  # JAX 0.12; its release before, 0.10.2, counts them.
        consts, carry, _ = params["ft_in"].unpack()
        return len(consts), len(carry)
    return params["num_consts"], params["num_carry"]
