"""Runs training steps without the loop, for several test files."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data
from experiments.training.evaluation import evaluator
from experiments.training.step.feeding import Feed
from experiments.training.step.run import prepare


def tiny(examples=64, size=8, classes=3, channels=1, pixels=False):
    """Returns a data set of random images whose classes differ in brightness."""
    r = np.random.default_rng(0)
    labels = r.integers(0, classes, (examples, size, size) if pixels else examples).astype(np.int32)
    shade = (labels if pixels else labels[:, None, None])[..., None] * (120 // classes)
    images = (shade + r.integers(0, 120, (examples, size, size, channels))).astype(np.uint8)
    test = data.Examples(images[: examples // 4], labels[: examples // 4])
    return data.Dataset("tiny", data.Examples(images, labels), {"test": test}, classes)


def first_steps(config, dataset, number, num_devices, dtype=None, start=None):
    """Runs some updates, and returns the state and the rows of metrics.

    Args:
      config: the configuration.
      dataset: the data set.
      number: the number of updates.
      num_devices: the number of devices.
      dtype: the dtype of parameters, statistics and computation; None: as the configuration says.
      start: the state before the updates; None: the initial one.
    """
    if dtype is not None:
        object.__setattr__(config, "dtype", dtype)
    run = run_of(config, dataset, num_devices)
    state = run.state if start is None else start
    if dtype is not None:
        state = jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, state)
    feed = Feed(config, dataset.train, run.mesh, resident=config.input != "streamed")
    rows, programs = [], {}
    for sources in itertools.islice(_updates(run.plan, feed), number):
        key = feed.signature(sources)
        if key not in programs:
            programs[key] = run.compile(state, sources, run.plan)
        state, row = programs[key].call(state, sources)
        rows.append(jax.device_get(row))
    return jax.device_get(state), rows


def run_of(config, dataset, num_devices):
    """Returns a run before its first step."""
    return prepare(config, dataset, evaluator.pixel_statistics(dataset.train), jax.devices()[:num_devices])


def _updates(plan, feed):
    step = 0
    while step < plan.total_steps:
        position = plan.locate(step)
        yield from feed.updates(position, step)
        step = position.last_step


# Compiler options for convolutions in float64, which XLA unrolls on a CPU: without optimisation they compile in a fifth
# of the time, and compute the same sums. Unfit for tests of float32, in which optimisation changes the rounding.
UNOPTIMISED = {"xla_backend_optimization_level": 0}


def loss_and_gradients(model, variables, images, mask=None, mutable=("batch_stats",)):
    """Returns the sum of the squared logits of the unmasked examples with updated statistics, and its gradients."""

    def loss(params):
        y, updates = model.apply({**variables, "params": params}, images, train=True, mask=mask, mutable=list(mutable))
        counted = y if mask is None else jnp.where(jnp.expand_dims(mask, range(1, y.ndim)), y, 0)
        return jnp.sum(counted**2), updates

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])
