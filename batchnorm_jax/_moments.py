"""Moments of a set of positions: what they are, how sets are joined, and the running averages made of them."""

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer


class Moments(NamedTuple):
    """Mean, variance and count of the positions that were pooled, per feature.

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
      axis: the axis that runs over the sets, the same one in all three.

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
    # A count per feature, or one for all.
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
    # About the mean of the largest set, so that the sum keeps its digits where all means are far from zero.
    reference = row_of_greatest(mean, jnp.broadcast_to(weight, var.shape))
    offset = mean - reference[None]
    shift = jnp.sum(jnp.where(weight > 0, weight * offset, 0), axis=0) / safe
    spread = var + squared_modulus(offset - shift[None])
    pooled = jnp.sum(jnp.where(weight > 0, weight * spread, 0), axis=0) / safe
    alive = total > 0
    # Not as integers: 32 bits overflow at two thousand million positions, a data set of a few thousand photographs.
    count = jnp.sum(count.astype(var.dtype), axis=0)
    return Moments(jnp.where(alive, reference + shift, 0), jnp.where(alive, pooled, 1), count)


def update_running(
    mean: jax.Array,
    var: jax.Array,
    moments: Moments,
    *,
    momentum: float,
    unbiased: bool = False,
    skip_nonfinite: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Running statistics after one more batch: running = momentum running + (1 - momentum) batch.

    Where the batch has no position, they stay as they are.

    Args:
      mean: the running mean. It becomes complex with the first complex batch, as in Flax.
      var: the running variance.
      moments: the batch's.
      momentum: the share that is kept. (PyTorch's momentum is 1 minus this one.)
      unbiased: average the variance that is divided by max(count - 1, 1), as PyTorch does; over spans, with their mean
        count.
      skip_nonfinite: leave a feature as it is where the batch's mean or variance is not finite.

    Returns:
      The new mean and variance, in the dtypes of the old, computed in that of the batch's.

    Raises:
      ValueError: the momentum is None, below 0 or above 1.
    """
    check_momentum(momentum, caller="update_running")
    moments = as_moments(moments, caller="update_running")
    mean, var = (as_array(a, name, caller="update_running") for name, a in (("mean", mean), ("var", var)))
    if mean.shape != moments.mean.shape or var.shape != moments.var.shape:
        raise ValueError(
            f"update_running: mean has shape {mean.shape} and var {var.shape}, and those of the batch have "
            f"{moments.mean.shape} and {moments.var.shape}; they must be the same"
        )
    new_var = moments.var
    if unbiased:
        new_var = new_var * (moments.count / jnp.maximum(moments.count - 1, 1))
    keep = jnp.broadcast_to(moments.count > 0, new_var.shape)
    if skip_nonfinite:
        keep = keep & jnp.isfinite(moments.mean) & jnp.isfinite(new_var)

    def averaged(running, batch):
        dtype = promoted(running, batch) if jnp.iscomplexobj(batch) else running.dtype
        # In half precision the product alone would round away what is added.
        running = running.astype(batch.dtype)
        return jnp.where(keep, momentum * running + (1 - momentum) * batch, running).astype(dtype)

    return averaged(mean, moments.mean), averaged(var, new_var)


def check_momentum(momentum: Any, *, caller: str) -> None:
    """Raises a ValueError for a momentum that is no share; an array's value may be known only in a run."""
    if momentum is None:
        raise ValueError(
            f"{caller}: momentum=None, PyTorch's plain average over all batches, is not kept here; give a number of 0 "
            "to 1, and take the exact statistics at the end with recalibrate"
        )
    if not is_number(momentum) or not (isinstance(momentum, Tracer) or 0 <= momentum <= 1):
        raise ValueError(
            f"{caller}: momentum={momentum!r} must be a number of 0 to 1, the share of the running statistics that is "
            "kept (PyTorch's momentum is 1 minus this one)"
        )


def as_array(value: Any, name: str, *, caller: str, listed: bool = True) -> jax.Array:
    """Returns what was given as an array of numbers; `listed`: also a list or tuple of such, stacked.

    Raises:
      ValueError: it is none.
    """
    try:
        array = jnp.asarray(value) if listed or not isinstance(value, tuple | list) else None
    except (TypeError, ValueError, OverflowError):
        array = None
    if array is None or not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise ValueError(f"{caller}: {name} must be an array of numbers, not {_described(value)}")
    return array


def as_moments(moments: Any, *, caller: str) -> Moments:
    """Returns `Moments` of arrays.

    Raises:
      ValueError: it is no tuple of mean, var and count.
    """
    if not isinstance(moments, tuple) or len(moments) != 3:
        raise ValueError(f"{caller}: moments must be Moments(mean, var, count), not {_described(moments)}")
    return Moments(*(as_array(a, name, caller=caller) for name, a in zip(Moments._fields, moments, strict=True)))


