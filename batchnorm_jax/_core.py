"""Normalising by the statistics of a batch, corrected or not, and the derivative rule of it."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from batchnorm_jax._activations import Activation, is_relu, undo
from batchnorm_jax._collectives import Pool, fused_sum, pool_size, unstack, vary_like
from batchnorm_jax._moments import apart, expand, positions, real_dtype, statistics_dtype, sum_positions
from batchnorm_jax._statistics import Statistics, by_moments, by_sums

_STATISTICS = {"psum": by_sums, "all_gather": by_moments}

# Added to |scale| where y is to be inverted, as InPlace-ABN does (arXiv 1712.02616, section 3).
SCALE_FLOOR = 1e-5


def effective_scale(scale: jax.Array | None, save_for_backward: str) -> jax.Array | None:
    """What multiplies in the place of `scale`: |scale| + 1e-5 where y is to be inverted."""
    return scale if scale is None or save_for_backward == "input" else jnp.abs(scale) + SCALE_FLOOR


class Correction(NamedTuple):
    """What turns the batch's statistics towards known ones: x_hat becomes r x_hat + d.

    Attributes:
      mean: shape (*features), the known mean.
      var: shape (*features).
      r_max: the ratio of the deviations, s / s_known, is clipped to between 1 / r_max and r_max.
      d_max: the distance of the means, in s_known, is clipped to between -d_max and d_max.
    """

    mean: jax.Array
    var: jax.Array
    r_max: jax.Array
    d_max: jax.Array


class Spec(NamedTuple):
    """What is known when the function is traced."""

    features: tuple[int, ...]
    epsilon: float
    pool: Pool
    collective: str
    activation: Activation | None
    save_for_backward: str
    dtype: jnp.dtype


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def normalize_by_batch(spec: Spec, x, scale, bias, mask, shift, residual, correction) -> tuple[jax.Array, Statistics]:
    """Y in the dtype of the spec, and the statistics of the batch. What is given is checked, spans are cut."""
    count = None if mask is not None else pool_size(spec.pool) * positions(x.shape, spec.features)
    statistics = _STATISTICS[spec.collective](x, mask, shift, features=spec.features, count=count, pool=spec.pool)
    if correction is not None:
        scale, bias = _corrected(_ratio_and_distance(spec, statistics, correction), scale, bias)
    y = _pre_activation(spec, x, statistics, scale, bias, residual)
    if spec.activation is not None:
        y = spec.activation(y)
    return y.astype(spec.dtype), statistics


def _ratio_and_distance(spec: Spec, statistics: Statistics, correction: Correction):
    """Batch renormalization's r and d."""
    known = jnp.sqrt(correction.var.astype(statistics.var.dtype) + spec.epsilon)
    r = jnp.clip(jnp.sqrt(statistics.var + spec.epsilon) / known, 1 / correction.r_max, correction.r_max)
    d = (statistics.reference - correction.mean.astype(known.dtype) + statistics.offset) / known
    # Constants for derivatives, those of the derivative too.
    return lax.stop_gradient((r, jnp.clip(d, -correction.d_max, correction.d_max)))


def _corrected(ratio_and_distance, scale, bias):
    """Scale (r x_hat + d) + bias, as another scale and bias of x_hat. Linear, so it maps their tangents too."""
    r, d = ratio_and_distance
    scale = jnp.ones_like(r) if scale is None else scale.astype(r.dtype)
    return scale * r, scale * d if bias is None else scale * d + bias.astype(d.dtype)


def _pre_activation(spec: Spec, x, statistics: Statistics, scale, bias, residual):
    """Scale (x - mean) / s + bias + residual, as a multiple of x - reference and a number a feature."""
    dtype = statistics_dtype(x.dtype)
    wide = partial(expand, features=spec.features, ndim=x.ndim)
    gain = _gain(spec, statistics, scale)
    constant = -gain * statistics.offset
    if bias is not None:
        constant = constant + bias
    y = wide(gain) * (x.astype(dtype) - wide(statistics.reference)) + wide(constant)
    return y if residual is None else y + residual.astype(dtype)


def _gain(spec: Spec, statistics: Statistics, scale):
    inv = lax.rsqrt(statistics.var + spec.epsilon)
    return inv if scale is None else inv * scale.astype(inv.dtype)


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
# x_hat is never formed: it is p u - q with u = x - reference (or, where y alone is kept, u = y with its
# activation undone), p and q numbers a feature, so that the sums are of dx and u dx.
#
# The checkpoint makes the backward pass keep x in its own dtype and vectors of one number a feature, and compute
# the rest again, in place of keeping float32 arrays of the size of x.
@normalize_by_batch.defjvp
def _normalize_by_batch_jvp(spec: Spec, primals, tangents):
    x, scale, bias, mask, _, residual, correction = primals
    y, statistics = normalize_by_batch(spec, *primals)
    dx, dscale, dbias, _, _, dresidual, _ = tangents
    if correction is not None:
        towards = _ratio_and_distance(spec, statistics, correction)
        scale, bias = _corrected(towards, scale, bias)
        if dscale is not None:
            dscale, dbias = _corrected(towards, dscale, dbias)
    keeps_y = spec.save_for_backward == "output" or (is_relu(spec.activation) and residual is not None)
    saved = _Saved(
        x=None if spec.save_for_backward == "output" else x,
        y=y if keeps_y else None,
        residual=residual if spec.activation is not None and not keeps_y else None,
        scale=scale,
        bias=bias if spec.activation is not None or spec.save_for_backward == "output" else None,
        mask=mask,
        statistics=statistics,
    )
    linear = jax.checkpoint(partial(_tangent, spec))
    dy, doffset, dvar = linear(saved, (dx, dscale, dbias, dresidual))
    unmoved = jax.tree.map(jnp.zeros_like, statistics)
    return (y, statistics), (dy, unmoved._replace(offset=doffset, var=dvar))


