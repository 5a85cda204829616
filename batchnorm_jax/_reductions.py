"""Sums over a device's own positions and their derivative, in the form that each platform compiles best."""

import enum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from batchnorm_jax._moments import expand, squared_modulus, statistics_dtype


class Reader(enum.IntEnum):
    """The parts of a norm's program that read x, each in a pass of its own on a CPU."""

    FIRST_SUM = 1
    SECOND_SUM = 2
    TANGENT_SUMS = 3
    AFFINE_TANGENT = 4
    ACTIVATION_TANGENT = 5


def apart(value: Any, times: int = 1) -> Any:
    """Returns the same arrays, which XLA's CPU compiler does not see to be the same; None stays None.

    Where several sums and results are made of x - K, that compiler would make one array of it, of the size of x, write
    it and read it again. The other compilers fuse them into one pass over x, and must see that they share it. So it is
    decided when the program is lowered, for the platform that it is lowered for: the default backend may be another.

    Args:
      value: arrays and Nones.
      times: how often; two readers that are to be seen as different need different numbers, those of `Reader`.
    """

    def one(array):
        return lax.platform_dependent(array, cpu=lax.optimization_barrier, default=lambda a: a)

    for _ in range(times):
        # One by one: a barrier around several would count all of them as varying where one of them does.
        value = jax.tree.map(one, value)
    return value


def sum_positions(values: jax.Array, features: tuple[int, ...]) -> jax.Array:
    """Returns the sum over every axis that is not a feature."""
    return jnp.sum(values, axis=tuple(i for i in range(values.ndim) if i not in features))


def zeros_from(condition: jax.Array, dtype: Any) -> jax.Array:
    """Returns zeros whatever the condition, which XLA leaves out.

    But they are sharded as the condition, and mapped by vmap and varying where it is: JAX wants that of a value whose
    tangent is.
    """
    zero = jnp.zeros((), dtype)
    return jnp.where(condition, zero, zero)


def real_parts(value: jax.Array) -> list[jax.Array]:
    """Splits a complex array into its real and imaginary parts, for a collective of real numbers."""
    return [value.real, value.imag] if jnp.iscomplexobj(value) else [value]


def from_real_parts(parts: list[jax.Array]) -> jax.Array:
    """Joins what `real_parts` split."""
    return lax.complex(*parts) if len(parts) == 2 else parts[0]


