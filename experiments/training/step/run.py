"""Assembly of a run before its first step: model, optimizer, initial state and the programs of its steps."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _users, models
from experiments import data as datasets
from experiments.training.config import plan as plans
from experiments.training.config.options import TrainConfig
from experiments.training.machine import devices
from experiments.training.recipe import norms, optimizers, schedules
from experiments.training.recipe.averaging import Momentum
from experiments.training.state import Descent, Recipe, Source, TrainState
from experiments.training.step import accumulation, feeding, full_batch, single, splitting, trial


class Program(NamedTuple):
    """A compiled update.

    Attributes:
      call: (state, sources) -> (state, metrics); the state is donated.
      largest: the compiled program that takes the most memory.
    """

    call: Callable[[TrainState, list[Source]], tuple[TrainState, dict[str, jax.Array]]]
    largest: Any


class Run(NamedTuple):
    """Everything that a training run needs before its first step.

    Attributes:
      plan: the sizes of the run.
      model: the model as it is evaluated.
      mesh: the devices of the run.
      recipe: settings of the forward pass.
      state: the initial state.
      compile: (state, sources, plan) -> a `Program` for sources of the same shapes.
      eval_step: the evaluation step, from `single.eval_step`.
      tried: facts about the model, found by tracing it.
    """

    plan: plans.Plan
    model: Any
    mesh: jax.sharding.Mesh
    recipe: Recipe
    state: TrainState
    compile: Callable[[TrainState, list[Source], plans.Plan], Program]
    eval_step: Callable
    tried: trial.Trial


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
    if config.optimizer == optimizers.FULL_BATCH:
        return full_batch.make()
    return optimizers.make(
        config.optimizer,
        schedule,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        decay_all=config.decay_all,
    )


def make_descent(config: TrainConfig, plan: plans.Plan) -> Descent:
    """Returns the optimizer and the schedule of a configuration, both as functions of the peak learning rate."""

    def schedule(peak):
        return schedules.make(
            config.schedule,
            peak,
            warmup_steps=plan.warmup_steps,
            total_steps=plan.total_steps,
            boundaries=plan.boundaries,
            cycle_steps=plan.cycle_steps,
        )

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
        local_statistics=config.norm in norms.PER_DEVICE,
    )


def prepare(
    config: TrainConfig,
    dataset: datasets.Dataset,
    statistics: tuple[list[float], list[float]],
    chosen: list[devices.Device],
) -> Run:
    """Prepares everything that a run needs, and rejects an impossible configuration before anything is compiled.

    Args:
      config: configuration of the run.
      dataset: the data set to train on.
      statistics: mean and standard deviation of its pixels, one number per channel each.
      chosen: the devices.

    Raises:
      UsageError: the configuration does not suit the data set, the devices or the model.
    """
    plan = plans.make(config, dataset.train.size, len(chosen))
    descent = make_descent(config, plan)
    peak = config.peak_learning_rate
    evaluated = make_model(config, dataset.num_classes)
    tried, variables = trial.in_evaluation(config, dataset, evaluated, devices.memory_of(chosen[0]))
    mesh = devices.make_mesh(chosen)
    recipe = make_recipe(config, dataset.num_classes, statistics)
    recipe = recipe._replace(own_norms=bool(tried.own_norms), span=config.span)
    if _users.is_users_own(config.model):
        model = make_model(config, dataset.num_classes, plan.total_steps)
        usual = Momentum(config.running_momentum(), config.running_momentum())
        # The model's forward pass does not depend on the optimizer, and `train_step` cannot take L-BFGS.
        plain = Descent(optax.sgd, descent.schedule) if config.optimizer == optimizers.FULL_BATCH else descent
        step = single.train_step(model, plain, mesh, recipe, usual)
        trial.in_training(config, dataset, variables, model, step, plain.optimizer(peak))
    state = single.init_state(evaluated, descent.optimizer(peak), dataset.train.image_shape, config.seed)
    state = devices.place(state, devices.replicated(mesh))

    @cache
    def compiler(batch_size: int):
        return _compiler(config, dataset.num_classes, batch_size, plan.total_steps, descent, mesh, recipe)

    return Run(
        plan,
        evaluated,
        mesh,
        recipe,
        state,
        # Padding is not counted, so that an epoch's last, smaller batch moves the running statistics less.
        lambda state, sources, plan: compiler(plan.examples_of(feeding.examples(sources), feeding.is_masked(sources)))(
            state, sources
        ),
        single.eval_step(evaluated, mesh, recipe),
        tried,
    )


def _compiler(
    config: TrainConfig, num_classes: int, batch_size: int, total_steps: int, descent: Descent, mesh, recipe: Recipe
):
    """Returns a function that compiles the update of a configuration at one batch size.

    Args:
      config: configuration of the run.
      num_classes: the number of classes.
      batch_size: the examples of the batch, without padding.
      total_steps: updates of the whole run.
      descent: the optimizer and schedule.
      mesh: the devices.
      recipe: settings of the forward pass.

    Returns:
      (state, sources) -> `Program`.
    """
    momentum = Momentum(config.running_momentum(), config.running_momentum(batch_size))
    micro = config.accumulation_steps
    rate = config.peak_learning_rate
    # Placed on the devices once: transferring a number at every step would take longer than a small step.
    peak = devices.place(np.float32(rate), devices.replicated(mesh))
    if config.optimizer == optimizers.FULL_BATCH:
        step = full_batch.full_batch_step(
            make_model(config, num_classes),
            descent.optimizer(rate),
            mesh,
            recipe,
            micro_batches=micro,
            weight_decay=config.weight_decay,
            decay_all=config.decay_all,
            momentum=momentum,
            averaged=config.span is not None or config.norm == "local",
        )
    elif micro > 1:
        programs = accumulation.accumulated_step(
            make_model(config, num_classes),
            descent,
            mesh,
            recipe,
            micro_batches=micro,
            momentum=momentum,
            averaged=config.span is not None or config.norm == "local",
        )
        return lambda state, sources: _accumulated(programs, mesh, peak, state, sources)
    elif config.backwards_per_forward > 1:
        model = make_model(config, num_classes, total_steps)
        step = splitting.split_step(model, descent, mesh, recipe, config.backwards_per_forward, momentum)
    else:
        model = make_model(config, num_classes, total_steps)
        step = single.train_step(model, descent, mesh, recipe, momentum)

    def compiled(state: TrainState, sources: list[Source]) -> Program:
        program = step.lower(state, sources[0], peak).compile()
        return Program(lambda state, sources: program(state, sources[0], peak), program)

    return compiled


def _accumulated(programs, mesh, peak: jax.Array, state: TrainState, sources: list[Source]) -> Program:
    zero, add, finish = programs
    numbers = [devices.place(np.int32(i), devices.replicated(mesh)) for i in range(len(sources))]
    zero = zero.lower(state).compile()
    total = zero(state)
    add = add.lower(state, total, sources[0], numbers[0]).compile()
    finish = finish.lower(state, total, peak).compile()

    def call(state: TrainState, sources: list[Source]):
        total = zero(state)
        for number, source in zip(numbers, sources, strict=True):
            total = add(state, total, source, number)
        return finish(state, total, peak)

    return Program(call, add)
