"""Population statistics: the statistics of training images, as a replacement for a model's running averages."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from batchnorm_jax import recalibrate
from batchnorm_jax.linen import moments_fn
from batchnorm_jax.typing import RecalibrationMode

from ... import data as datasets
from ..._errors import UsageError
from ...data.domains import to_domain
from ...records.runs import Result
from ..machine import devices
from ..state import Recipe, TrainState
from ..step import carries, single
from ..step.run import Run
from .evaluator import Evaluator

# A mean over 10,000 images is known to 1% of a standard deviation, 1 / sqrt(10,000); better where norms pool positions.
POPULATION_EXAMPLES = 10_000
# Each batch must fit in memory for one forward pass.
MAX_BATCH_EXAMPLES = 1_000
# The check at the end of a run must be cheap beside the run, so it makes do with an error of about 2%.
CHECK_EXAMPLES = 2_000
# What `recalibrate` says of a model whose norms it does not know: those that look like norms, and any others.
NO_NORM = ("no norm was found", "gives no Moments")


class UnknownNormError(UsageError):
    """Raised where a model has norms whose statistics cannot be computed."""


class Batches(NamedTuple):
    """Sizes of batches of whole spans, with equal shares for the devices.

    Attributes:
      unit: every multiple of it up to `most` is such a size.
      most: a multiple of `unit`, the largest that is made.
    """

    unit: int
    most: int


def batches_of_spans(num_devices: int, span: int | None, examples: int) -> Batches:
    """Returns how examples can be cut into batches for norms that normalise spans of them.

    A device has whole spans; or where those of all devices would be too many, a span has whole devices.

    Args:
      num_devices: the number of devices.
      span: examples that the norms normalise together; None: the whole batch.
      examples: how many there are.

    Example:
      >>> batches_of_spans(2, 128, 10_000)
      Batches(unit=256, most=768)
      >>> batches_of_spans(8, 512, 10_000)
      Batches(unit=512, most=512)
    """
    span = span or 1
    fits = [n for n in range(1, num_devices + 1) if num_devices % n == 0 and n * span % num_devices == 0]
    most = min(MAX_BATCH_EXAMPLES, examples)
    spans = max((n for n in fits if n * span <= most), default=fits[0])
    unit = spans * span
    # Where spans have several devices, twice as many spans need not.
    return Batches(unit, max(unit, most // unit * unit) if spans == num_devices else unit)


def population(
    model: nn.Module,
    recipe: Recipe,
    mesh: Mesh,
    train: datasets.Split,
    *,
    mode: RecalibrationMode,
    span: int | None = None,
    domain: str | None = None,
    examples: int = POPULATION_EXAMPLES,
) -> Callable[[TrainState], Any]:
    """Returns a function from a state to the `batch_stats` of its parameters, computed from training images.

    The images are drawn in random order, so that every batch has images of all classes. They are read and placed on the
    devices once.

    Args:
      model: the model of a run.
      recipe: settings of the forward pass, which say how images are standardised.
      mesh: the devices, which share each batch.
      train: the training split.
      mode: "pooled" or "layerwise", the modes of `batchnorm_jax.recalibrate`.
      span: examples that the norms normalise together, which mode "pooled" follows; None: the whole batch.
      domain: a name of `data.domains` to move the images to; None: leave them unchanged.
      examples: the number of images to use; fewer where the split has fewer.

    Raises:
      UsageError: the split has too few images for equal parts of whole spans on all devices; the function raises
        `UnknownNormError` for norms that are neither this library's nor Flax's.
    """
    most = min(examples, train.size)
    cut = batches_of_spans(mesh.size, span, most)
    number = max(cut.unit, most // cut.unit * cut.unit)
    if number > train.size:
        raise UsageError(
            f"statistics of the training set need at least {cut.unit} images, for a span of {span or 1} on {mesh.size} "
            f"devices, and it has {train.size}; use fewer devices or a smaller span"
        )
    chosen = train.read(np.random.default_rng(0).permutation(train.size)[:number])
    images = (chosen if domain is None else to_domain(domain, chosen)).images
    sharded = NamedSharding(mesh, single.SHARDED)
    batches = [devices.place(images[i : i + cut.most], sharded) for i in range(0, len(images), cut.most)]
    # Models use spans only in training mode, and "pooled" follows the forward pass of training.
    training = mode == "pooled"
    drawn = {"params": jax.random.key(0)} if training else None
    moments = moments_fn(model, mode=mode, axis_name=devices.AXIS, train=training, rngs=drawn)

    def function(variables, images):
        with carries.per_device():
            return moments(variables, single.standardised(images, recipe))

    function = jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=(single.REPLICATED, single.SHARDED), out_specs=single.REPLICATED)
    )

    def one_at_a_time(variables, images):
        # Wait for each batch, as training does: the collectives of several CPU devices can deadlock if the calls are
        # dispatched ahead.
        return jax.block_until_ready(function(variables, images))

    def statistics(state: TrainState) -> Any:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        try:
            return recalibrate(one_at_a_time, variables, batches, mode=mode)["batch_stats"]
        except ValueError as error:
            if not any(words in str(error) for words in NO_NORM):
                raise
            raise UnknownNormError(
                "the model keeps batch_stats of norms of its own, whose statistics cannot be computed from training "
                f"images: {str(error).partition(': ')[2]}"
            ) from error

    return statistics


def where_recalibrated_differs(
    run: Run,
    state: TrainState,
    dataset: datasets.Dataset,
    evaluate: Evaluator,
    results: Mapping[str, Result],
    span: int | None,
) -> dict[str, Result]:
    """Evaluates with population statistics, and returns the results of the splits whose accuracy they change.

    Accuracies count as different if they are more than two standard errors of an accuracy on as many examples apart.
    A difference shows that the running statistics lag behind the parameters, or that they describe other batches than
    those of training.

    Args:
      run: the run.
      state: the state at the end of training.
      dataset: the data set that the run was trained on.
      evaluate: an evaluator of its test splits.
      results: the results with the running statistics, by split.
      span: examples that the norms normalise together; None: the whole batch.

    Returns:
      The results of those splits, by name. Empty for a model without running statistics or with norms of its own, for
      streamed data, and for a training set too small for one span on every device.
    """
    splits = (dataset.train, *dataset.test.values())
    unit = batches_of_spans(run.mesh.size, span, min(CHECK_EXAMPLES, dataset.train.size)).unit
    if not has_running(state.batch_stats) or unit > dataset.train.size or any(datasets.is_streamed(s) for s in splits):
        return {}
    statistics = population(
        run.model, run.recipe, run.mesh, dataset.train, mode="pooled", span=span, examples=CHECK_EXAMPLES
    )
    try:
        found = statistics(state)
    except UnknownNormError:
        return {}
    after = evaluate(state._replace(batch_stats=devices.place(found, devices.replicated(run.mesh))))
    return {name: result for name, result in after.items() if _differ(results[name], result)}


def _differ(before: Result, after: Result) -> bool:
    # Counting one more correct and one more wrong prediction keeps the standard error above 0 at accuracies 0 and 1.
    examples = before.examples or 0
    share = (examples * (before.known_accuracy + after.known_accuracy) / 2 + 1) / (examples + 2)
    return abs(after.known_accuracy - before.known_accuracy) > 2 * math.sqrt(share * (1 - share) / max(examples, 1))


def has_running(batch_stats: Any) -> bool:
    """Returns whether a `batch_stats` collection holds running statistics, which are floating-point numbers."""
    return any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(batch_stats))
