"""What a run is made of before its first step: model, optimizer, initial state and the programs of its steps."""

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
      largest: the compiled program that takes most memory.
    """

    call: Callable[[TrainState, list[Source]], tuple[TrainState, dict[str, jax.Array]]]
    largest: Any


class Run(NamedTuple):
    """What a training run is made of, before its first step.

    Attributes:
      plan: its sizes.
      model: as it is evaluated.
      mesh: its devices.
      recipe: of the forward pass.
      state: the initial one.
      compile: (state, sources, plan) -> `Program`, which reads sources of the same shapes.
      eval_step: from `single.eval_step`.
      tried: what is known of the model.
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
    """The model of a configuration. The momentum of its norms is that of `averaging`, whatever their own is."""
    dtype = jnp.dtype(config.dtype)
    return models.create(
        config.model,
        num_classes=num_classes,
        norm=norms.make(config.norm, 0.0, config.span, total_steps, dtype),
        dtype=dtype,
        zero_last_scale=config.zero_last_scale,
    )


def make_optimizer(config: TrainConfig, schedule) -> Any:
    """The optimizer of a configuration."""
    return optimizers.make(
        config.optimizer,
        schedule,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        decay_all=config.decay_all,
    )


def make_descent(config: TrainConfig, plan: plans.Plan) -> Descent:
    """How the parameters of a configuration follow their gradient."""

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
    """What the steps of a configuration do beside model and optimizer."""
    return Recipe(
        *(np.asarray(of_channels, np.float32) for of_channels in statistics),
        num_classes=dataset_classes,
        label_smoothing=config.label_smoothing,
        augmentation=config.augmentation,
        seed=config.seed,
        local_statistics=norms.NORMS[config.norm].depends_on_devices,
    )


def prepare(
    config: TrainConfig,
    dataset: datasets.Dataset,
    statistics: tuple[list[float], list[float]],
    chosen: list[devices.Device],
) -> Run:
    """Makes everything that a run needs; refuses what cannot be before anything is compiled.

    Args:
      config: of the run.
      dataset: to train on.
      statistics: mean and standard deviation of its pixels.
      chosen: the devices.
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
        # What the model does in training does not depend on the optimizer, and L-BFGS takes no such step.
        plain = Descent(optax.sgd, descent.schedule) if optimizers.OPTIMIZERS[config.optimizer].full_batch else descent
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
        # By the examples that count: an epoch's last, smaller batch moves running statistics by less.
        lambda state, sources, plan: compiler(plan.examples_of(feeding.examples(sources), feeding.is_masked(sources)))(
            state, sources
        ),
        single.eval_step(evaluated, mesh, recipe),
        tried,
    )


def _compiler(
    config: TrainConfig, num_classes: int, batch_size: int, total_steps: int, descent: Descent, mesh, recipe: Recipe
):
    """What compiles the update of a configuration, at one batch size."""
    momentum = Momentum(config.running_momentum(), config.running_momentum(batch_size))
    micro = config.accumulation_steps
    rate = config.peak_learning_rate
    # On the devices once for all: to bring a number there takes longer than a small step.
    peak = devices.place(np.float32(rate), devices.replicated(mesh))
    # Micro-batches whose statistics are averaged over parts must be averaged too, not pooled.
    averaged = config.span is not None or norms.NORMS[config.norm].pools == "device"
    if optimizers.OPTIMIZERS[config.optimizer].full_batch:
        step = full_batch.full_batch_step(
            make_model(config, num_classes),
            descent.optimizer(rate),
            mesh,
            recipe,
            micro_batches=micro,
            weight_decay=config.weight_decay,
            decay_all=config.decay_all,
            momentum=momentum,
            averaged=averaged,
        )
    elif micro > 1:
        programs = accumulation.accumulated_step(
            make_model(config, num_classes),
            descent,
            mesh,
            recipe,
            micro_batches=micro,
            momentum=momentum,
            averaged=averaged,
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
