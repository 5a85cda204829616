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


def make_optimizer(config: TrainConfig, schedule) -> Any:
    """Returns the optimizer of a configuration, for a schedule: step -> learning rate."""
    return optimizers.make(
        config.optimizer,
        schedule,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        decay_all=config.decay_all,
    )


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


def make_descent(config: TrainConfig, plan: plans.Plan) -> Descent:
    """Returns the optimizer and the schedule of a configuration, both as functions of the peak learning rate."""
    schedule = make_schedule(config, plan)
    return Descent(lambda peak: make_optimizer(config, schedule(peak)), schedule)


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
