"""The statistics of training images for the norms of a model, in place of the running averages."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from batchnorm_jax import recalibrate
from batchnorm_jax.linen import moments_fn
from batchnorm_jax.typing import RecalibrationMode
from experiments import data as datasets
from experiments._errors import UsageError
from experiments.data.domains import to_domain
from experiments.training.evaluation.evaluator import Evaluator
from experiments.training.machine import devices
from experiments.training.state import Recipe, TrainState
from experiments.training.step import carries, single
from experiments.training.step.run import Run

# Training images, in batches.
EXAMPLES, BATCH = 10_000, 1_000
# Of the check at the end of a run.
FEW_EXAMPLES = 2_000

Results = dict[str, dict[str, Any]]


def population_statistics(
    model: nn.Module,
    recipe: Recipe,
    mesh: Mesh,
    state: TrainState,
    train: datasets.Split,
    *,
    mode: RecalibrationMode,
    span: int | None = None,
    domain: str | None = None,
    examples: int = EXAMPLES,
) -> Any:
    """The `batch_stats` of a model by training images, in no order, so that a batch has of every class.

    Args:
      model: of a run.
      recipe: how images become numbers.
      mesh: the devices, which share each batch.
      state: whose parameters count.
      train: the training split.
      mode: of `batchnorm_jax.recalibrate`.
      span: of the norms, which "pooled" follows.
      domain: as which of `data.domains` to show the images; None: as they are.
      examples: how many to use, if there are as many.

    Raises:
      UsageError: there are too few for one span on every device.
    """
    # Batches of whole spans, of which the devices take equal parts.
    unit = math.lcm(mesh.size, span or 1)
    number = max(unit, min(examples, train.size) // unit * unit)
    if number > train.size:
        raise UsageError(
            f"statistics of the training set need {unit} images of it, for a span of {span or 1} on {mesh.size} "
            f"devices, and there are {train.size}"
        )
    chosen = train.read(np.random.default_rng(0).permutation(train.size)[:number])
    images = (chosen if domain is None else to_domain(domain, chosen)).images
    size = max(unit, BATCH // unit * unit)
    cut = NamedSharding(mesh, single.CUT)
    batches = [devices.place(images[i : i + size], cut) for i in range(0, len(images), size)]
    # Models cut their spans only in training, which is what "pooled" follows.
    training = mode == "pooled"
    drawn = {"params": jax.random.key(0)} if training else None
    moments = moments_fn(model, mode=mode, axis_name=devices.AXIS, train=training, rngs=drawn)

    def function(variables, images):
        with carries.per_device():
            return moments(variables, single.standardised(images, recipe))

    function = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(single.WHOLE, single.CUT), out_specs=single.WHOLE))

    def one_at_a_time(variables, images):
        # As in training: collectives of fake devices that are dispatched ahead can wait for each other for ever.
        return jax.block_until_ready(function(variables, images))

    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return recalibrate(one_at_a_time, variables, batches, mode=mode)["batch_stats"]


def where_recalibrated_differs(
    run: Run,
    state: TrainState,
    dataset: datasets.Dataset,
    evaluate: Evaluator,
    results: Results,
    span: int | None,
) -> Results:
    """Results by statistics of training images, of the splits whose accuracy they change.

    By more than twice the standard error of an accuracy on as many examples, so that it tells of running statistics
    that lag behind the parameters, or that stand for other batches than those of training.

    Args:
      run: of the state.
      state: at the end of the training.
      dataset: that was trained on.
      evaluate: of its splits in memory.
      results: by the running statistics.
      span: of the norms.

    Returns:
      Of each such split what `evaluate` gives; of a model without running statistics, or streamed data, nothing.
    """
    splits = (dataset.train, *dataset.test.values())
    unit = math.lcm(run.mesh.size, span or 1)
    if not has_running(state.batch_stats) or unit > dataset.train.size or any(datasets.is_streamed(s) for s in splits):
        return {}
    statistics = population_statistics(
        run.model, run.recipe, run.mesh, state, dataset.train, mode="pooled", span=span, examples=FEW_EXAMPLES
    )
    after = evaluate(state._replace(batch_stats=devices.place(statistics, devices.replicated(run.mesh))))
    return {name: result for name, result in after.items() if _differ(results[name], result)}


def _differ(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    # As if there were a right and a wrong answer more: no accuracy is known without an error.
    examples = before["examples"]
    share = (examples * (before["accuracy"] + after["accuracy"]) / 2 + 1) / (examples + 2)
    return abs(after["accuracy"] - before["accuracy"]) > 2 * math.sqrt(share * (1 - share) / examples)


def has_running(batch_stats: Any) -> bool:
    """Whether there are running statistics, of floating point numbers, in a collection."""
    return any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(batch_stats))
