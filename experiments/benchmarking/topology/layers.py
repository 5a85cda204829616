"""One layer's train step, lowered for devices that this machine lacks."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ...records.benchmarks.topology import Figures, LayerJob
from .jobs import AXIS, VARIANTS, read


class _Layer(nn.Module):
    job: LayerJob

    @nn.compact
    def __call__(self, x, residual):
        options: dict[str, Any] = {"activation": nn.relu} if self.job.fusion else {}
        norm = VARIANTS[self.job.variant].norm(momentum=0.9, dtype=x.dtype, axis_name=AXIS, **options)
        arrays = {} if residual is None else {"residual": residual}
        return norm(x, use_running_average=False, **arrays)


def figures(job: LayerJob, mesh: Mesh) -> Figures:
    """Compiles a layer's train step under `shard_map(check_vma=True)` and returns the figures of the program.

    Args:
      job: the layer to compile.
      mesh: the mesh over the devices to compile for.
    """
    dtype = jnp.dtype(job.dtype)
    return read(lower(job, mesh), math.prod(job.shape), 8 * dtype.itemsize)


def lower(job: LayerJob, mesh: Mesh) -> Any:
    """Returns the lowered step: (variables, x, residual, cotangent of y) -> (y, statistics, gradients)."""
    layer = _Layer(job)

    def step(variables, x, residual, dy):
        params, state = variables.get("params", {}), variables.get("batch_stats", {})

        def forward(params, x, residual):
            variables = {"params": params, "batch_stats": state}
            y, updates = layer.apply(variables, x, residual, mutable=["batch_stats"])
            return y, updates

        y, pullback, updates = jax.vjp(forward, params, x, residual, has_aux=True)
        # The barrier makes y come before its cotangent, as in a network.
        y, dy = lax.optimization_barrier((y, dy))
        d_params, dx, d_residual = pullback(dy)
        # Without a norm, dx and d_residual are one array; returning it twice would add a copy to the program.
        return y, updates, (d_params, dx, d_residual if VARIANTS[job.variant].has_norm else None)

    replicated, cut = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(replicated, cut, cut, cut),
        out_specs=(cut, replicated, (replicated, cut, cut)),
        check_vma=True,
    )
    whole = (mesh.size * job.shape[0], *job.shape[1:])
    x = jax.ShapeDtypeStruct(whole, job.dtype, sharding=NamedSharding(mesh, cut))
    residual = x if job.fusion == "residual" else None
    small = jnp.zeros((1,) * len(job.shape[:-1]) + job.shape[-1:], job.dtype)
    made = jax.eval_shape(lambda key: layer.init(key, small, residual and small), jax.random.key(0))
    variables = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, replicated)), made
    )
    return jax.jit(mapped).lower(variables, x, residual, x)
