"""Measurement of the gradient noise of a run while it trains."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from batchnorm_jax.batch_size import NoiseEstimate, measure_noise

from ... import data as datasets
from ..._errors import UsageError
from ..config.options import AUTO, TrainConfig
from ..machine import devices
from ..state import Batch, TrainState
from ..step import single
from ..step.parts import make_model
from ..step.run import Run

# The shard size where the norm has no span: large enough for batch statistics, small enough to have many shards.
SHARD_EXAMPLES = 64
# The variance of an estimate falls with the number of shards, and its cost rises in proportion to it.
MAX_SHARDS = 32


def noise_probe(config: TrainConfig, run: Run, dataset: datasets.Dataset) -> Callable[[TrainState], NoiseEstimate]:
    """Returns a function that measures the gradient noise of a state: state -> `NoiseEstimate` of two floats.

    Each measurement draws training examples by the run's seed and the step, in up to 32 shards of one span each, or of
    64 examples where the norm has no span. The gradient is that of the loss, without weight decay. The forward pass is
    that of training, except that the norms' statistics are computed within each shard: shared statistics would couple
    the shards and bias the estimate. The measurement runs on one device of each process and does not change training.

    Args:
      config: configuration of the run.
      run: the run.
      dataset: the data set that the run trains on.

    Raises:
      UsageError: the configuration asks for measurements, and the training set is too small for two shards.
    """
    train = dataset.train
    shard_size = config.span or SHARD_EXAMPLES
    shards = min(MAX_SHARDS, train.size // shard_size)
    flags = {"--noise_every": config.noise_every, "--live": config.live, "--batch_ramp=auto": config.batch_ramp == AUTO}
    flag = next((name for name, given in flags.items() if given), None)
    if flag and shards < 2:
        raise UsageError(
            f"{flag} needs at least two shards of {shard_size} training examples to measure the gradient noise, and "
            f"there are {train.size} examples; leave it out" + (", or give a smaller --span" if config.span else "")
        )
    gradient = shard_gradient(config, run, dataset.num_classes)

    def probe(state: TrainState) -> NoiseEstimate:
        chosen = np.random.default_rng((config.seed, int(state.step))).choice(
            train.size, shards * shard_size, replace=False
        )
        examples = train.read(chosen)
        estimate = measure_noise(gradient, state, [Batch(examples.images, examples.labels, None)], shards)
        return NoiseEstimate(*(value.item() for value in estimate))

    return probe


def shard_gradient(config: TrainConfig, run: Run, num_classes: int) -> Callable[[TrainState, Batch], Any]:
    """Returns a function from a state and a shard of a batch to the gradient of the loss, computed on one device.

    Args:
      config: configuration of the run.
      run: the run.
      num_classes: the number of classes of the data set.
    """
    # On a mesh of one device, norms that pool over the devices pool over the shard.
    mesh = devices.make_mesh(run.mesh.local_devices[:1])
    model = make_model(config, num_classes, run.plan.total_steps)

    def loss(params, batch_stats, step, batch: Batch):
        losses, _, _ = single.losses_of(
            model, run.recipe, params, batch_stats, batch, single.step_key(run.recipe, step, part=1)
        )
        return jax.lax.pmean(jnp.mean(losses), devices.AXIS)

    in_specs = (
        single.REPLICATED,
        single.REPLICATED,
        single.REPLICATED,
        Batch(single.SHARDED, single.SHARDED, single.SHARDED),
    )
    gradient = jax.jit(jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=in_specs, out_specs=single.REPLICATED))

    def of_shard(state: TrainState, batch: Batch) -> Any:
        held: Any = jax.tree.map(lambda a: a.addressable_data(0), (state.params, state.batch_stats, state.step))
        return gradient(*held, jax.device_put(batch, mesh.devices.flat[0]))

    return of_shard
