"""Which examples are normalised together: spans inside a device, or groups of devices."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from batchnorm_jax._collectives import Groups, Pool, fused_sum, pool_size, vary_like
from batchnorm_jax._moments import Moments, promoted


class SpanPlan(NamedTuple):
    """How a span is realised.

    Attributes:
      per_device: the number of spans that a device's examples are cut into; None: not cut.
      statistics: who pools the statistics that normalise.
      average: over whom the spans' moments are averaged for the running statistics; None where the pooled moments
        are those already.
    """

    per_device: int | None
    statistics: Pool
    average: Pool | None


def plan_span(span: int | None, examples: int, pool: Pool, *, caller: str) -> SpanPlan:
    """Cuts the pool's examples into spans, contiguous in the global order.

    Args:
      span: the number of examples that are normalised together; None: all of the pool's.
      examples: of one device.
      pool: all who may be pooled.
      caller: for the message.

    Raises:
      ValueError: no split of devices and examples gives such spans; the message lists those that work.
    """
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
    whole = pool.groups or (tuple(range(devices)),)
    return tuple(group[i : i + size] for group in whole for i in range(0, devices, size))


def cut_spans(spans: int, x, scale, bias, mask, shift, residual) -> list:
    """Every array with a new leading axis over a device's spans: one more feature axis."""
    if scale is not None or bias is not None:
        # Cast together, so that the backward pass takes one psum for both, and before they are copied for each span.
        given = [a for a in (scale, bias) if a is not None]
        wide = vary_like(jnp.stack([a.astype(promoted(*given)) for a in given]), x)
        rows = [row.astype(a.dtype) for row, a in zip(wide, given, strict=True)]
        scale = rows[0] if scale is not None else None
        bias = rows[-1] if bias is not None else None
    per_span = [None if a is None else jnp.broadcast_to(a[None], (spans, *a.shape)) for a in (scale, bias, shift)]

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

    def cut(a):
        return None if a is None else a.reshape(spans, -1, *a.shape[1:])

    if mask is not None and mask.shape[0] == 1:
        mask = jnp.broadcast_to(mask, (x.shape[0], *mask.shape[1:]))
    return [cut(x), *per_span[:2], cut(mask), per_span[2], cut(residual)]


def average_over_spans(plan: SpanPlan, moments: Moments) -> Moments:
    """The mean over all spans that have a position, of each one's mean, variance and count."""
    if plan.average is None:
        return moments
    mean, var, count = moments if plan.per_device else jax.tree.map(lambda a: a[None], moments)
    count = jnp.broadcast_to(count.reshape(count.shape + (1,) * (var.ndim - count.ndim)), var.shape)
    # An empty span has the shift for its mean, which is what is left where all are empty.
    weight = jnp.where(count > 0, 1, 1e-20).astype(var.dtype)
    means = [mean.real, mean.imag] if jnp.iscomplexobj(mean) else [mean]
    sums = fused_sum([jnp.sum(weight * a, axis=0) for a in (*means, var, count, jnp.ones_like(var))], plan.average)
    *means, var, count = (total / sums[-1] for total in sums[:-1])
    return Moments(lax.complex(*means) if len(means) == 2 else means[0], var, count)
