"""The statistics that normalise a batch, pooled with one collective, and their derivative."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from batchnorm_jax._arrays import (
    count_mask,
    from_real_parts,
    inner_product,
    positions,
    real_dtype,
    real_parts,
    row_of_greatest,
    squared_modulus,
    statistics_dtype,
    sum_positions,
    zeros_from,
)
from batchnorm_jax._collectives import fused_gather, fused_sum, pool_size, vary_like
from batchnorm_jax._options import NormOptions
from batchnorm_jax._platforms import apart
from batchnorm_jax._reductions import sums_about, sums_about_guess_and_zero
from batchnorm_jax.typing import Collective


class Statistics(NamedTuple):
    """Pooled mean, variance and count. The mean is reference + offset.

    The mean is kept in two parts because one float32 cannot hold it: at 1e5 deviations from zero its last digit is
    a hundredth of a deviation, while (x - reference) - offset is right to the last digit of x.

    Attributes:
      reference: shape (*features), near the mean, a constant for derivatives.
      offset: shape (*features), the mean's distance from the reference.
      var: shape (*features), biased, real.
      count: as in `Moments`.
    """

    reference: jax.Array
    offset: jax.Array
    var: jax.Array
    count: jax.Array


def by_sums(x: jax.Array, mask: jax.Array | None, shift: jax.Array | None, options: NormOptions) -> Statistics:
    """Pools sums about the shift and about 0 in one psum, and takes for each feature those that keep more digits.

    The sums about K are sum m (x - K) and sum m |x - K|^2; where a mask decides the count, sum m comes with them. The
    variance loses a factor of 1 + |mean - K|^2 / var of its accuracy, so the K that is nearer to the mean is the
    better one. The shift is a guess, such as a running mean: it may belong to other data, or be infinite or NaN. The
    sums about 0 give the result that there would be without a guess. Looking first whether the guess is good would
    take a second collective.

    Args:
      x: the input.
      mask: None, or booleans of the rank of `x`.
      shift: shape (*features), or None for 0.
      options: resolved, with the feature axes and the devices whose positions are pooled.
    """
    features, pool = options.features, options.pool
    dtype, real = statistics_dtype(x.dtype), real_dtype(x.dtype)
    guess = None if shift is None else _usable(shift.astype(dtype), x, features)
    own = _count(x, mask, features)
    if guess is None:
        parts = sums_about(x, mask, None, features)
    else:
        x = vary_like(x, guess)
        local = pool.axis_name is not None
        parts = sums_about_guess_and_zero(x, mask, guess, own, features, local=local)
    if mask is not None:
        parts.append(own)
    sums = fused_sum(parts, pool)
    number = jnp.asarray(_pooled_count(x, options), real) if mask is None else sums.pop()
    per_position = 1 / jnp.maximum(number, 1)
    means = [total * per_position for total in sums]
    about_zero = means if guess is None else means[len(means) // 2 :]
    *mean, square = about_zero
    offset = from_real_parts(mean)
    # Where 0 was the better one, the reference is the mean itself: every use of x - 0 would be rounded as x is.
    reference, offset, square_of_mean = offset, zeros_from(offset == 0, offset.dtype), squared_modulus(offset)
    if guess is not None:
        *mean, square_about_guess = means[: len(means) // 2]
        offset_from_guess = from_real_parts(mean)
        near = squared_modulus(offset_from_guess) <= square_of_mean
        reference = jnp.where(near, guess, reference)
        offset = jnp.where(near, offset_from_guess, offset)
        square = jnp.where(near, square_about_guess, square)
        square_of_mean = jnp.where(near, squared_modulus(offset_from_guess), square_of_mean)
    var = jnp.maximum(0, square - square_of_mean)
    if mask is not None:
        var = jnp.where(number > 0, var, 1)
    return Statistics(reference, offset, var, number)


def _count(x: jax.Array, mask: jax.Array | None, features: tuple[int, ...]) -> jax.Array:
    """Returns the number of this device's positions that count, in the shape of `Moments.count`."""
    if mask is None:
        return jnp.asarray(positions(x.shape, features), real_dtype(x.dtype))
    return count_mask(mask, x.shape, features, real_dtype(x.dtype))


def _pooled_count(x: jax.Array, options: NormOptions) -> int:
    """Returns the number of positions of the whole pool where there is no mask."""
    return pool_size(options.pool) * positions(x.shape, options.features)


def _usable(guess: jax.Array, x: jax.Array, features: tuple[int, ...]) -> jax.Array:
    """Returns the guess, and 0 where the guess, or the sum of its squares, is not finite."""
    return jnp.where(jnp.isfinite(squared_modulus(guess) * positions(x.shape, features)), guess, 0)


