"""One training step and one evaluation step, over the devices of a mesh."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from batchnorm_jax.linen import BatchNorm
from experiments._errors import unknown_name
from experiments.training.devices import AXIS

NORMS = ("batch", "local", "none")


class TrainState(NamedTuple):
    """Everything that the next step depends on, the order of the data aside, which is a function of seed and step."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


class Resident(NamedTuple):
    """A split that lives on every device.

    Attributes:
      images: uint8, shape (n, height, width, channels).
      labels: int32, shape (n,).
      mean: what a pixel has subtracted from it, of its value from 0 to 1; shape (channels,).
      std: what it is divided by then; shape (channels,).
    """

    images: jax.Array
    labels: jax.Array
    mean: jax.Array
    std: jax.Array


def make_norm(name: str, momentum: float):
    """The norm that a model is given: a factory of modules, or None.

    Raises:
      UsageError: there is no such norm.
    """
    if name not in NORMS:
        raise unknown_name("norm", name, NORMS)
    if name == "none":
        return None
    axis_name = AXIS if name == "batch" else None
    return lambda axis: BatchNorm(axis=axis, momentum=momentum, axis_name=axis_name)


def init_state(model: nn.Module, optimizer: optax.GradientTransformation, image_shape, seed: int) -> TrainState:
    """The state before the first step; a function of the seed, whatever the devices."""
    images = jnp.zeros((1, *image_shape), jnp.float32)
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(seed))
    params = variables["params"]
    return TrainState(
        jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), jax.jit(optimizer.init)(params)
    )


def train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    *,
    label_smoothing: float = 0.0,
    masked: bool = False,
    local_statistics: bool = False,
):
    """Makes the training step: (state, data, order, mask) -> (state, metrics).

    `order` holds the indices of an epoch's batches, shape (updates per epoch, global batch size), cut over the devices
    along the batch, as does `mask`, which says which of them count and is not read unless `masked`. The
    step reads row `state.step` modulo the updates per epoch.

    The loss is the mean over the global batch, and the result depends on nothing else: the same batch
    over more devices gives the same step, to rounding. `metrics` are the loss, the accuracy and the learning rate.
    With `local_statistics` each device's norms update running statistics of their own, and their mean is kept.
    """

    def local_step(state: TrainState, data: Resident, order, mask):
        row = state.step % order.shape[0]
        indices = order[row]
        counts = mask[row] if masked else None
        labels = data.labels[indices]
        total = jnp.float32(order.shape[1] * mesh.size)
        if counts is not None:
            total = lax.psum(jnp.sum(counts, dtype=jnp.float32), AXIS)

        def loss_and_rest(params):
            logits, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                _images(data, indices),
                train=True,
                mask=counts,
                mutable=["batch_stats"],
            )
            targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
            losses = optax.softmax_cross_entropy(logits, targets)
            correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
            if counts is not None:
                losses, correct = jnp.where(counts, losses, 0), jnp.where(counts, correct, 0)
            return jnp.sum(losses) / total, (jnp.sum(correct) / total, updates.get("batch_stats", {}))

        # Parameters that count as each device's own leave the gradients to be added up here, at once. Else each
        # would be added up where it is first used, which for a convolution on a CPU is on a four times larger array.
        params = jax.tree.map(lambda p: lax.pcast(p, AXIS, to="varying"), state.params)
        (loss, (accuracy, batch_stats)), grads = jax.value_and_grad(loss_and_rest, has_aux=True)(params)
        grads, loss, accuracy = lax.psum((grads, loss, accuracy), AXIS)
        if local_statistics:
            batch_stats = lax.pmean(batch_stats, AXIS)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {"loss": loss, "accuracy": accuracy, "learning_rate": jnp.asarray(schedule(state.step), jnp.float32)}
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    whole, cut = PartitionSpec(), PartitionSpec(None, AXIS)
    mapped = jax.shard_map(local_step, mesh=mesh, in_specs=(whole, whole, cut, cut), out_specs=whole)
    return jax.jit(mapped, donate_argnums=0)


def eval_step(model: nn.Module, mesh: Mesh):
    """Makes the evaluation step: (params, batch_stats, data, indices, mask) -> sums.

    `indices` and `mask`, of shape (batch size,), are cut over the devices. The sums are those of the loss, of the right
    answers and of the examples that count, each example once.
    """

    def local_step(params, batch_stats, data: Resident, indices, mask):
        labels = data.labels[indices]
        variables = {"params": params, "batch_stats": batch_stats}
        logits: Any = model.apply(variables, _images(data, indices), train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = jnp.argmax(logits, axis=-1) == labels
        sums = jnp.stack([jnp.sum(jnp.where(mask, v, 0), dtype=jnp.float32) for v in (losses, correct, mask)])
        loss, correct, count = lax.psum(sums, AXIS)
        return {"loss": loss, "correct": correct, "count": count}

    whole, cut = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(local_step, mesh=mesh, in_specs=(whole, whole, whole, cut, cut), out_specs=whole)
    return jax.jit(mapped)


def _images(data: Resident, indices) -> jax.Array:
    pixels = data.images[indices].astype(jnp.float32) / 255
    wide = (1, 1, 1, -1)
    return (pixels - data.mean.reshape(wide)) / data.std.reshape(wide)
