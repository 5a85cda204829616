"""The compiled update of a configuration: plain, accumulated, split, or of the full batch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from ..config.options import TrainConfig
from ..config.plan import Plan
from ..machine import devices
from ..recipe.norms import NORMS
from ..recipe.optimizers import OPTIMIZERS
from ..state import Recipe, Source, TrainState
from . import accumulation, full_batch, single, splitting
from .parts import make_descent, make_model, make_momentum


class Part(NamedTuple):
    """One of the compiled programs of an update.

    Attributes:
      traced: the program before it was compiled.
      compiled: the compiled program.
      runs: the number of times that an update runs it.
    """

    traced: Any
    compiled: Any
    runs: int = 1


class Program(NamedTuple):
    """A compiled update.

    Attributes:
      call: (state, sources) -> (state, metrics); the state is donated.
      largest: the compiled program that takes most memory.
      parts: the programs that `call` runs; empty: they are not told.
    """

    call: Callable[[TrainState, list[Source]], tuple[TrainState, dict[str, jax.Array]]]
    largest: Any
    parts: tuple[Part, ...] = ()


# (state, sources) -> the program of an update that reads sources of the same shapes.
Compile = Callable[[TrainState, list[Source]], Program]


def make(
    config: TrainConfig, num_classes: int, plan: Plan, mesh: jax.sharding.Mesh, recipe: Recipe
) -> Callable[[int], Compile]:
    """Chooses the update of a configuration.

    Args:
      config: configuration of the run.
      num_classes: the number of classes of its data set.
      plan: the sizes of the run.
      mesh: the devices.
      recipe: settings of the forward pass.

    Returns:
      A function of the batch size, on which averages over examples depend, that returns a function which compiles the
      update.
    """
    micro, k = config.accumulation_steps, config.backwards_per_forward
    # Placed on the devices once: transferring a number at every step would take longer than a small step.
    peak = devices.place(np.float32(plan.peak_learning_rate), devices.replicated(mesh))
    # Micro-batches whose statistics are averaged over parts must be averaged too, not pooled.
    averaged = config.span is not None or NORMS[config.norm].pools == "device"
    is_full_batch = OPTIMIZERS[config.optimizer].full_batch
    # The model of a norm that follows the length of the run, which the other two updates refuse.
    total_steps = 1 if is_full_batch or micro > 1 else plan.total_steps
    model = make_model(config, num_classes, total_steps)

    def at(batch_size: int) -> Compile:
        descent, momentum = make_descent(config, plan, batch_size), make_momentum(config, batch_size)
        parts = model, descent, mesh, recipe
        if is_full_batch:
            step = full_batch.full_batch_step(
                model,
                descent.optimizer(plan.peak_learning_rate),
                mesh,
                recipe,
                micro_batches=micro,
                weight_decay=config.weight_decay,
                decay_all=config.decay_all,
                averaged=averaged,
                momentum=momentum,
            )
        elif micro > 1:
            programs = accumulation.accumulated_step(*parts, micro_batches=micro, averaged=averaged, momentum=momentum)
            return partial(_accumulated, programs, mesh, peak)
        elif k > 1:
            step = splitting.split_step(*parts, k, momentum=momentum)
        else:
            step = single.train_step(*parts, momentum)
        return partial(_compiled, step, peak)

    return at


def _compiled(step: Any, peak: jax.Array, state: TrainState, sources: list[Source]) -> Program:
    part = _part(step, state, sources[0], peak)
    program = part.compiled
    return Program(lambda state, sources: program(state, sources[0], peak), program, (part,))


def _part(program: Any, *arguments: Any, runs: int = 1) -> Part:
    traced = program.trace(*arguments)
    return Part(traced, traced.lower().compile(), runs)


def _accumulated(programs, mesh, peak: jax.Array, state: TrainState, sources: list[Source]) -> Program:
    zero, add, finish = programs
    numbers = [devices.place(np.int32(i), devices.replicated(mesh)) for i in range(len(sources))]
    first = _part(zero, state)
    # The shapes of the totals are enough, and devices that are not here could not compute them.
    total = first.compiled.out_info
    each = _part(add, state, total, sources[0], numbers[0], runs=len(sources))
    last = _part(finish, state, total, peak)
    zero, add, finish = (part.compiled for part in (first, each, last))

    def call(state: TrainState, sources: list[Source]):
        total = zero(state)
        for number, source in zip(numbers, sources, strict=True):
            total = add(state, total, source, number)
        return finish(state, total, peak)

    return Program(call, add, (first, each, last))
