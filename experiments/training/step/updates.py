"""The compiled update of a configuration: plain, accumulated, split, or of the full batch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from ..config.options import TrainConfig
from ..config.plan import Plan
from ..machine import devices
from ..recipe.averaging import Momentum
from ..recipe.norms import NORMS
from ..recipe.optimizers import OPTIMIZERS
from ..state import Descent, Recipe, Source, TrainState
from . import accumulation, full_batch, single, splitting
from .parts import make_model


class Program(NamedTuple):
    """A compiled update.

    Attributes:
      call: (state, sources) -> (state, metrics); the state is donated.
      largest: the compiled program that takes most memory.
    """

    call: Callable[[TrainState, list[Source]], tuple[TrainState, dict[str, jax.Array]]]
    largest: Any


# (state, sources) -> the program of an update that reads sources of the same shapes.
Compile = Callable[[TrainState, list[Source]], Program]


def make(
    config: TrainConfig, num_classes: int, plan: Plan, descent: Descent, mesh: jax.sharding.Mesh, recipe: Recipe
) -> Callable[[Momentum], Compile]:
    """Chooses the update of a configuration.

    Args:
      config: configuration of the run.
      num_classes: the number of classes of its data set.
      plan: the sizes of the run.
      descent: the optimizer and the schedule.
      mesh: the devices.
      recipe: settings of the forward pass.

    Returns:
      A function of the momentum of the running statistics, which depends on the batch size, that returns a function
      which compiles the update.
    """
    micro, k = config.accumulation_steps, config.backwards_per_forward
    # Placed on the devices once: transferring a number at every step would take longer than a small step.
    peak = devices.place(np.float32(plan.peak_learning_rate), devices.replicated(mesh))
    # Micro-batches whose statistics are averaged over parts must be averaged too, not pooled.
    averaged = config.span is not None or NORMS[config.norm].pools == "device"
    if OPTIMIZERS[config.optimizer].full_batch:
        model, optimizer = make_model(config, num_classes), descent.optimizer(plan.peak_learning_rate)
        step = partial(
            full_batch.full_batch_step,
            model,
            optimizer,
            mesh,
            recipe,
            micro_batches=micro,
            weight_decay=config.weight_decay,
            decay_all=config.decay_all,
            averaged=averaged,
        )
    elif micro > 1:
        model = make_model(config, num_classes)
        programs = partial(
            accumulation.accumulated_step, model, descent, mesh, recipe, micro_batches=micro, averaged=averaged
        )
        return lambda momentum: partial(_accumulated, programs(momentum=momentum), mesh, peak)
    else:
        model = make_model(config, num_classes, plan.total_steps)
        parts = model, descent, mesh, recipe
        step = partial(splitting.split_step, *parts, k) if k > 1 else partial(single.train_step, *parts)
    return lambda momentum: partial(_compiled, step(momentum=momentum), peak)


def _compiled(step: Any, peak: jax.Array, state: TrainState, sources: list[Source]) -> Program:
    program = step.lower(state, sources[0], peak).compile()
    return Program(lambda state, sources: program(state, sources[0], peak), program)


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
