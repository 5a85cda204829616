"""The gradient noise scale of a run as it trains."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data as datasets
from experiments._errors import UsageError
from experiments.training.config.options import AUTO, TrainConfig
from experiments.training.machine import devices
from experiments.training.noise.estimate import NoiseEstimate, measure_noise
from experiments.training.state import Batch, TrainState
from experiments.training.step import single
from experiments.training.step.parts import make_model
from experiments.training.step.run import Run

# Of a measurement: examples of a shard, where the norm has no span, and shards.
SHARD_SIZE, SHARDS = 64, 32


def noise_probe(config: TrainConfig, run: Run, dataset: datasets.Dataset) -> Callable[[TrainState], NoiseEstimate]:
    """Makes what measures the noise of a state's gradient: state -> `NoiseEstimate` of two floats.

    Of training examples drawn anew by the run's seed and the step, in 32 shards of one span or of 64, or as many as
    there are. The gradient is that of the loss, without weight decay. The forward pass is that of training, but the
    norm's statistics are a shard's own: statistics that are shared would couple the shards, and bias the estimate. It
    runs on one device of each process, and changes nothing of the training.

    Raises:
      UsageError: the configuration asks for measurements, and the training set has not two shards.
    """
    train = dataset.train
    shard_size = config.span or SHARD_SIZE
    shards = min(SHARDS, train.size // shard_size)
    flags = {"--noise_every": config.noise_every, "--live": config.live, "--batch_ramp=auto": config.batch_ramp == AUTO}
    flag = next((name for name, given in flags.items() if given), None)
    if flag and shards < 2:
        raise UsageError(
            f"{flag} takes two shards of {shard_size} training examples to measure the gradient noise, and there are "
            f"{train.size} examples; leave it out" + (", or give a smaller --span" if config.span else "")
        )
    # The step of training, on a mesh of one device: what is pooled over the devices is pooled over a shard.
    mesh = devices.make_mesh(run.mesh.local_devices[:1])
    model = make_model(config, dataset.num_classes, run.plan.total_steps)

    def loss(params, batch_stats, step, batch: Batch):
        losses, _, _ = single.losses_of(
            model, run.recipe, params, batch_stats, batch, single.step_key(run.recipe, step, part=1)
        )
        return jax.lax.pmean(jnp.mean(losses), devices.AXIS)

    in_specs = (single.WHOLE, single.WHOLE, single.WHOLE, Batch(single.CUT, single.CUT, single.CUT))
    gradient = jax.jit(jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=in_specs, out_specs=single.WHOLE))

    def probe(state: TrainState) -> NoiseEstimate:
        held: Any = jax.tree.map(lambda a: a.addressable_data(0), (state.params, state.batch_stats, state.step))
        chosen = np.random.default_rng((config.seed, int(state.step))).choice(
            train.size, shards * shard_size, replace=False
        )
        examples = train.read(chosen)
        batch = jax.device_put(Batch(examples.images, examples.labels, None), mesh.devices.flat[0])
        estimate = measure_noise(lambda held, shard: gradient(*held, shard), held, [batch], shards)
        return NoiseEstimate(*(value.item() for value in estimate))

    return probe
