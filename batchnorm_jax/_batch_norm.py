"""Batch normalization over the examples of every device, and its derivative rule."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from batchnorm_jax._activations import Activation, is_relu, undo
from batchnorm_jax._collectives import AxisName, Pool, axis_size, check_groups, fused_sum, pool_size, unstack, vary_like
from batchnorm_jax._moments import (
    Moments,
    apart,
    check_mask,
    expand,
    positions,
    real_dtype,
    statistics_dtype,
    sum_positions,
)
from batchnorm_jax._options import check_input, check_options, check_real
from batchnorm_jax._spans import average_over_spans, cut_spans, plan_span
from batchnorm_jax._statistics import Statistics, by_moments, by_sums

_STATISTICS = {"psum": by_sums, "all_gather": by_moments}

# Added to |scale| where y is to be inverted, as InPlace-ABN does (arXiv 1712.02616, section 3).
SCALE_FLOOR = 1e-5


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
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    span: int | None = None,
    collective: str = "psum",
    activation: Activation | None = None,
    residual: jax.Array | None = None,
    save_for_backward: str = "input",
    dtype: Any = None,
) -> tuple[jax.Array, Moments]:
    """Normalises `x` by the mean and variance of all its positions, on every device of `axis_name`.

    With m the mask, K the shift, and sums over every axis but `axis` and over `axis_name`:

        n = sum m,   S1 = sum m (x - K),   S2 = sum m |x - K|^2
        mean = K + S1/n,   var = max(0, S2/n - |S1/n|^2)
        y = activation(scale (x - mean) / sqrt(var + epsilon) + bias + residual)

    The three sums travel in one psum (2 floats a feature; n is added only if there is a mask), and
    the backward pass takes one psum of 2 floats a feature. Which examples are pooled:

    - inside `pmap`, `shard_map` or `vmap` with `axis_name`: those of every participant on that axis;
    - inside them without `axis_name`: each participant's own;
    - under `jit` with sharded arrays, `axis_name=None`: those of the whole array;
    - with `axis_index_groups`: those of the participant's group; with `span`: those of the example's span.

    Gradients of `scale` and `bias` follow the transform: local under `pmap` and `shard_map(check_vma=False)`,
    where the caller reduces gradients; reduced under `shard_map(check_vma=True)` for a replicated parameter,
    as JAX requires. Forward mode, reverse mode and their compositions work.

    More than one psum of 2 floats a feature (2 and 1 with a mask) each way is taken by:

    - groups of devices under `shard_map(check_vma=True)`, over several axis names, or in `vmap`, where JAX has no
      grouped psum: one psum of as many rows of 2 floats a feature as there are groups, and under check_vma=True in the
      backward pass of one row more;
    - a span inside a device: no collective but one psum of the averaged moments, which XLA drops where they are not
      used; across devices: groups, and that psum; under `jit` with Explicit axes some small gathers;
    - `collective="all_gather"`: forward one all_gather of 3 floats a feature; under `jit` two all-reduces;
    - a mask that differs per feature, and complex input: 3 floats a feature;
    - one device, and `vmap`: nothing.

    Args:
      x: floating point or complex numbers, of any rank; sums are taken in at least float32.
      scale: shape (*features), or None for 1.
      bias: shape (*features), or None for 0.
      axis: the feature axis or axes; features are in ascending order of axes.
      epsilon: added to the variance.
      mask: broadcastable to `x`, True where a position counts towards the statistics. Every position is normalised.
      shift: shape (*features), a guess of the mean, the same on every device, such as the running mean. The relative
        error of the variance is a few eps (1 + (mean - shift)^2 / var), eps 6e-8. No gradient flows into it.
      axis_name: the name or names of the axes over which to pool.
      axis_index_groups: groups of equal size of the participants on `axis_name`, pooled each by itself.
      span: how many examples along axis 0 are normalised together, contiguous in the global order, whether inside a
        device or across several; None: all. The moments are then the mean over the spans of each one's mean and
        variance, and of its count.
      collective: "psum", of sums about the shift; "all_gather", of each device's moments about its own mean: exact
        however far the mean is from the shift, for a second pass over `x` and a gather that grows with the devices.
      activation: an elementwise function, computed again in the backward pass: nothing of it is kept. It must not close
        over a value that is differentiated, such as a learned slope.
      residual: of the shape of `x`, added before the activation.
      save_for_backward: "input", keep `x` in its own dtype; with a residual and `jax.nn.relu` also y, with
        another activation also the residual. "output", keep y alone and undo the activation and the norm, so that
        `x` need not live: for no activation, `jax.nn.leaky_relu` and `jax.nn.elu`. In it |scale| + 1e-5 takes the
        place of scale, and a gradient is only as exact as y holds x: in bfloat16 that of a scale of 0.01 beside a
        bias of 0.5 is 13% off. Not for networks whose scales go to zero.
      dtype: of y; None: what `x`, `scale`, `bias` and `residual` promote to.

    Returns:
      y, of the shape of `x`, and the `Moments` that it was normalised by, differentiable, the same on every
      participant (of a group). Where no position counts at all: mean `shift` (or 0), var 1, count 0, and zero
      gradients of `x`, `scale` and `bias`.

    Raises:
      ValueError: integer input, no positions at all, a feature axis out of range, a parameter, mask or residual of the
        wrong shape, an `axis_name` that is not bound, groups or a span that do not split the devices and examples,
        an option that is not known, or `save_for_backward="output"` with what it cannot undo.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.array([[[1.0]], [[3.0]]])  # two participants with one example of one feature each
      >>> y, moments = jax.vmap(lambda x: batch_norm(x, axis_name="batch"), axis_name="batch")(x)
      >>> moments.mean.ravel(), moments.count
      (Array([2., 2.], dtype=float32), Array([2., 2.], dtype=float32))

    Source: Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167, 2015, algorithm 1; for pooling over devices
    Peng et al., "MegDet", arXiv 1711.07240, 2017; for inverting y Rota Bulo et al., "In-Place Activated BatchNorm",
    arXiv 1712.02616, 2017.
    """
    x = jnp.asarray(x)
    scale, bias, shift, residual = (None if a is None else jnp.asarray(a) for a in (scale, bias, shift, residual))
    features = check_input(x, axis, caller="batch_norm")
    axis_name = tuple(axis_name) if isinstance(axis_name, list) else axis_name
    shape = tuple(x.shape[i] for i in features)
    for name, value in (("scale", scale), ("bias", bias), ("shift", shift)):
        if value is not None and jnp.shape(value) != shape:
            raise ValueError(
                f"batch_norm: {name} has shape {jnp.shape(value)}, but the input of shape {x.shape} "
                f"has features of shape {shape} (axis={axis}); give it that shape"
            )
    if residual is not None and jnp.shape(residual) != x.shape:
        raise ValueError(
            f"batch_norm: residual has shape {jnp.shape(residual)} and the input {x.shape}; they must be the same"
        )
    check_real(scale, bias, x, caller="batch_norm")
    if isinstance(epsilon, Tracer):
        raise ValueError(
            "batch_norm: epsilon must be a number, known when the function is traced; no gradient flows to it"
        )
    check_options(
        collective=collective,
        activation=activation,
        save_for_backward=save_for_backward,
        has_residual=residual is not None,
        scale=scale,
        caller="batch_norm",
    )
    if mask is not None:
        mask = check_mask(mask, x.shape, caller="batch_norm")
        # A replicated input under a mask that differs between devices is one that differs, to its derivative.
        x = vary_like(x, mask)
    participants = axis_size(axis_name, caller="batch_norm")
    pool = Pool(axis_name, check_groups(axis_index_groups, participants, caller="batch_norm"))
    if span is not None and 0 in features:
        raise ValueError(
            f"batch_norm: span={span} counts examples along axis 0, which is a feature axis here ({axis=})"
        )
    plan = plan_span(span, x.shape[0] if 0 not in features else 1, pool, caller="batch_norm")
    if dtype is None:
        dtype = jnp.result_type(*(a for a in (x, scale, bias, residual) if a is not None))

    scale = effective_scale(scale, save_for_backward)
    if shift is not None:
        shift = lax.stop_gradient(shift)
    options = (epsilon, plan.statistics, collective, activation, save_for_backward, jnp.dtype(dtype))
    if plan.per_device is None:
        y, statistics = _batch_norm(_Spec(features, *options), x, scale, bias, mask, shift, residual)
    else:
        arrays = cut_spans(plan.per_device, x, scale, bias, mask, shift, residual)
        y, statistics = _batch_norm(_Spec((0, *(f + 1 for f in features)), *options), *arrays)
        y = y.reshape(x.shape)
    mean = statistics.reference + statistics.offset
    return y, average_over_spans(plan, Moments(mean, statistics.var, statistics.count))


def effective_scale(scale: jax.Array | None, save_for_backward: str) -> jax.Array | None:
    """What multiplies in the place of `scale`: |scale| + 1e-5 where y is to be inverted."""
    return scale if scale is None or save_for_backward == "input" else jnp.abs(scale) + SCALE_FLOOR


class _Spec(NamedTuple):
    """What is known when the function is traced."""

    features: tuple[int, ...]
    epsilon: float
    pool: Pool
    collective: str
    activation: Activation | None
    save_for_backward: str
    dtype: jnp.dtype


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _batch_norm(spec: _Spec, x, scale, bias, mask, shift, residual):
    count = None if mask is not None else pool_size(spec.pool) * positions(x.shape, spec.features)
    statistics = _STATISTICS[spec.collective](x, mask, shift, features=spec.features, count=count, pool=spec.pool)
    y = _pre_activation(spec, x, statistics, scale, bias, residual)
    if spec.activation is not None:
        y = spec.activation(y)
    return y.astype(spec.dtype), statistics


def _pre_activation(spec: _Spec, x, statistics: Statistics, scale, bias, residual):
    """Scale (x - mean) / s + bias + residual, as a multiple of x - reference and a number a feature."""
    dtype = statistics_dtype(x.dtype)
    wide = partial(expand, features=spec.features, ndim=x.ndim)
    gain = _gain(spec, statistics, scale)
    constant = -gain * statistics.offset
    if bias is not None:
        constant = constant + bias
    y = wide(gain) * (x.astype(dtype) - wide(statistics.reference)) + wide(constant)
    return y if residual is None else y + residual.astype(dtype)


def _gain(spec: _Spec, statistics: Statistics, scale):
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
@_batch_norm.defjvp
def _batch_norm_jvp(spec: _Spec, primals, tangents):
    x, scale, bias, mask, _, residual = primals
    y, statistics = _batch_norm(spec, *primals)
    dx, dscale, dbias, _, _, dresidual = tangents
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


def _tangent(spec: _Spec, saved: _Saved, tangents):
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


def _through_activation(spec: _Spec, saved: _Saved, dy):
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
