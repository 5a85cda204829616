"""Names and calls that differ between versions of JAX and Flax.

No other module of the library tests for a version. Each test says which version has the newer spelling, so that the
older one can be deleted once `pyproject.toml` asks for that version.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import core, lax
from jax.extend import core as extended_core

# JAX 0.10.0 gave these axes a type, and `lax.all_gather` the result that is known to be the same everywhere.
_HAS_AXIS_TYPE = hasattr(jax.typeof(0.0), "manual_axis_type")


def varying_axes(value: jax.Array) -> frozenset[Hashable]:
    """Returns the manual axes that a value varies over."""
    kind: Any = jax.typeof(value)
    return kind.manual_axis_type.varying if _HAS_AXIS_TYPE else kind.vma


def vary_over(value: jax.Array, axes: tuple[Hashable, ...]) -> jax.Array:
    """Marks a value as varying over manual axes that it does not vary over yet."""
    if hasattr(lax, "pcast"):  # JAX 0.8.2.
        return lax.pcast(value, axes, to="varying")
    return lax.pvary(value, axes)  # pyright: ignore[reportAttributeAccessIssue]


def zeros_of(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns zeros of a result of `jax.eval_shape`, which vary over the same manual axes."""
    kind: Any = shape.manual_axis_type if _HAS_AXIS_TYPE else shape
    axes = () if kind is None else (kind.varying if _HAS_AXIS_TYPE else kind.vma) or ()
    zeros = jnp.zeros(shape.shape, shape.dtype)
    return vary_over(zeros, tuple(axes)) if axes else zeros


def gather_invariant(value: jax.Array, axis_name: Any) -> jax.Array:
    """Gathers over a checked axis; the result is known to be the same for every participant."""
    if _HAS_AXIS_TYPE:
        return lax.all_gather(value, axis_name, to="invarying")
    # Up to 0.8.1 it is in `lax` too; 0.8.2 to 0.9.2 have it here alone.
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


def variable_value(variable: Any) -> Any:
    """Returns the value of a variable of `flax.nnx`."""
    # Looked up in the class: the variable itself forwards unknown names to its value.
    return variable.get_value() if hasattr(type(variable), "get_value") else variable.value  # Flax 0.12.1.


def set_variable(variable: Any, value: Any) -> None:
    """Sets the value of a variable of `flax.nnx`."""
    if hasattr(type(variable), "set_value"):  # Flax 0.12.1.
        variable.set_value(value)
    else:
        variable.value = value


def promotion_of(norm: Any, default: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the `promote_dtype` of a norm of `flax.nnx`, or the default where norms have no such option."""
    return getattr(norm, "promote_dtype", default)  # Flax 0.12.1.