def by_moments(x: jax.Array, mask: jax.Array | None, shift: jax.Array | None, options: NormOptions) -> Statistics:
    """Pools each device's moments about its own mean, with one all_gather of them and Chan's rule.

    It takes a second pass over `x`, and a gather that grows with the number of devices.

    Args:
      x: the input.
      mask: None, or booleans of the rank of `x`.
      shift: shape (*features), or None for 0: the mean where no position counts.
      options: resolved, with the feature axes and the devices whose positions are pooled.
    """
    features = options.features
    dtype, real = statistics_dtype(x.dtype), real_dtype(x.dtype)
    own = _count(x, mask, features)
    per_position = 1 / jnp.maximum(own, 1)
    counted = x.astype(dtype) if mask is None else jnp.where(mask, x.astype(dtype), 0)
    center = sum_positions(counted, features) * per_position
    *rest, square = sums_about(apart(x), mask, apart(center), features)
    rest = from_real_parts([part * per_position for part in rest])
    square = square - own * squared_modulus(rest)
    parts = [*real_parts(center), *real_parts(rest), square]
    rows = fused_gather(parts if mask is None else [*parts, own], options.pool)
    counts = jnp.full(rows[0].shape[:1], own) if mask is None else rows.pop()
    *means, squares = rows
    centers, rests = (from_real_parts(half) for half in (means[: len(means) // 2], means[len(means) // 2 :]))

    # Chan's rule, about the mean of a device that has the most positions: some devices may have none.
    number = jnp.sum(counts, axis=0) if mask is not None else jnp.asarray(_pooled_count(x, options), real)
    weights = (
        counts.reshape(counts.shape + (1,) * (squares.ndim - counts.ndim))
        / jnp.broadcast_to(jnp.maximum(number, 1), squares.shape[1:])[None]
    )
    weights = jnp.broadcast_to(weights, squares.shape)
    reference = row_of_greatest(centers, weights)
    offsets = centers - reference[None] + rests
    offset = jnp.sum(weights * offsets, axis=0)
    var = jnp.sum(squares, axis=0) / jnp.maximum(number, 1)
    var = jnp.maximum(0, var + jnp.sum(weights * squared_modulus(offsets - offset[None]), axis=0))
    if mask is not None:
        nowhere = jnp.zeros_like(reference) if shift is None else _usable(shift.astype(dtype), x, features)
        reference = jnp.where(number > 0, reference, nowhere)
        var = jnp.where(number > 0, var, 1)
    return Statistics(reference, offset, var, number)


class Pooling(NamedTuple):
    """One way to pool the statistics of devices.

    Attributes:
      statistics: the function of x, mask, shift and options that pools them with one collective.
      is_exact: the variance keeps its digits however far the mean is from the shift and from 0.
    """

    statistics: Callable[..., Statistics]
    is_exact: bool


# The register of collectives: the keys are those of `typing.Collective`.
POOLINGS: dict[Collective, Pooling] = {
    "psum": Pooling(by_sums, is_exact=False),
    "all_gather": Pooling(by_moments, is_exact=True),
}
# The collective for statistics that are to stay, and for `use_fast_variance=False`.
EXACT: Collective = "all_gather"


# The derivative. With u = x - reference and sums over every device:
#
#     d mean = t0,   d var = 2 (t1 - <offset, t0>),   t0 = sum m dx / n,   t1 = sum m <u, dx> / n
#
# where <a, b> = Re(conj(a) b).
# The two sums are a device's own, in `tangent_sums`; a plain psum adds them up; `moved_by` turns them into tangents. No
# rule holds a collective: JAX runs a rule when it differentiates, which may be outside of the transform that binds the
# axis.
def moved_by(found: Statistics, sums: list[jax.Array]) -> Statistics:
    """Returns the statistics `found`, with the derivative of `sums`: pooled `tangent_sums`, whose value is zero."""
    offset, var = _moved_by(found.offset, found.var, found.count, sums)
    return found._replace(offset=offset, var=var)


@jax.custom_jvp
def _moved_by(offset, var, count, sums):
    del count, sums
    return offset, var


@_moved_by.defjvp
def _moved_by_jvp(primals, tangents):
    offset, var = _moved_by(*primals)
    per_position = 1 / jnp.maximum(primals[2], 1)
    *t0, t1 = (tangent * per_position for tangent in tangents[3])
    t0 = from_real_parts(t0)
    return (offset, var), (t0, 2 * (t1 - inner_product(offset, t0)))
