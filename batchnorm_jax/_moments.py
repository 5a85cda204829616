"""Moments of a set of positions: mean, variance and count, how sets are joined, and how far a shift is from a mean."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from batchnorm_jax._arrays import row_of_greatest, squared_modulus
from batchnorm_jax._checks import as_array, described


class Moments(NamedTuple):
    """Mean, variance and count, per feature, of the pooled positions.

    Attributes:
      mean: shape (*features), in at least float32; complex for complex input.
      var: the biased variance (divided by `count`), real, of the same shape.
      count: the number of pooled positions: shape (), or (*features) if the mask differs per feature.

    Example:
      >>> import jax.numpy as jnp
      >>> from batchnorm_jax import batch_norm
      >>> _, moments = batch_norm(jnp.array([[1.0], [3.0]]))
      >>> moments.mean.item(), moments.var.item(), moments.count.item()
      (2.0, 1.0, 2.0)
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array


def pool(moments: Moments, axis: int = 0) -> Moments:
    """Pools the moments of disjoint sets of positions into the moments of their union.

    By the law of total variance, with N = sum n_i:

        mean = sum n_i mean_i / N,   var = sum n_i (var_i + |mean_i - mean|^2) / N

    Args:
      moments: stacked along `axis`: mean and var of shape (k, *features), count of shape (k,) or (k, *features).
      axis: the axis that runs over the sets, the same in all three arrays.

    Returns:
      The moments of the union. Where no set has a position: mean 0, var 1, count 0.

    Raises:
      ValueError: the numbers of sets differ, or the shapes of mean and var do; the message gives each shape.

    Example:
      >>> import jax.numpy as jnp
      >>> two = Moments(mean=jnp.array([[0.0], [2.0]]), var=jnp.array([[1.0], [1.0]]), count=jnp.array([1, 3]))
      >>> pool(two).mean
      Array([1.5], dtype=float32)

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    moments = as_moments(moments, caller="pool")
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise ValueError(f"pool: axis={axis!r} must be an integer")
    shapes = [jnp.shape(part) for part in moments]
    sizes = [shape[axis] if -len(shape) <= axis < len(shape) else None for shape in shapes]
    # One count per feature, or one for all features.
    fits = shapes[2] == shapes[0] or len(shapes[2]) < len(shapes[0])
    if shapes[0] != shapes[1] or None in sizes or len(set(sizes)) != 1 or not fits:
        raise ValueError(
            f"pool: mean, var and count must have as many sets along axis {axis}, and mean and var the same shape; "
            f"they have the shapes {shapes[0]}, {shapes[1]} and {shapes[2]}. Stack one set after another, for "
            "example with jax.tree.map(lambda *m: jnp.stack(m), *moments)"
        )
    mean, var, count = (jnp.moveaxis(jnp.asarray(part), axis, 0) for part in moments)
    weight = count.astype(var.dtype)
    if weight.ndim < var.ndim:
        weight = weight.reshape(weight.shape + (1,) * (var.ndim - weight.ndim))
    total = jnp.sum(weight, axis=0)
    safe = jnp.maximum(total, 1)
    # Sum about the mean of the largest set, to keep its digits where all means are far from zero.
    reference = row_of_greatest(mean, jnp.broadcast_to(weight, var.shape))
    offset = mean - reference[None]
    shift = jnp.sum(jnp.where(weight > 0, weight * offset, 0), axis=0) / safe
    spread = var + squared_modulus(offset - shift[None])
    pooled = jnp.sum(jnp.where(weight > 0, weight * spread, 0), axis=0) / safe
    alive = total > 0
    # Not as integers: 32 bits overflow at two billion positions, a data set of a few thousand photographs.
    count = jnp.sum(count.astype(var.dtype), axis=0)
    return Moments(jnp.where(alive, reference + shift, 0), jnp.where(alive, pooled, 1), count)


def as_moments(moments: Any, *, caller: str) -> Moments:
    """Returns the argument as `Moments` of arrays.

    Raises:
      ValueError: it is not a tuple of mean, var and count.
    """
    if not isinstance(moments, tuple) or len(moments) != 3:
        raise ValueError(f"{caller}: moments must be Moments(mean, var, count), not {described(moments)}")
    return Moments(*(as_array(a, name, caller=caller) for name, a in zip(Moments._fields, moments, strict=True)))


def conditioning(moments: Moments, shift: ArrayLike) -> jax.Array:
    """Returns the distance of the shift from the mean, the greatest over the features: max |mean - shift|^2 / var.

    With `collective="psum"` the relative error of the variance is a few float32 roundings (6e-8) times 1 plus the
    figure of the shift or that of 0, whichever is smaller for the feature: at 1e2 about 2e-5, and from about 1e6 on the
    variance has no right digit left. (A few are about four; where the compiler adds one number after another, as some
    compilers do for few features, they are the square root of the number of positions.) A shift that is not finite
    counts as 0, as it does in the sums.

    Args:
      moments: the moments of a batch.
      shift: shape (*features), such as the running mean.

    Returns:
      One number, real; NaN where the moments are.

    Example:
      >>> import jax.numpy as jnp
      >>> float(conditioning(Moments(jnp.array([3.0]), jnp.array([1.0]), jnp.array(8)), jnp.array([0.0])))
      9.0
    """
    moments = as_moments(moments, caller="conditioning")
    shift = as_array(shift, "shift", caller="conditioning")
    if shift.shape != moments.mean.shape:
        raise ValueError(
            f"conditioning: shift has shape {shift.shape}, and the mean {moments.mean.shape}; give it that"
        )
    shift = shift.astype(moments.mean.dtype)
    distance = squared_modulus(moments.mean - jnp.where(jnp.isfinite(shift), shift, 0))
    tiny = jnp.finfo(moments.var.dtype).tiny
    counts = (moments.count > 0) & (distance != 0)
    return jnp.max(jnp.where(counts, distance / jnp.maximum(moments.var, tiny), 0))


def nearer_shift(moments: Moments, shift: jax.Array) -> jax.Array:
    """Returns per feature the point that the sums were taken about: the shift or 0, whichever is nearer to the mean."""
    shift = shift.astype(moments.mean.dtype)
    near = squared_modulus(moments.mean - shift) <= squared_modulus(moments.mean)
    return jnp.where(near & jnp.isfinite(shift), shift, 0)
