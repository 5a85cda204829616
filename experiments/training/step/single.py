"""The plain training step and the evaluation step, over the devices of a mesh."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from batchnorm_jax.linen import synchronize

from ..machine.devices import AXIS
from ..recipe.augmentation import augment
from ..recipe.averaging import Momentum, averaged
from ..state import Batch, Descent, Indexed, Recipe, Source, TrainState
from . import carries, sharing

REPLICATED, SHARDED = PartitionSpec(), PartitionSpec(AXIS)


def init_state(model: nn.Module, optimizer: Any, image_shape, seed: int) -> TrainState:
    """Returns the state before the first step, which depends on the seed but not on the devices."""
    images = jnp.zeros((1, *image_shape), jnp.float32)
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(seed))
    # `nn.with_partitioning` boxes its parameters, and the boxes mean nothing here: every device holds all parameters.
    variables = nn.meta.unbox(variables)
    params = variables["params"]
    return TrainState(
        jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), jax.jit(optimizer.init)(params)
    )


def specs(source: Source) -> Any:
    """Returns the partition specs of a source's arrays, for `shard_map`."""
    if isinstance(source, Batch):
        return Batch(SHARDED, SHARDED, SHARDED)
    return Indexed(REPLICATED, REPLICATED, PartitionSpec(None, AXIS), PartitionSpec(None, AXIS), REPLICATED)


def pick(source: Source, row: jax.Array | int) -> Batch:
    """Returns this device's part of a batch: row `row` of an `Indexed` source, or a `Batch` as it is."""
    if isinstance(source, Batch):
        return source
    indices = source.order[row]
    mask = None if source.mask is None else source.mask[row]
    return Batch(source.images[indices], source.labels[indices], mask)


def losses_of(
    model: nn.Module,
    recipe: Recipe,
    params,
    batch_stats,
    batch: Batch,
    key: jax.Array,
    momentum: jax.Array | None = None,
):
    """Computes the losses and the new statistics of one training forward pass on this device.

    Args:
      model: the model to run.
      recipe: settings of the forward pass.
      params: parameters of the model.
      batch_stats: the running statistics.
      batch: this device's part of the batch.
      key: the random key of the augmentation and of the model's own random numbers.
      momentum: momentum of the running statistics; None: the statistics of the batch replace them.

    Returns:
      For each of this device's n examples its loss and its share of correct predictions, both of shape (n,) and 0
      where the example does not count; and the new running statistics.
    """
    n = batch.labels.shape[0]
    first, total = lax.axis_index(AXIS) * n, lax.axis_size(AXIS) * n
    images = augment(recipe.augmentation, batch.images, key, first, total)
    # Each device draws for its own examples, so its dropout masks differ from those of the others.
    drawn = {"params": jax.random.fold_in(key, lax.axis_index(AXIS))}

    def forward(params):
        with _as_ours(recipe), averaged(momentum), carries.per_device():
            logits, updates = model.apply(
                {"params": params, "batch_stats": batch_stats},
                standardised(images, recipe),
                train=True,
                mask=batch.mask,
                rngs=drawn,
                mutable=["batch_stats"],
            )
        # Flax returns only the collections that were written to.
        return logits, updates.get("batch_stats", batch_stats)

    logits, new_stats = forward(params)
    # A user's model may return logits in its compute dtype, such as bfloat16, which would round the mean loss.
    logits = logits.astype(jnp.float32)
    targets = optax.smooth_labels(jax.nn.one_hot(batch.labels, recipe.num_classes), recipe.label_smoothing)
    losses = per_example(optax.softmax_cross_entropy(logits, targets))
    correct = per_example((jnp.argmax(logits, axis=-1) == batch.labels).astype(jnp.float32))
    if batch.mask is not None:
        losses, correct = jnp.where(batch.mask, losses, 0), jnp.where(batch.mask, correct, 0)
    if recipe.local_statistics or lax.axis_size(AXIS) == 1:
        # An integer, such as a count of steps, is equal on every device already.
        new_stats = jax.tree.map(
            lambda a: lax.pmean(a, AXIS) if jnp.issubdtype(a.dtype, jnp.floating) else a, new_stats
        )
    else:
        new_stats = sharing.shared(new_stats, lambda common: forward(common)[1], params)
    return losses, correct, new_stats


def _as_ours(recipe: Recipe) -> contextlib.AbstractContextManager:
    """Returns a context in which norms that the model builds itself pool as the norm passed to its factory does."""
    if not recipe.own_norms:
        return contextlib.nullcontext()
    return synchronize(None if recipe.local_statistics else AXIS, span=recipe.span)


def device_varying(params):
    """Returns the parameters marked as varying over the devices, so that gradients are reduced together, at the end.

    Otherwise JAX would reduce each gradient where its parameter is first used, which for a convolution on a CPU is on
    an array four times larger.
    """
    return jax.tree.map(lambda p: lax.pcast(p, AXIS, to="varying"), params)


def examples_in(batch: Batch) -> jax.Array:
    """Returns the number of examples of the global batch that count."""
    if batch.mask is None:
        return jnp.float32(batch.labels.shape[0] * lax.axis_size(AXIS))
    return lax.psum(jnp.sum(batch.mask, dtype=jnp.float32), AXIS)


