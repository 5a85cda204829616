"""The examples that are normalised together: spans inside a device, or groups of devices."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from batchnorm_jax._arrays import from_real_parts, promoted, real_parts
from batchnorm_jax._collectives import Pool, fused_sum, pool_size, vary_like
from batchnorm_jax._moments import Moments
from batchnorm_jax._operands import Operands
from batchnorm_jax._options import NormOptions
from batchnorm_jax.typing import Groups

# The weight of a span without a position, beside 1: it counts only where every span is empty.
EMPTY_SPAN_WEIGHT = 1e-20


class SpanPlan(NamedTuple):
    """The way that a span is realised.

    Attributes:
      per_device: the number of spans that a device's examples are cut into; None: they are not cut.
      statistics: the devices that pool the statistics which normalise.
      average: the devices over which the spans' moments are averaged for the running statistics; None where the pooled
        moments are those already.
    """

    per_device: int | None
    statistics: Pool
    average: Pool | None


def plan_span(options: NormOptions, examples: int) -> SpanPlan:
    """Plans how the pool's examples are cut into spans, contiguous in the global order.

    Args:
      options: with the span and the devices that may be pooled.
      examples: the number of examples per device.

    Raises:
      ValueError: no split of devices and examples gives such spans; the message lists those that work.
    """
    span, pool, caller = options.span, options.pool, options.caller
    devices = pool_size(pool)
    if span is not None and (isinstance(span, bool) or not isinstance(span, int | np.integer)):
        raise ValueError(f"{caller}: span={span!r} must be a whole number of examples, or None for all")
    if span is None or span == devices * examples:
        return SpanPlan(None, pool, None)
    if span > 0 and examples % span == 0:
        return SpanPlan(examples // span, Pool(), pool)
    if span > 0 and span % examples == 0 and devices % (span // examples) == 0:
        return SpanPlan(None, Pool(pool.axis_name, _cut_groups(pool, devices, span // examples)), pool)
    inside = [s for s in range(1, examples + 1) if examples % s == 0]
    across = [examples * k for k in range(2, devices + 1) if devices % k == 0]
    raise ValueError(
        f"{caller}: span={span} does not divide the {devices * examples} examples ({devices} "
        f"device{'s' if devices > 1 else ''} x {examples}); spans that work here: "
        f"{', '.join(map(str, inside + across))}."
    )


def _cut_groups(pool: Pool, devices: int, size: int) -> Groups:
    """Cuts every group of the pool into groups of `size` devices."""
    whole = pool.groups or (tuple(range(devices)),)
    return tuple(tuple(group[i : i + size]) for group in whole for i in range(0, devices, size))


def within_spans(options: NormOptions, plan: SpanPlan) -> NormOptions:
    """Returns the options of the statistics inside a span: its devices and, where examples are cut, its axes."""
    features = options.features if plan.per_device is None else (0, *(f + 1 for f in options.features))
    return options.replace(
        axis=features,
        axis_name=plan.statistics.axis_name,
        axis_index_groups=plan.statistics.groups,
        span=None,
    )


def cut_spans(spans: int, given: Operands) -> Operands:
    """Returns every array with a new leading axis over a device's spans: one more feature axis."""
    x, scale, bias, mask, shift, residual, correction = given
    if correction is not None:
        mean, var = (jnp.expand_dims(a, 0) for a in (correction.mean, correction.var))
        correction = correction._replace(mean=mean, var=var)
    if scale is not None or bias is not None:
        # Cast together, so that the backward pass takes one psum for both, and before they are copied for each span.
        parameters = [a for a in (scale, bias) if a is not None]
        wide = vary_like(jnp.stack([a.astype(promoted(*parameters)) for a in parameters]), x)
        rows = [row.astype(a.dtype) for row, a in zip(wide, parameters, strict=True)]
        scale = rows[0] if scale is not None else None
        bias = rows[-1] if bias is not None else None
    scale, bias, shift = (
        None if a is None else jnp.broadcast_to(a[None], (spans, *a.shape)) for a in (scale, bias, shift)
    )

    spec = jax.typeof(x).sharding.spec
    if spec and spec[0] is not None:
        names = spec[0] if isinstance(spec[0], tuple) else (spec[0],)
        shards = math.prod(jax.typeof(x).sharding.mesh.shape[name] for name in names)
        if spans % shards:
            raise ValueError(
                f"batch_norm: {spans} spans cannot be cut from {shards} shards along an Explicit mesh axis, since a "
                "span would cross them; make the mesh with axis_types=(jax.sharding.AxisType.Auto,), or run inside "
                "jax.shard_map with axis_name"
            )

    def cut(a: jax.Array) -> jax.Array:
        return a.reshape(spans, -1, *a.shape[1:])

    if mask is not None and mask.shape[0] == 1:
        mask = jnp.broadcast_to(mask, (x.shape[0], *mask.shape[1:]))
    mask, residual = (None if a is None else cut(a) for a in (mask, residual))
    return Operands(cut(x), scale, bias, mask, shift, residual, correction)


def average_over_spans(plan: SpanPlan, moments: Moments) -> Moments:
    """Returns the mean, over all spans that have a position, of each span's mean, variance and count."""
    if plan.average is None:
        return moments
    mean, var, count = moments if plan.per_device else jax.tree.map(lambda a: a[None], moments)
    count = jnp.broadcast_to(count.reshape(count.shape + (1,) * (var.ndim - count.ndim)), var.shape)
    # The mean of an empty span is the shift, which is the result where all spans are empty.
    weight = jnp.where(count > 0, 1, EMPTY_SPAN_WEIGHT).astype(var.dtype)
    parts = (*real_parts(mean), var, count, jnp.ones_like(var))
    sums = fused_sum([jnp.sum(weight * a, axis=0) for a in parts], plan.average)
    *means, var, count = (total / sums[-1] for total in sums[:-1])
    return Moments(from_real_parts(means), var, count)
