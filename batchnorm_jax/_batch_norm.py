"""Batch normalization over the examples of every device, and its derivative rule."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from batchnorm_jax._collectives import AxisName, axis_size, fused_psum, vary_like
from batchnorm_jax._inference import normalize
from batchnorm_jax._moments import (
    Moments,
    check_mask,
    count_mask,
    expand,
    feature_axes,
    positions,
    statistics_dtype,
)


def batch_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    shift: jax.Array | None = None,
    axis_name: AxisName | None = None,
) -> tuple[jax.Array, Moments]:
    """Normalises `x` by the mean and variance of all its positions, on every device of `axis_name`.

    With m the mask, K the shift, and sums over every axis but `axis` and over `axis_name`:

        n = sum m,   S1 = sum m (x - K),   S2 = sum m (x - K)^2
        mean = K + S1/n,   var = max(0, S2/n - (S1/n)^2)
        y = scale (x - mean) / sqrt(var + epsilon) + bias

    The three sums travel in one psum (2 floats a feature; n is added only if there is a mask), and
    the backward pass takes one psum of 2 floats a feature. Which examples are pooled:

    - inside `pmap`, `shard_map` or `vmap` with `axis_name`: those of every participant on that axis;
    - inside them without `axis_name`: each participant's own;
    - under `jit` with sharded arrays, `axis_name=None`: those of the whole array.

    Gradients of `scale` and `bias` follow the transform: local under `pmap` and `shard_map(check_vma=False)`,
    where the caller reduces gradients; reduced under `shard_map(check_vma=True)` for a replicated parameter,
    as JAX requires. Forward mode, reverse mode and their compositions work.

    Args:
      x: real floating point numbers, of any rank; sums are taken in at least float32.
      scale: shape (*features), or None for 1.
      bias: shape (*features), or None for 0.
      axis: the feature axis or axes; features are in ascending order of axes.
      epsilon: added to the variance.
      mask: broadcastable to `x`, True where a position counts towards the statistics. Every position is normalised.
      shift: shape (*features), a guess of the mean, the same on every device, such as the running mean. The
        relative error of the variance is about eps (1 + (mean - shift)^2 / var). No gradient flows into it.
      axis_name: the name or names of the axes over which to pool.

    Returns:
      y, of the shape of `x`, in the dtype that `x`, `scale` and `bias` promote to, and the `Moments` that it was
      normalised by, differentiable, the same on every participant. Where no position counts at all: mean
      `shift` (or 0), var 1, count 0, and zero gradients.

    Raises:
      ValueError: integer or complex input, no positions at all, a feature axis out of range, a parameter or mask of
        the wrong shape, or an `axis_name` that is not bound.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.array([[[1.0]], [[3.0]]])  # two participants with one example of one feature each
      >>> y, moments = jax.vmap(lambda x: batch_norm(x, axis_name="batch"), axis_name="batch")(x)
      >>> moments.mean.ravel(), moments.count
      (Array([2., 2.], dtype=float32), Array([2., 2.], dtype=float32))

    Source: Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167, 2015, algorithm 1, and for pooling over devices
    Peng et al., "MegDet", arXiv 1711.07240, 2017.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"batch_norm: the input must have a real floating point dtype, not {x.dtype}; "
            "convert it, for example with x.astype(jnp.float32)"
        )
    features = feature_axes(axis, x.ndim, caller="batch_norm")
    shape = tuple(x.shape[i] for i in features)
    local = positions(x.shape, features)
    if local == 0 or 0 in shape:
        raise ValueError(f"batch_norm: the input of shape {x.shape} has no positions; give at least one example")
    for name, value in (("scale", scale), ("bias", bias), ("shift", shift)):
        if value is not None and jnp.shape(value) != shape:
            raise ValueError(
                f"batch_norm: {name} has shape {jnp.shape(value)}, but the input of shape {x.shape} "
                f"has features of shape {shape} (axis={axis}); give it that shape"
            )
    if mask is not None:
        mask = check_mask(mask, x.shape, caller="batch_norm")
    participants = axis_size(axis_name, caller="batch_norm")
    spec = _Spec(features, epsilon, axis_name, None if mask is not None else participants * local)
    if shift is not None:
        shift = lax.stop_gradient(shift)
    return _batch_norm(spec, x, scale, bias, mask, shift)


class _Spec(NamedTuple):
    """What is known when the function is traced. `count` is None if a mask decides it."""

    features: tuple[int, ...]
    epsilon: float
    axis_name: AxisName | None
    count: int | None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _batch_norm(spec: _Spec, x, scale, bias, mask, shift):
    moments = _pooled_moments(spec, x, mask, shift)
    y = normalize(x, moments.mean, moments.var, scale, bias, axis=spec.features, epsilon=spec.epsilon)
    return y, moments


