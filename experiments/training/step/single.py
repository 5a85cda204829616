"""One training step and one evaluation step, over the devices of a mesh."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from batchnorm_jax.linen import synchronize
from experiments.training.machine.devices import AXIS
from experiments.training.recipe.augmentation import augment
from experiments.training.recipe.averaging import Momentum, averaged
from experiments.training.state import Batch, Descent, Indexed, Recipe, Source, TrainState
from experiments.training.step import carries, sharing

WHOLE, CUT = PartitionSpec(), PartitionSpec(AXIS)


def init_state(model: nn.Module, optimizer: Any, image_shape, seed: int) -> TrainState:
    """The state before the first step; a function of the seed, whatever the devices."""
    images = jnp.zeros((1, *image_shape), jnp.float32)
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(seed))
    # Without the boxes of `nn.with_partitioning`: every device has all parameters here.
    variables = nn.meta.unbox(variables)
    params = variables["params"]
    return TrainState(
        jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), jax.jit(optimizer.init)(params)
    )


def specs(source: Source) -> Any:
    """How a source is cut over the devices, for `shard_map`."""
    if isinstance(source, Batch):
        return Batch(CUT, CUT, CUT)
    return Indexed(WHOLE, WHOLE, PartitionSpec(None, AXIS), PartitionSpec(None, AXIS), WHOLE)


def pick(source: Source, row: jax.Array | int) -> Batch:
    """Takes this device's part of a batch; a `Batch` is one already."""
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
    """The forward pass in training.

    Args:
      model: to run.
      recipe: of the forward pass.
      params: of the model.
      batch_stats: the running statistics.
      batch: this device's part of it.
      key: of what is random.
      momentum: of the running statistics; None: those of the batch take their place.

    Returns:
      Of this device's examples, the losses and the shares of right answers, both of shape (n,) and 0 where an example
      does not count; and the new running statistics.
    """
    n = batch.labels.shape[0]
    first, total = lax.axis_index(AXIS) * n, lax.axis_size(AXIS) * n
    images = augment(recipe.augmentation, batch.images, key, first, total)
    # One key for all that a model draws, such as dropout; each device draws for its own examples.
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
        # Those that nobody wrote are not handed out.
        return logits, updates.get("batch_stats", batch_stats)

    logits, new_stats = forward(params)
    # Models that others wrote give them in their compute type, in which a mean loss would be rounded.
    logits = logits.astype(jnp.float32)
    targets = optax.smooth_labels(jax.nn.one_hot(batch.labels, recipe.num_classes), recipe.label_smoothing)
    losses = per_example(optax.softmax_cross_entropy(logits, targets))
    correct = per_example((jnp.argmax(logits, axis=-1) == batch.labels).astype(jnp.float32))
    if batch.mask is not None:
        losses, correct = jnp.where(batch.mask, losses, 0), jnp.where(batch.mask, correct, 0)
    if recipe.local_statistics or lax.axis_size(AXIS) == 1:
        # A count of steps is the same on every device.
        new_stats = jax.tree.map(
            lambda a: lax.pmean(a, AXIS) if jnp.issubdtype(a.dtype, jnp.floating) else a, new_stats
        )
    else:
        new_stats = sharing.shared(new_stats, lambda common: forward(common)[1], params)
    return losses, correct, new_stats


def _as_ours(recipe: Recipe) -> contextlib.AbstractContextManager:
    """Has norms that a model makes itself pool as those that a factory is given do."""
    if not recipe.own_norms:
        return contextlib.nullcontext()
    return synchronize(None if recipe.local_statistics else AXIS, span=recipe.span)


def own(params):
    """Parameters that count as each device's own, which leaves gradients to be added up at once, at the end.

    Else each would be added up where it is first used, which for a convolution on a CPU is on a four times larger
    array.
    """
    return jax.tree.map(lambda p: lax.pcast(p, AXIS, to="varying"), params)


def examples_in(batch: Batch) -> jax.Array:
    """How many examples of the global batch count."""
    if batch.mask is None:
        return jnp.float32(batch.labels.shape[0] * lax.axis_size(AXIS))
    return lax.psum(jnp.sum(batch.mask, dtype=jnp.float32), AXIS)


def step_key(recipe: Recipe, step: jax.Array, part: jax.Array | int = 0) -> jax.Array:
    """The random key of a forward pass."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), step), part)


def update(descent: Descent, peak: jax.Array, state: TrainState, grads, batch_stats, loss, accuracy):
    """The state after an optimizer's update, and the metrics of the step."""
    updates, opt_state = descent.optimizer(peak).update(grads, state.opt_state, state.params)
    rate = jnp.asarray(descent.schedule(peak)(state.step), jnp.float32)
    metrics = {"loss": loss, "accuracy": accuracy, "learning_rate": rate}
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), batch_stats, opt_state), metrics


def train_step(model: nn.Module, descent: Descent, mesh: Mesh, recipe: Recipe, momentum: Momentum):
    """Makes the training step: (state, source, peak learning rate) -> (state, metrics).

    The loss is the mean over the examples of the global batch that count, and the result depends on nothing else: the
    same batch over more devices gives the same step, to rounding. `metrics` are the loss, the accuracy and the
    learning rate; `momentum` is of the running statistics.
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

        (loss, (accuracy, batch_stats)), grads = jax.value_and_grad(loss_and_rest, has_aux=True)(own(state.params))
        grads, loss, accuracy = lax.psum((grads, loss, accuracy), AXIS)
        return update(descent, peak, state, grads, batch_stats, loss, accuracy)

    def step(state: TrainState, source: Source, peak: jax.Array):
        mapped = jax.shard_map(local_step, mesh=mesh, in_specs=(WHOLE, specs(source), WHOLE), out_specs=WHOLE)
        return mapped(state, source, peak)

    return jax.jit(step, donate_argnums=0)


def eval_step(model: nn.Module, mesh: Mesh, recipe: Recipe):
    """Makes the evaluation step: (params, batch_stats, source, row) -> sums over the examples that count.

    The sums are of the losses (`loss`), the shares of right answers (`correct`) and the examples (`count`); with a
    class for every pixel also, of shape (classes,), of the pixels where label and prediction are that class
    (`intersection`), and where either is (`union`).
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
        in_specs = (WHOLE, WHOLE, specs(source), WHOLE)
        return jax.shard_map(local_step, mesh=mesh, in_specs=in_specs, out_specs=WHOLE)(
            params, batch_stats, source, row
        )

    return jax.jit(step)


def standardised(images: jax.Array, recipe: Recipe) -> jax.Array:
    """Pixels from 0 to 255 made into numbers of mean 0 and standard deviation 1."""
    wide = (1, 1, 1, -1)
    return (images.astype(jnp.float32) / 255 - recipe.mean.reshape(wide)) / recipe.std.reshape(wide)


def per_example(values: jax.Array) -> jax.Array:
    """The mean of each example's values: over the pixels, where there is one for each."""
    return (
        values.astype(jnp.float32)
        if values.ndim == 1
        else jnp.mean(values, axis=range(1, values.ndim), dtype=jnp.float32)
    )
