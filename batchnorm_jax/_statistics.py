"""The statistics that a batch is normalised by, pooled with one collective: of sums, or of moments."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from batchnorm_jax._collectives import Pool, fused_gather, fused_sum
from batchnorm_jax._moments import (
    apart,
    count_mask,
    expand,
    positions,
    real_dtype,
    row_of_greatest,
    squared_modulus,
    statistics_dtype,
    sum_positions,
)


class Statistics(NamedTuple):
    """What the pooled positions have in common. Their mean is reference + offset.

    The mean is kept in two parts since one float32 cannot hold it: at 1e5 deviations from zero its last digit is
    a hundredth of a deviation, and (x - reference) - offset is right to the last digit of x.

    Attributes:
      reference: shape (*features), near the mean, a constant for derivatives.
      offset: shape (*features), the mean's distance from there.
      var: shape (*features), biased, real.
      count: as in `Moments`.
    """

    reference: jax.Array
    offset: jax.Array
    var: jax.Array
    count: jax.Array


def by_sums(x, mask, shift, *, features: tuple[int, ...], count: int | None, pool: Pool) -> Statistics:
    """One psum of sum m (x - K) and sum m |x - K|^2, and of sum m where a mask decides it.

    Args:
      x: the input.
      mask: None, or booleans of the rank of `x`.
      shift: K, of shape (*features), or None for 0.
      features: the feature axes.
      count: how many positions the pool has, if there is no mask.
      pool: who is pooled.
    """
    dtype, real = statistics_dtype(x.dtype), real_dtype(x.dtype)
    reference = None if shift is None else shift.astype(dtype)

    def deviation(x, reference):
        d = x.astype(dtype)
        if reference is not None:
            d = d - expand(reference, features, x.ndim)
        # A select, not a product: a position that does not count may hold a NaN.
        return d if mask is None else jnp.where(mask, d, 0)

    first = (apart(x), apart(reference))
    second = (apart(first[0]), apart(first[1]))
    sum1 = sum_positions(deviation(*first), features)
    sum2 = sum_positions(squared_modulus(deviation(*second)), features)
    parts = [sum1.real, sum1.imag, sum2] if jnp.iscomplexobj(x) else [sum1, sum2]
    # XLA's CPU compiler would fuse the sums into the vector that is sent, and do them one element at a time.
    parts = list(apart(tuple(parts)))
    if mask is not None:
        parts.append(count_mask(mask, x.shape, features, real))
    sums = fused_sum(parts, pool)
    number = jnp.asarray(count, real) if mask is None else sums.pop()
    per_position = 1 / jnp.maximum(number, 1)
    *mean, square = (s * per_position for s in sums)
    offset = jax.lax.complex(*mean) if jnp.iscomplexobj(x) else mean[0]
    var = jnp.maximum(0, square - squared_modulus(offset))
    if mask is not None:
        var = jnp.where(number > 0, var, 1)
    return Statistics(jnp.zeros_like(offset) if reference is None else reference, offset, var, number)


def by_moments(x, mask, shift, *, features: tuple[int, ...], count: int | None, pool: Pool) -> Statistics:
    """Each participant's moments about its own mean, one all_gather of them, and Chan's rule.

    The arguments are those of `by_sums`. It costs a second pass over `x`, and a gather that grows with the
    number of participants.
    """
    dtype, real = statistics_dtype(x.dtype), real_dtype(x.dtype)
    if mask is None:
        own = jnp.asarray(positions(x.shape, features), real)
    else:
        own = count_mask(mask, x.shape, features, real)
    per_position = 1 / jnp.maximum(own, 1)

    def counted(values):
        return values if mask is None else jnp.where(mask, values, 0)

    center = sum_positions(counted(x.astype(dtype)), features) * per_position

    def deviation(x, center):
        return counted(x.astype(dtype) - expand(center, features, x.ndim))

    first = (apart(x), apart(center))
    second = (apart(first[0]), apart(first[1]))
    rest = sum_positions(deviation(*first), features) * per_position
    square = sum_positions(squared_modulus(deviation(*second)), features) - own * squared_modulus(rest)
    parts = [center.real, center.imag, rest.real, rest.imag] if jnp.iscomplexobj(x) else [center, rest]
    parts = list(apart((*parts, square)))
    rows = fused_gather(parts if mask is None else [*parts, own], pool)
    counts = jnp.full(rows[0].shape[:1], own) if mask is None else rows.pop()
    *means, squares = rows
    centers, rests = (jax.lax.complex(*means[:2]), jax.lax.complex(*means[2:])) if jnp.iscomplexobj(x) else means

    # Chan's rule, about the mean of a participant that has the most positions: some may have none.
    number = jnp.sum(counts, axis=0) if mask is not None else jnp.asarray(count, real)
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
        nowhere = jnp.zeros_like(reference) if shift is None else shift.astype(dtype)
        reference = jnp.where(number > 0, reference, nowhere)
        var = jnp.where(number > 0, var, 1)
    return Statistics(reference, offset, var, number)
