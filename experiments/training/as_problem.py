"""A configuration of `experiments.train` as a problem: its model on its data set, as five functions.

So `experiments.branch` and the functions of `batchnorm_jax.batch_size` measure it as they do any other program.
"""

import dataclasses
from functools import cache
from typing import Any

import jax
import numpy as np

from .. import data as datasets
from .._errors import UsageError
from ..problems.problem import Problem, stream
from . import of_images
from .config.options import TrainConfig
from .evaluation import evaluator
from .evaluation.averaged import evaluated
from .machine import devices
from .noise.probe import shard_gradient
from .recipe.optimizers import OPTIMIZERS
from .step import feeding, single
from .step.parts import make_descent, make_model, make_momentum
from .step.run import prepare


def as_problem(config: TrainConfig) -> Problem:
    """Returns a problem that trains as a configuration does, at whatever constant rate and batch size it is given.

    What is evaluated is the accuracy on the first split that the configuration evaluates: give
    `validation_examples` to hold out training examples.

    Args:
      config: data set, model, norm and optimizer. Its batch size is where the problem begins, its peak rate the
        problem's rate; schedule and warmup are the caller's.

    Raises:
      UsageError: the configuration is that of a problem, splits or accumulates an update, or cannot be prepared.

    Example:
      >>> digits = as_problem(TrainConfig(dataset="digits", batch_size=64, num_devices=1))
      >>> state, loss = digits.update(digits.init(0), digits.batch(0, 0, 64), 0.05)
      >>> digits.rule, digits.examples, int(state.step)
      ('linear', 60000, 1)
    """
    optimizer = OPTIMIZERS[config.optimizer]
    if config.problem is not None:
        raise UsageError(f"--problem={config.problem} is a problem already")
    if optimizer.full_batch or config.accumulation_steps > 1 or config.backwards_per_forward > 1:
        others = " and ".join(other.name for other in OPTIMIZERS if other.full_batch)
        raise UsageError(
            "as a problem a configuration makes each update of one batch at once: no --accumulation_steps, no "
            f"--backwards_per_forward, and an optimizer other than {others}"
        )
    rate = config.peak_learning_rate
    config = dataclasses.replace(config, schedule="constant", warmup_epochs=0, learning_rate=rate, batch_ramp=None)
    chosen = of_images.set_up_devices(config)
    dataset = datasets.load(
        config.dataset, config.data_dir, image_size=config.image_size, validation_examples=config.validation_examples
    )
    run = prepare(config, dataset, evaluator.pixel_statistics(dataset.train), chosen)
    model = make_model(config, dataset.num_classes, run.plan.total_steps)
    descent = make_descent(config, run.plan)
    everywhere = devices.replicated(run.mesh)
    resident = feeding.is_resident(config, dataset, run.mesh, devices.memory_of(chosen[0]))
    splits = evaluator.Evaluator(run.eval_step, dataset.test, run.mesh, resident=resident)
    to_evaluate = evaluated(config, run.model, run.recipe, run.mesh, dataset.train)

    @cache
    def step(size: int) -> Any:
        # Averages follow the batch size, as they do in the trainer.
        at_size = make_descent(config, run.plan, size)
        return single.train_step(model, at_size, run.mesh, run.recipe, make_momentum(config, size))

    def init(seed: int) -> Any:
        start = single.init_state(run.model, descent.optimizer(rate), dataset.train.image_shape, seed)
        return devices.place(start, everywhere)

    def update(state: Any, batch: Any, learning_rate: Any) -> tuple[Any, Any]:
        peak = devices.place(np.float32(learning_rate), everywhere)
        # The step donates its state, which the caller may still need.
        state, metrics = step(len(batch.labels))(jax.tree.map(lambda a: a.copy(), state), batch, peak)
        return state, metrics["loss"]

    def batch(seed: int, number: int, size: int) -> Any:
        chosen = stream(seed, number * size, size, dataset.train.size)
        return feeding.read_batch(dataset.train, chosen, None, run.mesh, number * size // dataset.train.size)

    def evaluate(state: Any) -> float:
        return next(iter(splits(to_evaluate(state)).values())).known_accuracy

    return Problem(
        dataset.train.size,
        init,
        update,
        batch,
        evaluate,
        goal="accuracy",
        rule="sqrt" if optimizer.scaling == "sqrt" else "linear",
        batch_size=config.batch_size,
        learning_rate=rate,
        gradient=shard_gradient(config, run, dataset.num_classes),
    )
