"""The collectives of one layer's train step, and of a ResNet-50's, counted in compiled programs on eight devices."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from batchnorm_jax import batch_norm
from experiments.benchmarking import hlo
from experiments.benchmarking.norm.memory import train_step

DEVICES = 8
FEATURES = 64
AXIS = "batch"


def run(image_size: int = 64) -> dict[str, Any]:
    """Counts in a process of its own, whose CPU shows eight devices.

    Args:
      image_size: of the ResNet-50; the collectives do not depend on it, the time to compile does.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _eight_devices) as pool:
        return pool.submit(_run, image_size).result()


def _eight_devices() -> None:
    os.environ["NPROC"] = str(2 * DEVICES)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)


def _run(image_size: int) -> dict[str, Any]:
    layer = []
    for transform in ("pmap", "shard_map", "shard_map, check_vma=False", "jit"):
        for norm in ("batchnorm_jax", "mean then variance"):
            found = hlo.collectives(layer_step(transform, norm))
            layer.append({"transform": transform, "name": norm, "collectives": [c._asdict() for c in found]})
    network = []
    for name in ("batchnorm_jax", "flax"):
        written = resnet50_step(name, image_size, reduce_gradients=False).as_text().count("stablehlo.all_reduce")
        compiled = hlo.collectives(resnet50_step(name, image_size, reduce_gradients=True).compile())
        network.append({"name": name, "of_norms_as_written": written, "all_as_compiled": len(compiled)})
    return {"features": FEATURES, "devices": DEVICES, "layer": layer, "resnet50": network}


def layer_step(transform: str, norm: str):
    """The compiled train step of one layer: gradients of x, scale and bias."""
    layer = _pooled if norm == "batchnorm_jax" else _mean_then_variance
    x = jnp.ones((DEVICES, 4, 8, 8, FEATURES))
    scale = jnp.ones(FEATURES)

    def step(axis_name, x, scale, bias):
        def loss(x, scale, bias):
            return jnp.sum(jnp.tanh(layer(x, scale, bias, axis_name)))

        return jax.grad(loss, (0, 1, 2))(x, scale, bias)

    mesh = jax.make_mesh((DEVICES,), (AXIS,), axis_types=(AxisType.Auto,))
    if transform == "pmap":
        mapped = jax.pmap(partial(step, AXIS), axis_name=AXIS, in_axes=(0, None, None))
        return mapped.lower(x, scale, scale).compile()
    whole = x.reshape(-1, *x.shape[2:])
    if transform == "jit":
        whole = jax.device_put(whole, NamedSharding(mesh, PartitionSpec(AXIS)))
        return jax.jit(partial(step, None)).lower(whole, scale, scale).compile()
    checked = transform == "shard_map"
    parameters = PartitionSpec() if checked else PartitionSpec(AXIS)
    mapped = jax.shard_map(
        partial(step, AXIS),
        mesh=mesh,
        in_specs=(PartitionSpec(AXIS), PartitionSpec(), PartitionSpec()),
        out_specs=(PartitionSpec(AXIS), parameters, parameters),
        check_vma=checked,
    )
    return jax.jit(mapped).lower(whole, scale, scale).compile()


def resnet50_step(name: str, image_size: int, *, reduce_gradients: bool):
    """A lowered ResNet-50 train step over eight devices under `shard_map`, two images a device."""
    step, (state, images, labels) = train_step(name, 2, image_size, axis_name=AXIS, reduce_gradients=reduce_gradients)
    mesh = jax.make_mesh((DEVICES,), (AXIS,), axis_types=(AxisType.Auto,))
    batch, same = PartitionSpec(AXIS), PartitionSpec()
    mapped = jax.shard_map(
        lambda *a: step(*a)[0],
        mesh=mesh,
        in_specs=(same, batch, batch),
        out_specs=same,
        check_vma=False,
    )
    images, labels = (jax.ShapeDtypeStruct((DEVICES * a.shape[0], *a.shape[1:]), a.dtype) for a in (images, labels))
    return jax.jit(mapped).lower(state, images, labels)


def _pooled(x, scale, bias, axis_name):
    return batch_norm(x, scale, bias, axis_name=axis_name)[0]


def _mean_then_variance(x, scale, bias, axis_name):
    """Synchronises twice, first the mean and then the variance about it, and leaves the derivative to JAX."""

    def pooled(values):
        mean = jnp.mean(values, axis=tuple(range(values.ndim - 1)), keepdims=True)
        return mean if axis_name is None else lax.pmean(mean, axis_name)

    centred = x - pooled(x)
    wide = (1,) * (x.ndim - 1) + scale.shape
    return centred * lax.rsqrt(pooled(lax.square(centred)) + 1e-5) * scale.reshape(wide) + bias.reshape(wide)
