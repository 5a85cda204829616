"""The parts of a run that its configuration names: model, optimizer, schedule and recipe."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from ... import models
from ..config import plan as plans
from ..config.options import TrainConfig
from ..recipe import norms, optimizers, schedules
from ..recipe.averaging import Momentum
from ..recipe.weight_average import averaging
from ..state import Descent, Recipe


def make_model(config: TrainConfig, num_classes: int, total_steps: int = 1) -> Any:
    """Returns the model of a configuration.

    Running statistics follow the momentum of `averaging`, whatever momentum the model's norms have themselves.
    """
    dtype = jnp.dtype(config.dtype)
    return models.create(
        config.model,
        num_classes=num_classes,
        norm=norms.make(config.norm, 0.0, config.span, total_steps, dtype),
        dtype=dtype,
        zero_last_scale=config.zero_last_scale,
    )


def make_optimizer(config: TrainConfig, schedule, batch_size: int | None = None) -> Any:
    """Returns the optimizer of a configuration; the structure of its state depends on the configuration alone.

    Args:
      config: configuration of the run.
      schedule: step -> learning rate.
      batch_size: examples per update that it makes; None: the first batch size of the run.
    """
    optimizer = optimizers.make(
        config.optimizer,
        schedule,
        momentum=config.momentum,
        b2=config.second_moment_decay,
        weight_decay=config.weight_decay,
        decay_all=config.decay_all,
    )
    full, own = config.kept_of_average(), config.kept_of_average(batch_size)
    if full is None or own is None:
        return optimizer
    return averaging(optimizer, Momentum(full, own))


def make_momentum(config: TrainConfig, batch_size: int) -> Momentum:
    """Returns the momentum of the running statistics in updates of a batch size."""
    return Momentum(config.running_momentum(), config.running_momentum(batch_size))


def make_schedule(config: TrainConfig, plan: plans.Plan) -> Callable[[Any], optax.Schedule]:
    """Returns the schedule of a configuration, as a function of the peak learning rate."""

    def schedule(peak):
        return schedules.make(
            config.schedule,
            peak,
            warmup_steps=plan.warmup_steps,
            total_steps=plan.total_steps,
            boundaries=plan.boundaries,
            cycle_steps=plan.cycle_steps,
        )

    return schedule


def make_descent(config: TrainConfig, plan: plans.Plan, batch_size: int | None = None) -> Descent:
    """Returns the optimizer and the schedule of a configuration, both as functions of the peak learning rate.

    Args:
      config: configuration of the run.
      plan: the sizes of the run.
      batch_size: examples per update that the optimizer makes; None: the first batch size of the run.
    """
    schedule = make_schedule(config, plan)
    return Descent(lambda peak: make_optimizer(config, schedule(peak), batch_size), schedule)


def make_recipe(config: TrainConfig, dataset_classes: int, statistics: tuple[Any, Any]) -> Recipe:
    """Returns the settings of a configuration's steps that neither model nor optimizer holds.

    Args:
      config: configuration of the run.
      dataset_classes: the number of classes of the data set.
      statistics: mean and standard deviation of the pixels, one number per channel each.
    """
    return Recipe(
        *(np.asarray(per_channel, np.float32) for per_channel in statistics),
        num_classes=dataset_classes,
        label_smoothing=config.label_smoothing,
        augmentation=config.augmentation,
        seed=config.seed,
        local_statistics=norms.NORMS[config.norm].depends_on_devices,
    )
