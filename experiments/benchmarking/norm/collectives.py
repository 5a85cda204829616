"""Counts and times the collectives of a train step on eight devices, for one layer and for a ResNet-50."""

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

from ...compiled import hlo
from ...records.benchmarks.norm import (
    OURS,
    Collectives,
    LayerCollectives,
    NetworkCollectives,
    SynchronisingTime,
)
from .. import timing
from .memory import FLAX, train_step

DEVICES = 8
FEATURES = 64
AXIS = "batch"
# The norms of one layer: this library's, which synchronises once; a norm that synchronises the mean and then the
# variance; and this library's without synchronisation.
ONCE, TWICE, ALONE = OURS, "mean then variance", "each device alone"


def run(image_size: int = 64, *, rounds: int = 9, seconds: float = 0.5) -> Collectives:
    """Counts and times collectives in a separate process, whose CPU is split into eight devices.

    Args:
      image_size: the image size of the ResNet-50; the collectives do not depend on it, but the compilation time does.
      rounds: the number of timings of each norm.
      seconds: the approximate duration of one timing.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _eight_devices) as pool:
        return pool.submit(_run, image_size, rounds, seconds).result()


def _eight_devices() -> None:
    os.environ["NPROC"] = str(2 * DEVICES)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    # Steps that are dispatched ahead can make the devices of one CPU wait for each other forever.
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def _run(image_size: int, rounds: int, seconds: float) -> Collectives:
    layer = [
        LayerCollectives(transform=transform, name=norm, collectives=hlo.collectives(layer_step(transform, norm)[0]))
        for transform in ("pmap", "shard_map", "shard_map, check_vma=False", "jit")
        for norm in (ONCE, TWICE)
    ]
    network = []
    for name in (OURS, FLAX):
        written = resnet50_step(name, image_size, reduce_gradients=False).as_text().count("stablehlo.all_reduce")
        compiled = hlo.collectives(resnet50_step(name, image_size, reduce_gradients=True).compile())
        network.append(NetworkCollectives(name=name, of_norms_as_written=written, all_as_compiled=len(compiled)))
    time = synchronising_time(rounds=rounds, seconds=seconds)
    return Collectives(features=FEATURES, devices=DEVICES, layer=layer, time=time, resnet50=network)


def synchronising_time(*, rounds: int, seconds: float) -> SynchronisingTime:
    """Times a layer's train step under `shard_map` with each norm, and compares each with synchronising once."""
    variants = {norm: partial(_steps, *layer_step("shard_map", norm)) for norm in (ONCE, TWICE, ALONE)}
    measured = timing.in_turn(variants, rounds=rounds, seconds=seconds)
    return SynchronisingTime(
        milliseconds=timing.milliseconds(measured),
        ratio_to_once={norm: timing.ratios(measured, norm, ONCE) for norm in (TWICE, ALONE)},
    )


def _steps(compiled, arguments, number: int) -> None:
    for _ in range(number):
        jax.block_until_ready(compiled(*arguments))


def layer_step(transform: str, norm: str) -> tuple[Any, tuple[jax.Array, ...]]:
    """Returns the compiled train step of one layer, which gives gradients of x, scale and bias, and its arguments."""
    layer = {ONCE: _pooled, TWICE: _mean_then_variance, ALONE: _alone}[norm]
    x = jnp.ones((DEVICES, 4, 8, 8, FEATURES))
    scale = jnp.ones(FEATURES)

    def step(axis_name, x, scale, bias):
        def loss(x, scale, bias):
            return jnp.sum(jnp.tanh(layer(x, scale, bias, axis_name)))

        return jax.grad(loss, (0, 1, 2))(x, scale, bias)

    mesh = jax.make_mesh((DEVICES,), (AXIS,), axis_types=(AxisType.Auto,))
    if transform == "pmap":
        mapped = jax.pmap(partial(step, AXIS), axis_name=AXIS, in_axes=(0, None, None))
        return mapped.lower(x, scale, scale).compile(), (x, scale, scale)
    whole = x.reshape(-1, *x.shape[2:])
    if transform == "jit":
        whole = jax.device_put(whole, NamedSharding(mesh, PartitionSpec(AXIS)))
        return jax.jit(partial(step, None)).lower(whole, scale, scale).compile(), (whole, scale, scale)
    checked = transform == "shard_map"
    parameters = PartitionSpec() if checked else PartitionSpec(AXIS)
    mapped = jax.shard_map(
        partial(step, AXIS),
        mesh=mesh,
        in_specs=(PartitionSpec(AXIS), PartitionSpec(), PartitionSpec()),
        out_specs=(PartitionSpec(AXIS), parameters, parameters),
        check_vma=checked,
    )
    cut, same = (NamedSharding(mesh, spec) for spec in (PartitionSpec(AXIS), PartitionSpec()))
    arguments = tuple(jax.device_put((whole, scale, scale), (cut, same, same)))
    return jax.jit(mapped).lower(*arguments).compile(), arguments


def resnet50_step(name: str, image_size: int, *, reduce_gradients: bool):
    """Returns a lowered ResNet-50 train step under `shard_map` on eight devices, with two images per device."""
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


def _alone(x, scale, bias, axis_name):
    del axis_name
    return batch_norm(x, scale, bias)[0]


def _mean_then_variance(x, scale, bias, axis_name):
    """Normalises with two synchronisations, of the mean and of the variance about it, and JAX's own derivative."""

    def pooled(values):
        mean = jnp.mean(values, axis=tuple(range(values.ndim - 1)), keepdims=True)
        return mean if axis_name is None else lax.pmean(mean, axis_name)

    centred = x - pooled(x)
    wide = (1,) * (x.ndim - 1) + scale.shape
    return centred * lax.rsqrt(pooled(lax.square(centred)) + 1e-5) * scale.reshape(wide) + bias.reshape(wide)
