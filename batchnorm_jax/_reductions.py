"""Sums over a device's own positions and their derivatives: one declared implementation per platform, no collective.

The register is `OPERATIONS`. A kernel for one platform is one more function in it, with the arguments and results of
the others; neither the derivative rules in `_core` nor the collectives change.

    sums_about                  sum m (x - K) and sum m |x - K|^2
    sums_about_guess_and_zero   the same sums about two K at once
    tangent_sums                their derivative, linear in dx: sum m dx and sum m <u, dx>
    affine_tangent              the derivative of y, linear in dx, dgain and dconstant; its transpose holds the two sums
                                of the backward pass, sum v and sum u v
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from batchnorm_jax._arrays import (
    expand,
    from_real_parts,
    inner_product,
    real_parts,
    squared_modulus,
    statistics_dtype,
    sum_positions,
    zeros_from,
)
from batchnorm_jax._platforms import Operation, Reader, apart
from batchnorm_jax.typing import Activation


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
    return OPERATIONS["sums_about"](x, mask, reference, features=features)


def _sums_about(x, mask, reference, *, features: tuple[int, ...]) -> list[jax.Array]:
    dtype = statistics_dtype(x.dtype)

    def deviation(x, reference):
        d = x.astype(dtype)
        if reference is not None:
            d = d - expand(reference, features, x.ndim)
        # A select, not a product: a position that does not count may hold a NaN.
        return d if mask is None else jnp.where(mask, d, 0)

    first = sum_positions(deviation(*apart((x, reference), Reader.FIRST_SUM)), features)
    second = sum_positions(squared_modulus(deviation(*apart((x, reference), Reader.SECOND_SUM))), features)
    # XLA's CPU compiler would fuse the sums into the vector that is sent, and compute them one element at a time.
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

    Args:
      x: the input.
      mask: None, or booleans of the rank of `x`.
      guess: shape (*features), finite.
      count: the number of positions that count on this device.
      features: the feature axes.
      local: `x` is known to be on one device, so looking at its mean takes no collective.
    """
    return OPERATIONS["sums_about_guess_and_zero"](x, mask, guess, count, features=features, local=local)


def _both_sums(x, mask, guess, count, *, features: tuple[int, ...], local: bool) -> list[jax.Array]:
    """Computes all sums. GPUs and TPUs do so in one pass over `x`, and wait for memory: the second two cost nothing."""
    del count, local
    return [*sums_about(x, mask, guess, features), *sums_about(x, mask, None, features)]


def _both_sums_on_cpu(x, mask, guess, count, *, features: tuple[int, ...], local: bool) -> list[jax.Array]:
    """Computes the sums about the guess, and those about 0 from them where that loses nothing.

    On a CPU each sum is a pass of its own. The guess is good for a feature where it is nearer to this device's mean
    than 0 is: then no term is larger than a few times the result, and the sums about 0 that are made from those about
    the guess lose no more than a few roundings. Where the guess is bad for some feature, the sums about 0 are computed.
    """
    if not (local or _one_cpu_device()):
        return _both_sums(x, mask, guess, count, features=features, local=local)
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


def _one_cpu_device() -> bool:
    """Returns whether an array in a program for CPUs cannot be sharded over several of them."""
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


def deviation(undo: Activation | None, kept: Kept, mask: jax.Array | None, features: tuple[int, ...]) -> jax.Array:
    """Returns u = x - reference, in at least float32.

    Args:
      undo: None where x is kept; where y is kept, the inverse of the activation.
      kept: the array that is kept, with its vectors.
      mask: where it is False, u is made finite: a position that does not count may hold a NaN, which even a zero
        cotangent would pass on.
      features: the feature axes.
    """
    array = kept.array.astype(statistics_dtype(kept.array.dtype))
    first, *second = (expand(vector, features, array.ndim) for vector in kept.vectors)
    u = array - first if undo is None else (undo(array) - second[0]) / first
    return u if mask is None else jnp.where(mask | jnp.isfinite(u), u, 0)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def tangent_sums(
    features: tuple[int, ...], undo: Activation | None, x: jax.Array, kept: Kept, mask: jax.Array | None
) -> list[jax.Array]:
    """Returns zeros whose derivative is that of a device's sums: sum m dx, as `real_parts`, and sum m <u, dx>.

    Args:
      features: the feature axes.
      undo: as in `deviation`.
      x: the input, in the dtype of the statistics. Only its tangent is used, so it is not kept.
      kept: the array that is kept in its place.
      mask: None, or booleans of the rank of `x`.
    """
    del undo
    counted = x if mask is None else jnp.where(mask, x, 0)
    zeros = zeros_from(sum_positions(counted, features) == sum(kept.vectors), x.dtype)
    return [*real_parts(zeros), zeros.real]


@tangent_sums.defjvp
def _tangent_sums_jvp(features, undo, primals, tangents):
    _, kept, mask = primals
    operation = partial(OPERATIONS["tangent_sums"], features=features, undo=undo)
    # Under a checkpoint it is linear in dx and keeps only its arguments: x in its own dtype in place of u.
    linear = jax.checkpoint(operation, prevent_cse=False)
    return tangent_sums(features, undo, *primals), linear(kept, mask, tangents[0])


def _tangent_sums(kept: Kept, mask, dx, *, features: tuple[int, ...], undo: Activation | None) -> list[jax.Array]:
    u = deviation(undo, apart(kept, Reader.TANGENT_SUMS), mask, features)
    counted = dx if mask is None else jnp.where(mask, dx, 0)
    return apart([*real_parts(sum_positions(counted, features)), sum_positions(inner_product(u, counted), features)])


def affine_tangent(
    u: jax.Array,
    gain: jax.Array,
    dx: jax.Array,
    dgain: jax.Array,
    dconstant: jax.Array,
    features: tuple[int, ...],
) -> jax.Array:
    """Returns gain dx + u dgain + dconstant, which JAX transposes to gain v, sum u v and sum v.

    Args:
      u: x - reference.
      gain: shape (*features).
      dx: the tangent of x.
      dgain: the tangent of the gain.
      dconstant: the tangent of the constant.
      features: the feature axes.
    """
    return OPERATIONS["affine_tangent"](u, gain, dx, dgain, dconstant, features=features)


def _affine_tangent(u, gain, dx, dgain, dconstant, *, features: tuple[int, ...]) -> jax.Array:
    wide = partial(expand, features=features, ndim=dx.ndim)
    return wide(gain) * dx + u * wide(dgain) + wide(dconstant)


OPERATIONS: dict[str, Operation] = {
    "sums_about": Operation(_sums_about),
    "sums_about_guess_and_zero": Operation(_both_sums, cpu=_both_sums_on_cpu),
    "tangent_sums": Operation(_tangent_sums),
    "affine_tangent": Operation(_affine_tangent),
}