def is_number(value: Any) -> bool:
    """Whether an option is one real number, maybe one that is known only when the program runs."""
    if isinstance(value, Tracer):
        return True
    if isinstance(value, bool) or not isinstance(value, int | float | np.number | np.ndarray | jax.Array):
        return False
    try:
        dtype = jnp.result_type(value)
    except TypeError:  # Texts or objects in an array.
        return False
    real = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
    return np.shape(value) == () and real


def _described(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return f"{type(value).__name__}" + (f" of dtype {dtype}" if dtype is not None else "")


def conditioning(moments: Moments, shift: jax.Array) -> jax.Array:
    """Returns how far the shift was from the mean, the greatest over the features: max |mean - shift|^2 / var.

    With `collective="psum"` the relative error of the variance is a few float32 roundings (6e-8) times 1 plus the
    figure of the shift or that of 0, whichever is smaller for the feature: at 1e2 about 2e-5, and from about 1e6 on the
    variance has no right digit left. (A few are about four; where the compiler sums one number after another, as some
    do for few features, the square root of how many.) A shift that is not finite counts as 0, as it does in the sums.

    Args:
      moments: of a batch.
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
    """Returns the shift or 0, whichever is nearer to the mean of a feature: what the sums were taken about."""
    shift = shift.astype(moments.mean.dtype)
    near = squared_modulus(moments.mean - shift) <= squared_modulus(moments.mean)
    return jnp.where(near & jnp.isfinite(shift), shift, 0)


def feature_axes(axis: int | Sequence[int], ndim: int, *, caller: str) -> tuple[int, ...]:
    """The feature axes, non-negative and in ascending order; the statistics have these axes in this order."""
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


def expand(statistic: jax.Array, features: tuple[int, ...], ndim: int) -> jax.Array:
    """Reshapes a statistic of shape (*features) to rank `ndim`, so that nothing relies on rank promotion."""
    return jnp.expand_dims(statistic, tuple(i for i in range(ndim) if i not in features))


def check_mask(mask: jax.Array, shape: tuple[int, ...], *, caller: str) -> jax.Array:
    """The mask as booleans, of the rank of the input, each axis either 1 or the input's."""
    mask = as_array(mask, "mask", caller=caller)
    if mask.ndim <= len(shape):
        full = (1,) * (len(shape) - mask.ndim) + mask.shape
        if all(m in (1, s) for m, s in zip(full, shape, strict=True)):
            return mask.reshape(full).astype(bool)
    raise ValueError(
        f"{caller}: the mask has shape {mask.shape}, which does not broadcast to the input's {shape}. For one flag an "
        f"example give it shape {(shape[0],) + (1,) * (len(shape) - 1)}"
    )


def positions(shape: tuple[int, ...], features: tuple[int, ...]) -> int:
    """The number of positions that one device's input has for each feature."""
    return math.prod(s for i, s in enumerate(shape) if i not in features)


def count_mask(mask: jax.Array, shape: tuple[int, ...], features: tuple[int, ...], dtype) -> jax.Array:
    """The number of positions that count: shape (), or (*features) if the mask differs per feature."""
    reduced = tuple(i for i in range(len(shape)) if i not in features)
    # A mask axis of size 1 stands for the whole axis of the input.
    repeats = math.prod(shape[i] for i in reduced if mask.shape[i] == 1)
    count = repeats * jnp.sum(mask, axis=reduced, dtype=dtype)
    return count.reshape(()) if count.size == 1 else jnp.broadcast_to(count, tuple(shape[i] for i in features))


def promoted(*given: Any) -> jnp.dtype:
    """Returns the dtype that arrays or dtypes promote to, by JAX's standard rules.

    It is for what the norm decides by itself, as that sums are taken in float32. Under
    `jax_numpy_dtype_promotion="strict"` JAX refuses to say it, since users are to say it: what they are to say, the
    dtype of a result, is asked of `jnp.result_type`.
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*given)


def statistics_dtype(dtype) -> jnp.dtype:
    """The dtype of sums and means: that of the input, but at least float32."""
    return promoted(dtype, jnp.float32)


def real_dtype(dtype) -> jnp.dtype:
    """The dtype of variances: the real part of `statistics_dtype`."""
    return jnp.finfo(statistics_dtype(dtype)).dtype


def widened(x: jax.Array, dtype) -> jax.Array:
    """`x`, wide enough that a result of `dtype` is right to its last digit."""
    wide = promoted(statistics_dtype(x.dtype), dtype)
    return x if wide == statistics_dtype(x.dtype) else x.astype(wide)


def squared_modulus(x: jax.Array) -> jax.Array:
    """|x|^2, real."""
    return lax.square(x.real) + lax.square(x.imag) if jnp.iscomplexobj(x) else lax.square(x)


def row_of_greatest(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """For each feature the row, along axis 0, of the first greatest weight."""
    chosen = jnp.argmax(weights, axis=0)[None]
    number = lax.broadcasted_iota(chosen.dtype, rows.shape, 0)
    # A select and a sum: a gather along a feature that is sharded is refused.
    return jnp.sum(jnp.where(number == chosen, rows, 0), axis=0)