def step_key(recipe: Recipe, step: jax.Array, part: jax.Array | int = 0) -> jax.Array:
    """Returns the random key of the forward pass over one part (such as a micro-batch) of an update."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), step), part)


def update(descent: Descent, peak: jax.Array, state: TrainState, grads, batch_stats, loss, accuracy):
    """Returns the state after one update by the optimizer, and the metrics of the step."""
    updates, opt_state = descent.optimizer(peak).update(grads, state.opt_state, state.params)
    rate = jnp.asarray(descent.schedule(peak)(state.step), jnp.float32)
    metrics = {"loss": loss, "accuracy": accuracy, "learning_rate": rate}
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), batch_stats, opt_state), metrics


def train_step(model: nn.Module, descent: Descent, mesh: Mesh, recipe: Recipe, momentum: Momentum):
    """Returns the training step: (state, source, peak learning rate) -> (state, metrics).

    The loss is the mean over the examples of the global batch that count, and the result depends on nothing else: the
    same batch over more devices gives the same step, to rounding. The metrics are the loss, the accuracy and the
    learning rate.

    Args:
      model: the model to train.
      descent: the optimizer and schedule.
      mesh: the devices.
      recipe: settings of the forward pass.
      momentum: momentum of the running statistics.
    """

    def local_step(state: TrainState, source: Source, peak: jax.Array):
        batch = pick(source, state.step - source.first if isinstance(source, Indexed) else 0)
        total = examples_in(batch)

        def loss_and_rest(params):
            key = step_key(recipe, state.step)
            losses, correct, batch_stats = losses_of(
                model, recipe, params, state.batch_stats, batch, key, momentum.after(state.step)
            )
            return jnp.sum(losses) / total, (jnp.sum(correct) / total, batch_stats)

        (loss, (accuracy, batch_stats)), grads = jax.value_and_grad(loss_and_rest, has_aux=True)(
            device_varying(state.params)
        )
        grads, loss, accuracy = lax.psum((grads, loss, accuracy), AXIS)
        return update(descent, peak, state, grads, batch_stats, loss, accuracy)

    def step(state: TrainState, source: Source, peak: jax.Array):
        mapped = jax.shard_map(
            local_step, mesh=mesh, in_specs=(REPLICATED, specs(source), REPLICATED), out_specs=REPLICATED
        )
        return mapped(state, source, peak)

    return jax.jit(step, donate_argnums=0)


def eval_step(model: nn.Module, mesh: Mesh, recipe: Recipe):
    """Returns the evaluation step: (params, batch_stats, source, row) -> sums over the examples that count.

    The sums, by name, are `loss` (losses), `correct` (shares of correct predictions) and `count` (examples). With one
    label per pixel there are two more, of shape (classes,): `intersection` counts the pixels whose label and prediction
    are both that class, `union` those whose label or prediction is.

    Args:
      model: the model to evaluate.
      mesh: the devices.
      recipe: settings of the forward pass.
    """

    def local_step(params, batch_stats, source: Source, row):
        batch = pick(source, row)
        variables = {"params": params, "batch_stats": batch_stats}
        with carries.per_device():
            logits: Any = model.apply(variables, standardised(batch.images, recipe), train=False)
        logits = logits.astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        predicted = jnp.argmax(logits, axis=-1)
        counts = jnp.ones(batch.labels.shape[:1], bool) if batch.mask is None else batch.mask

        def total(values):
            return jnp.sum(jnp.where(counts, per_example(values), 0), dtype=jnp.float32)

        sums = {"loss": total(losses), "correct": total(predicted == batch.labels), "count": total(counts)}
        if batch.labels.ndim > 1:
            seen = counts[:, None, None, None]
            labelled = jax.nn.one_hot(batch.labels, recipe.num_classes, dtype=bool) & seen
            found = jax.nn.one_hot(predicted, recipe.num_classes, dtype=bool) & seen
            over = tuple(range(batch.labels.ndim))
            sums["intersection"] = jnp.sum(labelled & found, axis=over, dtype=jnp.float32)
            sums["union"] = jnp.sum(labelled | found, axis=over, dtype=jnp.float32)
        return lax.psum(sums, AXIS)

    def step(params, batch_stats, source: Source, row):
        in_specs = (REPLICATED, REPLICATED, specs(source), REPLICATED)
        return jax.shard_map(local_step, mesh=mesh, in_specs=in_specs, out_specs=REPLICATED)(
            params, batch_stats, source, row
        )

    return jax.jit(step)


def standardised(images: jax.Array, recipe: Recipe) -> jax.Array:
    """Standardises pixels of 0 to 255 by the mean and standard deviation of each channel in the training set."""
    wide = (1, 1, 1, -1)
    return (images.astype(jnp.float32) / 255 - recipe.mean.reshape(wide)) / recipe.std.reshape(wide)


def per_example(values: jax.Array) -> jax.Array:
    """Returns one value per example: the mean over its pixels where there is one value per pixel."""
    return (
        values.astype(jnp.float32)
        if values.ndim == 1
        else jnp.mean(values, axis=range(1, values.ndim), dtype=jnp.float32)
    )