def _pooled_moments(spec: _Spec, x, mask, shift) -> Moments:
    dtype = statistics_dtype(x.dtype)
    deviation = x.astype(dtype)
    if shift is not None:
        shift = shift.astype(dtype)
        deviation = deviation - expand(shift, spec.features, x.ndim)
    if mask is not None:
        # A select, not a product: a position that does not count may hold a NaN.
        deviation = jnp.where(mask, deviation, 0)
    parts = [_sum(spec, deviation), _sum(spec, lax.square(deviation))]
    if mask is not None:
        parts.append(count_mask(mask, x.shape, spec.features, dtype))
    sum1, sum2, *masked_count = fused_psum(parts, spec.axis_name)
    if mask is None:
        count = jnp.asarray(spec.count, dtype)
        delta, square = sum1 / count, sum2 / count
    else:
        (count,) = masked_count
        delta, square = sum1 / jnp.maximum(count, 1), sum2 / jnp.maximum(count, 1)
    var = jnp.maximum(0, square - lax.square(delta))
    if mask is not None:
        var = jnp.where(count > 0, var, 1)
    return Moments(delta if shift is None else shift + delta, var, count)


def _sum(spec: _Spec, values) -> jax.Array:
    return jnp.sum(values, axis=tuple(i for i in range(values.ndim) if i not in spec.features))


# The derivative. With x_hat = (x - mean) / s, s = sqrt(var + epsilon), g = scale / s, and sums over every device:
#
#     d mean = sum m dx / n                        =: t0
#     d var  = sum m 2 (x - mean) dx / n           =: 2 s t1,   t1 = sum m x_hat dx / n
#     d y    = g (dx - t0 - x_hat t1) + x_hat d scale + d bias
#            = g dx + x_hat (d scale - g t1) + (d bias - g t0)
#
# which is linear in (dx, d scale, d bias), so JAX transposes it. For a cotangent w of y that gives
#
#     dx = g (w - m (sum w + x_hat sum w x_hat) / n),   d bias = sum w,   d scale = sum w x_hat
#
# with one psum of the pair (sum w, sum w x_hat), because of how the tangent is written:
#
# - where psum transposes to psum (pmap, shard_map with check_vma=False), the pair (t0, t1) is one psum, and the
#   parameters' gradients stay local, as the caller expects there;
# - where it transposes to a cast (check_vma=True), the psum comes from casting the pair (d bias - g t0,
#   d scale - g t1) to varying, once; the parameters' gradients come out of that same psum.
#
# The checkpoint makes the backward pass keep x in its own dtype and vectors of one number a feature, and compute
# x_hat again, in place of keeping float32 arrays of the size of x.
@_batch_norm.defjvp
def _batch_norm_jvp(spec: _Spec, primals, tangents):
    x, scale, _, mask, _ = primals
    y, moments = _batch_norm(spec, *primals)
    dx, dscale, dbias, _, _ = tangents
    linear = jax.checkpoint(partial(_tangent, spec))
    dy, dmean, dvar = linear(x, mask, moments, scale, (dx, dscale, dbias))
    return (y, moments), (dy.astype(y.dtype), Moments(dmean, dvar, jnp.zeros_like(moments.count)))


def _tangent(spec: _Spec, x, mask, moments: Moments, scale, tangents):
    dx, dscale, dbias = tangents
    dtype = statistics_dtype(x.dtype)
    dx = dx.astype(dtype)
    wide = partial(expand, features=spec.features, ndim=x.ndim)
    inv = lax.rsqrt(moments.var + spec.epsilon)
    gain = inv if scale is None else inv * scale.astype(dtype)
    x_hat = (x.astype(dtype) - wide(moments.mean)) * wide(inv)

    if mask is not None:
        # A position that does not count may hold a NaN, which even a zero cotangent would hand on.
        x_hat = jnp.where(mask | jnp.isfinite(x_hat), x_hat, 0)
    counted = dx if mask is None else jnp.where(mask, dx, 0)
    x_hat_counted = x_hat if mask is None else jnp.where(mask, x_hat, 0)
    pair = jnp.stack([_sum(spec, counted), _sum(spec, x_hat_counted * counted)])
    if spec.axis_name is not None:
        pair = lax.psum(pair, spec.axis_name)
    t = pair / jnp.broadcast_to(jnp.maximum(moments.count, 1), moments.mean.shape)[None]

    zero = jnp.zeros_like(moments.mean)
    parameters = jnp.stack(
        [
            zero if dbias is None else dbias.astype(dtype),
            zero if dscale is None else dscale.astype(dtype),
        ]
    )
    offsets = vary_like(parameters - gain[None] * vary_like(t, gain), x)
    dy = wide(gain) * dx + x_hat * wide(offsets[1]) + wide(offsets[0])
    dmean, dvar = t[0], 2 * t[1] / inv
    if mask is not None:
        # Where nothing counts, the moments are constants and y means nothing.
        alive = jnp.broadcast_to(moments.count > 0, moments.mean.shape)
        dy = jnp.where(wide(alive), dy, 0)
    return dy, dmean, dvar
