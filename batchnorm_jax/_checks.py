"""Checks single arguments: returns each in its usual form, or raises a ValueError that names the call."""

import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from batchnorm_jax.typing import Axes


def as_array(value: Any, name: str, *, caller: str, listed: bool = True) -> jax.Array:
    """Returns the argument as an array of numbers; `listed`: also a list or tuple of numbers, stacked.

    Raises:
      ValueError: it is not an array of numbers.
    """
    try:
        array = jnp.asarray(value) if listed or not isinstance(value, tuple | list) else None
    except (TypeError, ValueError, OverflowError):
        array = None
    if array is None or not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise ValueError(f"{caller}: {name} must be an array of numbers, not {described(value)}")
    return array


def described(value: Any) -> str:
    """Returns the type of a value, with its dtype if it has one, for a message."""
    dtype = getattr(value, "dtype", None)
    return f"{type(value).__name__}" + (f" of dtype {dtype}" if dtype is not None else "")


def is_number(value: Any) -> bool:
    """Returns whether an option is one real number, which may be known only when the program runs."""
    if isinstance(value, Tracer):
        return True
    if isinstance(value, bool) or not isinstance(value, int | float | np.number | np.ndarray | jax.Array):
        return False
    try:
        dtype = jnp.result_type(value)
    except TypeError:  # An array of strings or objects.
        return False
    real = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
    return np.shape(value) == () and real


def feature_axes(axis: Axes, ndim: int, *, caller: str) -> tuple[int, ...]:
    """Returns the feature axes, non-negative and ascending; the statistics have these axes in this order."""
    try:
        given = tuple(axis) if isinstance(axis, Iterable) else (axis,)
        if any(isinstance(a, bool) for a in given):
            raise TypeError
        given = tuple(operator.index(a) for a in given)
    except TypeError:
        raise ValueError(f"{caller}: axis must be an integer or several, not {axis!r}") from None
    if ndim == 0:
        raise ValueError(f"{caller}: the input is a single number; it must have at least a feature axis")
    for a in given:
        if not -ndim <= a < ndim:
            raise ValueError(
                f"{caller}: feature axis {a} is out of range for an input of rank {ndim}; "
                f"give one of {-ndim} to {ndim - 1}"
            )
    features = tuple(sorted({a % ndim for a in given}))
    if len(features) < len(given):
        raise ValueError(f"{caller}: axis={axis!r} names an axis of an input of rank {ndim} twice")
    return features


def check_input(x: jax.Array, axis: Axes, *, caller: str, may_be_empty: bool = False) -> tuple[int, ...]:
    """Returns the feature axes of an input that can be normalised.

    Args:
      x: the input.
      axis: the feature axis or axes, as given.
      caller: the public call, for the message.
      may_be_empty: accept an input without examples, which known statistics can normalise.
    """
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise ValueError(
            f"{caller}: the input must have a floating point or complex dtype, not {x.dtype}; "
            "convert it, for example with x.astype(jnp.float32)"
        )
    features = feature_axes(axis, x.ndim, caller=caller)
    if 0 in (x.shape[i] for i in features):
        raise ValueError(f"{caller}: the input of shape {x.shape} has no features on axis {axis}")
    if x.size == 0 and not may_be_empty:
        raise ValueError(
            f"{caller}: the input of shape {x.shape} has no positions to take statistics of; give at least one example"
        )
    return features


def check_mask(mask: jax.Array, shape: tuple[int, ...], *, caller: str) -> jax.Array:
    """Returns the mask as booleans of the input's rank, each axis of size 1 or of the input's size."""
    mask = as_array(mask, "mask", caller=caller)
    if mask.ndim <= len(shape):
        full = (1,) * (len(shape) - mask.ndim) + mask.shape
        if all(m in (1, s) for m, s in zip(full, shape, strict=True)):
            return mask.reshape(full).astype(bool)
    raise ValueError(
        f"{caller}: the mask has shape {mask.shape}, which does not broadcast to the input's {shape}. For one flag an "
        f"example give it shape {(shape[0],) + (1,) * (len(shape) - 1)}"
    )


def check_residual(residual: jax.Array | None, x: jax.Array, *, caller: str) -> None:
    """Checks that the residual, if there is one, has the input's shape."""
    if residual is not None and jnp.shape(residual) != x.shape:
        raise ValueError(
            f"{caller}: residual has shape {jnp.shape(residual)} and the input {x.shape}; they must be the same"
        )


def check_real(scale: jax.Array | None, bias: jax.Array | None, x: jax.Array, *, caller: str) -> None:
    """Checks that the scale is real, and that the bias is real for a real input."""
    for name, value, allowed in (("scale", scale, False), ("bias", bias, jnp.iscomplexobj(x))):
        if value is not None and jnp.iscomplexobj(value) and not allowed:
            raise ValueError(f"{caller}: {name} is {value.dtype} for an input of {x.dtype}; give it a real dtype")


def check_epsilon(epsilon: Any, *, caller: str) -> None:
    """Checks that epsilon is a number of at least 0; the value of a traced one is not known yet."""
    if isinstance(epsilon, Tracer):
        return
    if not is_number(epsilon) or not epsilon >= 0:
        raise ValueError(f"{caller}: epsilon={epsilon!r} must be a number of at least 0; the usual one is 1e-5")


def check_activation(activation: Any, *, caller: str) -> None:
    """Checks that the activation is a function or None."""
    if activation is not None and not callable(activation):
        raise ValueError(f"{caller}: activation={activation!r} is not a function; give one, for example jax.nn.relu")


def check_dtype(dtype: Any, name: str = "dtype", *, caller: str) -> None:
    """Checks that a dtype, unless it is None, is one of floating point or complex numbers."""
    if dtype is None:
        return
    try:
        # An array has a dtype but is not one.
        known = not isinstance(dtype, jax.Array | np.ndarray) and jnp.issubdtype(jnp.dtype(dtype), jnp.inexact)
    except (TypeError, ValueError):
        known = False
    if not known:
        raise ValueError(
            f"{caller}: {name}={dtype!r} must be a floating point or complex dtype, for example jnp.float32"
        )


def check_choice(value: Any, name: str, known: Iterable[str], *, caller: str) -> None:
    """Checks that a named option is one of the known names."""
    known = list(known)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{caller}: {name}={value!r} is not known; give one of {', '.join(map(repr, known))}")


def as_flag(value: Any, name: str, *, caller: str) -> bool:
    """Returns a flag as a bool.

    Raises:
      ValueError: it is neither true nor false, such as a string, or it is known only when the program runs.
    """
    if isinstance(value, Tracer):
        raise ValueError(
            f"{caller}: {name} decides which program is traced, and must be known then; mark it as static, as in "
            "jax.jit(step, static_argnames='train')"
        )
    single = isinstance(value, np.ndarray | jax.Array) and np.shape(value) == () and value.dtype == bool
    if single or isinstance(value, bool | np.bool_) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise ValueError(f"{caller}: {name}={value!r} must be True or False")