class _Saved(NamedTuple):
    """What the backward pass keeps: arrays of the size of `x` only where the mode needs them."""

    x: jax.Array | None
    y: jax.Array | None
    residual: jax.Array | None
    scale: jax.Array | None
    bias: jax.Array | None
    mask: jax.Array | None
    statistics: Statistics


def _tangent(spec: Spec, saved: _Saved, tangents):
    dx, dscale, dbias, dresidual = tangents
    mask, statistics = saved.mask, saved.statistics
    dtype, real = statistics_dtype(dx.dtype), real_dtype(dx.dtype)
    wide = partial(expand, features=spec.features, ndim=dx.ndim)
    gain = _gain(spec, statistics, saved.scale)
    inv = lax.rsqrt(statistics.var + spec.epsilon)
    if saved.x is not None:
        p, q = inv, inv * statistics.offset
    else:
        p = 1 / (jnp.ones_like(inv) if saved.scale is None else saved.scale.astype(real))
        q = jnp.zeros_like(p) if saved.bias is None else p * saved.bias.astype(dtype)

    def centred(values, reference):
        if saved.x is not None:
            u = values.astype(dtype) - wide(reference)
        else:
            u = undo(spec.activation, values.astype(dtype))
        # A position that does not count may hold a NaN, which even a zero cotangent would hand on.
        return u if mask is None else jnp.where(mask | jnp.isfinite(u), u, 0)

    first = (saved.x if saved.x is not None else saved.y, statistics.reference)
    second = (apart(first[0]), apart(first[1]))
    dx = dx.astype(dtype)
    counted = dx if mask is None else jnp.where(mask, dx, 0)
    moved = [sum_positions(counted, spec.features), sum_positions(_product(centred(*first), counted), spec.features)]
    if jnp.iscomplexobj(dx):
        moved = [moved[0].real, moved[0].imag, moved[1]]
    *sums, dot = fused_sum(list(apart(tuple(moved))), spec.pool)
    per_position = 1 / jnp.maximum(statistics.count, 1)
    t0 = (lax.complex(*sums) if len(sums) == 2 else sums[0]) * per_position
    t1 = p * dot * per_position - _product(q, t0)

    zero = jnp.zeros_like(inv)
    slope = (zero if dscale is None else dscale.astype(real)) - gain * t1
    constant = (zero if dbias is None else dbias.astype(dtype)) - gain * t0 - q * slope
    parts = [constant.real, constant.imag] if jnp.iscomplexobj(constant) else [constant]
    # One array, cast to varying once. `apart` is for its transpose: the sums that make the array.
    *parts, slope = apart(tuple(unstack(vary_like(jnp.stack([*parts, p * slope]), dx))))
    constant = lax.complex(*parts) if len(parts) == 2 else parts[0]
    dy = wide(vary_like(gain, dx)) * dx + centred(*second) * wide(slope) + wide(constant)

    if mask is not None:
        # Where nothing counts, the moments are constants and y means nothing.
        alive = jnp.broadcast_to(statistics.count > 0, inv.shape)
        dy = jnp.where(wide(alive), dy, 0)
    if dresidual is not None:
        dy = dy + dresidual.astype(dtype)
    return _through_activation(spec, saved, dy).astype(spec.dtype), t0, 2 * t1 / inv


def _through_activation(spec: Spec, saved: _Saved, dy):
    """The activation's derivative times `dy`."""
    if spec.activation is None:
        return dy
    if saved.y is not None and is_relu(spec.activation):
        return jnp.where(saved.y > 0, dy, 0)
    if saved.y is not None:
        pre = undo(spec.activation, saved.y.astype(dy.dtype))
    else:
        pre = _pre_activation(spec, saved.x, saved.statistics, saved.scale, saved.bias, saved.residual)
    if saved.mask is not None:
        pre = jnp.where(saved.mask | jnp.isfinite(pre), pre, 0)
    return jax.jvp(spec.activation, (pre,), (dy,))[1]


def _product(a, b):
    """Re(conj(a) b): the real inner product of complex numbers, number by number."""
    return a.real * b.real + a.imag * b.imag if jnp.iscomplexobj(b) else a * b
