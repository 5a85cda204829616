"""A ResNet-50's train step, lowered for devices that this machine lacks."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ...models.resnet import resnet50
from ...records.benchmarks.topology import Figures, NetworkJob
from .jobs import AXIS, VARIANTS, policy, read

CLASSES = 1000


def figures(job: NetworkJob, mesh: Mesh) -> Figures:
    """Compiles a ResNet-50's train step under `shard_map(check_vma=True)` and returns the figures of the program.

    Args:
      job: the network to compile.
      mesh: the mesh over the devices to compile for.
    """
    step, arguments = train_step(job, mesh)
    return read(step.lower(*arguments))


def train_step(job: NetworkJob, mesh: Mesh) -> tuple[Any, tuple[Any, ...]]:
    """Returns the jitted step, (state, images, labels) -> (new state, loss), which donates state; and its arguments."""
    variant, dtype = VARIANTS[job.variant], jnp.dtype("bfloat16")
    options: dict[str, Any] = {}
    if variant.policy and job.remat == "parts":
        options["part_policy"] = policy()
    norm = partial(variant.norm, momentum=0.9, dtype=dtype, axis_name=AXIS if variant.pooled else None)
    if variant.span_devices is not None:
        norm = partial(norm, span=variant.span_devices * job.batch_size)
    model = resnet50(
        num_classes=CLASSES,
        norm=norm,
        dtype=dtype,
        **options,
    )
    optimizer = optax.sgd(0.1, momentum=0.9)

    def apply(params, stats, images):
        variables = {"params": params, "batch_stats": stats}
        logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits, updates.get("batch_stats", {})

    if variant.policy and job.remat == "whole":
        apply = jax.checkpoint(apply, policy=policy())

    def step(state, images, labels):
        params, stats, momentum = state

        def loss(params):
            logits, new_stats = apply(params, stats, images)
            local = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            # JAX reduces the gradient over devices, because the loss is a mean over them.
            return lax.pmean(local, AXIS), new_stats

        (value, new_stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        changes, momentum = optimizer.update(gradients, momentum, params)
        return (optax.apply_updates(params, changes), new_stats, momentum), value

    replicated, cut = PartitionSpec(), PartitionSpec(AXIS)
    # Without pooling, running statistics differ between devices.
    new_state = (replicated, replicated if variant.pooled else cut, replicated)
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(replicated, cut, cut), out_specs=(new_state, replicated), check_vma=True
    )

    def sharded(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    image = (job.image_size, job.image_size, 3)
    made = jax.eval_shape(lambda k: model.init(k, jnp.zeros((1, *image), dtype), train=False), jax.random.key(0))
    params, stats = made["params"], made.get("batch_stats", {})
    state = (params, stats, jax.eval_shape(optimizer.init, params))
    state = jax.tree.map(lambda a: sharded(a.shape, a.dtype, replicated), state)
    examples = mesh.size * job.batch_size
    images, labels = sharded((examples, *image), dtype, cut), sharded((examples,), jnp.int32, cut)
    return jax.jit(mapped, donate_argnums=0), (state, images, labels)
