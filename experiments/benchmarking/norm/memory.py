"""Measures the bytes that a layer keeps for its backward pass, and the memory of a compiled ResNet-50 train step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import msgspec
import optax

from batchnorm_jax.linen import BatchNorm

from ...compiled import hlo
from ...models.resnet import plain, resnet50
from ...records.benchmarks.norm import OURS, KeptBytes, Memory, NetworkMemory, Networks, ProgramMemory

FLAX = "flax"
NORMS: dict[str, Callable[..., Any]] = {
    OURS: BatchNorm,
    f"{OURS}, not fused": plain(BatchNorm),
    FLAX: plain(nn.BatchNorm),
    "flax_stable": plain(partial(nn.BatchNorm, use_fast_variance=False)),
}


def kept_bytes(name: str, fusion: str = "", dtype: str = "bfloat16") -> float:
    """Returns the bytes that one layer keeps for its backward pass, per element of the input.

    The result y counts only if the backward pass needs it.

    Args:
      name: a key of `NORMS`.
      fusion: the operations after the norm: "" (none), "relu" or "residual" (a ReLU of the sum); or "output" for
        `save_for_backward="output"`.
      dtype: the dtype of the input and the result.
    """
    x = jnp.ones((8, 32, 32, 64), dtype)
    extra: dict[str, Any] = {"save_for_backward": "output"} if fusion == "output" else {}
    if fusion in ("relu", "residual"):
        extra = {"activation": nn.relu}
    model = _Layer(partial(NORMS[name], dtype=jnp.dtype(dtype), **extra))
    variables = model.init(jax.random.key(0), x)

    def forward(params, x, residual):
        residual = residual if fusion == "residual" else None
        return model.apply({**variables, "params": params}, x, residual, mutable=["batch_stats"])[0]

    pullback = jax.vjp(forward, variables["params"], x, x + 1)[1]
    return sum(leaf.nbytes for leaf in jax.tree.leaves(pullback)) / x.size


class _Layer(nn.Module):
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, x, residual=None):
        return self.norm()(x, use_running_average=False, **({} if residual is None else {"residual": residual}))


def train_step(
    name: str, batch_size: int, image_size: int, axis_name: str | None = None, *, reduce_gradients: bool = True
):
    """Returns a ResNet-50 train step in bfloat16 with momentum SGD, and the shapes of its arguments.

    Args:
      name: a key of `NORMS`.
      batch_size: examples per device.
      image_size: the height and the width of the images.
      axis_name: the axis to reduce statistics over; None: statistics are not reduced.
      reduce_gradients: whether gradients are averaged over that axis.
    """
    dtype = jnp.dtype("bfloat16")
    model = resnet50(
        num_classes=1000, norm=partial(NORMS[name], momentum=0.9, dtype=dtype, axis_name=axis_name), dtype=dtype
    )
    optimizer = optax.sgd(0.1, momentum=0.9)
    images = jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), dtype)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    small = jnp.zeros((1, image_size, image_size, 3), dtype)
    variables = jax.eval_shape(lambda key: model.init(key, small, train=False), jax.random.key(0))
    state = (variables["params"], variables["batch_stats"], jax.eval_shape(optimizer.init, variables["params"]))

    def step(state, images, labels):
        params, stats, moments = state

        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updates["batch_stats"]

        (value, new_stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        if axis_name is not None and reduce_gradients:
            gradients = jax.lax.pmean(gradients, axis_name)
        changes, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, changes), new_stats, moments), value

    return step, (state, images, labels)


def resnet50_bytes(name: str, batch_size: int, image_size: int) -> ProgramMemory:
    """Returns the memory of a compiled train step."""
    step, arguments = train_step(name, batch_size, image_size)
    return hlo.memory(jax.jit(step, donate_argnums=0).lower(*arguments).compile())


def run(batch_size: int = 32, image_size: int = 224, memory_gib: float = 16.0) -> Memory:
    """Measures the kept bytes of one layer, and the memory of a ResNet-50 step relative to the step with Flax's norm.

    Args:
      batch_size: the examples of the ResNet-50 step.
      image_size: the height and the width of the step's images.
      memory_gib: the memory that the largest batch should fit into, in GiB; a line through two batch sizes gives it.
    """
    layer = [
        KeptBytes(name=name, fusion=fusion, bytes_an_element=kept_bytes(name, fusion))
        for fusion in ("", "relu", "residual", "output")
        # Only this library can keep the result in place of the input.
        for name in ((OURS,) if fusion == "output" else (OURS, FLAX))
    ]
    sizes = {name: resnet50_bytes(name, batch_size, image_size) for name in NORMS}
    rows = [
        NetworkMemory(
            name=name,
            **msgspec.structs.asdict(size),
            largest_batch=_largest_batch(name, batch_size, image_size, size.total, memory_gib),
            ratio_to_flax=size.temporary / sizes[FLAX].temporary,
        )
        for name, size in sizes.items()
    ]
    networks = Networks(batch_size=batch_size, image_size=image_size, memory_gib=memory_gib, rows=rows)
    return Memory(layer=layer, resnet50=networks)


def _largest_batch(name: str, batch_size: int, image_size: int, total: int, memory_gib: float) -> int:
    """Returns the largest batch that fits, by the line through the bytes of a batch and of half that batch."""
    half = resnet50_bytes(name, batch_size // 2, image_size).total
    per_example = (total - half) / (batch_size - batch_size // 2)
    return int((memory_gib * 2**30 - (total - per_example * batch_size)) / per_example)
