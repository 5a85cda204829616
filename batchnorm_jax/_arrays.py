"""Arithmetic that every part of the norm shares: dtypes, shapes of statistics, and complex numbers as real ones."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike


def promoted(*given: ArrayLike | DTypeLike) -> jnp.dtype:
    """Returns the dtype that arrays or dtypes promote to, by JAX's standard rules.

    Use it for decisions of the norm itself, such as taking sums in float32. Under `jax_numpy_dtype_promotion="strict"`
    JAX refuses an implicit promotion, because the user is to state the dtype; the dtype of a result is the user's to
    state, so ask `jnp.result_type` for that one.
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*given)


def statistics_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Returns the dtype of sums and means: the input's, but at least float32."""
    return promoted(dtype, jnp.float32)


def real_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Returns the dtype of variances: the real part of `statistics_dtype`."""
    return jnp.finfo(statistics_dtype(dtype)).dtype


def widened(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Casts `x` where needed, so that a result of `dtype` is right to its last digit."""
    wide = promoted(statistics_dtype(x.dtype), dtype)
    return x if wide == statistics_dtype(x.dtype) else x.astype(wide)


def expand(statistic: jax.Array, features: tuple[int, ...], ndim: int) -> jax.Array:
    """Reshapes a statistic of shape (*features) to rank `ndim`, so that nothing relies on rank promotion."""
    return jnp.expand_dims(statistic, tuple(i for i in range(ndim) if i not in features))


def sum_positions(values: jax.Array, features: tuple[int, ...]) -> jax.Array:
    """Sums over every axis that is not a feature axis."""
    return jnp.sum(values, axis=tuple(i for i in range(values.ndim) if i not in features))


def positions(shape: tuple[int, ...], features: tuple[int, ...]) -> int:
    """Returns the number of positions per feature of one device's input."""
    return math.prod(s for i, s in enumerate(shape) if i not in features)


def count_mask(mask: jax.Array, shape: tuple[int, ...], features: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Returns the number of positions that count: shape (), or (*features) if the mask differs per feature."""
    reduced = tuple(i for i in range(len(shape)) if i not in features)
    # A mask axis of size 1 stands for the whole axis of the input.
    repeats = math.prod(shape[i] for i in reduced if mask.shape[i] == 1)
    count = repeats * jnp.sum(mask, axis=reduced, dtype=dtype)
    return count.reshape(()) if count.size == 1 else jnp.broadcast_to(count, tuple(shape[i] for i in features))


def row_of_greatest(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns for each feature the row, along axis 0, that has the first greatest weight."""
    chosen = jnp.argmax(weights, axis=0)[None]
    number = lax.broadcasted_iota(chosen.dtype, rows.shape, 0)
    # A select and a sum: JAX refuses a gather along a feature axis that is sharded.
    return jnp.sum(jnp.where(number == chosen, rows, 0), axis=0)


def zeros_from(condition: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Returns zeros, whatever the condition, which XLA removes.

    The zeros are sharded as the condition is, mapped by vmap where it is, and varying over the same manual axes: JAX
    requires that of a value whose tangent is.
    """
    zero = jnp.zeros((), dtype)
    return jnp.where(condition, zero, zero)


def squared_modulus(x: jax.Array) -> jax.Array:
    """Returns |x|^2, real."""
    return lax.square(x.real) + lax.square(x.imag) if jnp.iscomplexobj(x) else lax.square(x)


def inner_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns Re(conj(a) b), the real inner product of complex numbers, element by element."""
    return a.real * b.real + a.imag * b.imag if jnp.iscomplexobj(b) else a * b


def real_parts(value: jax.Array) -> list[jax.Array]:
    """Splits a complex array into its real and imaginary parts, for a collective of real numbers."""
    return [value.real, value.imag] if jnp.iscomplexobj(value) else [value]


def from_real_parts(parts: list[jax.Array]) -> jax.Array:
    """Joins the parts that `real_parts` split."""
    return lax.complex(*parts) if len(parts) == 2 else parts[0]