def inner_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns Re(conj(a) b), the real inner product of complex numbers, number by number."""
    return a.real * b.real + a.imag * b.imag if jnp.iscomplexobj(b) else a * b


def sums_about(
    x: jax.Array, mask: jax.Array | None, reference: jax.Array | None, features: tuple[int, ...]
) -> list[jax.Array]:
    """Returns sum m (x - K), as `real_parts`, and sum m |x - K|^2, of shape (*features) and real.

    Args:
      x: the input.
      mask: None, or booleans of the rank of `x`.
      reference: K, of shape (*features), or None for 0.
      features: the feature axes.
    """
    dtype = statistics_dtype(x.dtype)

    def deviation(x, reference):
        d = x.astype(dtype)
        if reference is not None:
            d = d - expand(reference, features, x.ndim)
        # A select, not a product: a position that does not count may hold a NaN.
        return d if mask is None else jnp.where(mask, d, 0)

    first = sum_positions(deviation(*apart((x, reference), Reader.FIRST_SUM)), features)
    second = sum_positions(squared_modulus(deviation(*apart((x, reference), Reader.SECOND_SUM))), features)
    # XLA's CPU compiler would fuse the sums into the vector that is sent, and do them one element at a time.
    return apart([*real_parts(first), second])


def sums_about_guess_and_zero(
    x: jax.Array,
    mask: jax.Array | None,
    guess: jax.Array,
    count: jax.Array | int,
    features: tuple[int, ...],
    *,
    local: bool,
) -> list[jax.Array]:
    """Returns `sums_about` a guess of the mean, then those about 0.

    GPUs and TPUs make all of them in one pass over `x`, and are waiting for memory: the second two cost nothing. On a
    CPU each sum is a pass of its own. There the sums about 0 are made from those about the guess while it is good for
    every feature, that is nearer to this device's mean than 0 is: then they lose no more than a few roundings, since
    no term is larger than a few times the result. Where it is not, they are summed.

    Args:
      x: the input.
      mask: None, or booleans of the rank of `x`.
      guess: shape (*features), finite.
      count: how many positions count here.
      features: the feature axes.
      local: `x` is known to be on one device: to look at its mean takes no collective.
    """

    def summed(x, mask, guess, count):
        del count
        return [*sums_about(x, mask, guess, features), *sums_about(x, mask, None, features)]

    def summed_if_bad(x, mask, guess, count):
        *first, second = sums_about(x, mask, guess, features)
        total = from_real_parts(first)
        total_about_zero = total + count * guess
        good = squared_modulus(total) <= squared_modulus(total_about_zero)
        second_about_zero = second + 2 * inner_product(guess, total) + count * squared_modulus(guess)
        about_zero = lax.cond(
            jnp.all(good),
            lambda *_: [*real_parts(total_about_zero), second_about_zero],
            lambda x, mask: sums_about(x, mask, None, features),
            x,
            mask,
        )
        return [*first, second, *about_zero]

    on_cpu = summed_if_bad if local or _one_cpu_device() else summed
    return lax.platform_dependent(x, mask, guess, count, cpu=on_cpu, default=summed)


def _one_cpu_device() -> bool:
    """Whether an array in a program for CPUs cannot be cut over several of them."""
    try:
        return jax.device_count("cpu") == 1
    except RuntimeError:  # JAX was told to do without CPUs.
        return False


class Kept(NamedTuple):
    """The array that the backward pass keeps, and the vectors that turn it into u = x - reference.

    Attributes:
      array: x, or the result y.
      vectors: for x the reference; for y the gain and the constant, y = activation(gain u + constant).
    """

    array: jax.Array
    vectors: tuple[jax.Array, ...]


def deviation(undo, kept: Kept, mask, features: tuple[int, ...]) -> jax.Array:
    """Returns u = x - reference, in at least float32.

    Args:
      undo: None where x is kept; where y is, the inverse of the activation.
      kept: what is kept.
      mask: where it is False, u is finite: what does not count may be a NaN, which even a zero cotangent would hand on.
      features: the feature axes.
    """
    array = kept.array.astype(statistics_dtype(kept.array.dtype))
    first, *second = (expand(vector, features, array.ndim) for vector in kept.vectors)
    u = array - first if undo is None else (undo(array) - second[0]) / first
    return u if mask is None else jnp.where(mask | jnp.isfinite(u), u, 0)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def tangent_sums(features: tuple[int, ...], undo, x: jax.Array, kept: Kept, mask) -> list[jax.Array]:
    """Returns zeros, whose derivative is that of a device's sums: sum m dx, as `real_parts`, and sum m <u, dx>.

    Args:
      features: the feature axes.
      undo: as in `deviation`.
      x: the input, in the dtype of the statistics. Only its tangent is used, so it is not kept.
      kept: what is kept in its place.
      mask: None, or booleans of the rank of `x`.
    """
    del undo
    counted = x if mask is None else jnp.where(mask, x, 0)
    zeros = zeros_from(sum_positions(counted, features) == sum(kept.vectors), x.dtype)
    return [*real_parts(zeros), zeros.real]


@tangent_sums.defjvp
def _tangent_sums_jvp(features, undo, primals, tangents):
    _, kept, mask = primals
    linear = jax.checkpoint(partial(_sums_of_tangent, features, undo), prevent_cse=False)
    return tangent_sums(features, undo, *primals), linear(kept, mask, tangents[0])


# As a checkpoint it is linear in `dx` with no more kept than its arguments: x in its own dtype in place of u.
def _sums_of_tangent(features, undo, kept: Kept, mask, dx):
    u = deviation(undo, apart(kept, Reader.TANGENT_SUMS), mask, features)
    counted = dx if mask is None else jnp.where(mask, dx, 0)
    return apart([*real_parts(sum_positions(counted, features)), sum_positions(inner_product(u, counted), features)])
