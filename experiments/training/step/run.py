"""Everything that a run needs before its first step: plan, model, initial state and the programs of its steps."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import optax

from ... import _users
from ... import data as datasets
from ..config import plan as plans
from ..config.options import TrainConfig
from ..machine import devices
from ..recipe.optimizers import OPTIMIZERS
from ..state import Descent, Recipe, Source, TrainState
from . import feeding, single, trial, updates
from .parts import make_descent, make_model, make_momentum, make_recipe


class Run(NamedTuple):
    """Everything that a training run needs before its first step.

    Attributes:
      plan: the sizes of the run.
      model: the model as it is evaluated.
      mesh: the devices of the run.
      recipe: settings of the forward pass.
      state: the initial state.
      compile: (state, sources, plan) -> an `updates.Program` for sources of the same shapes.
      eval_step: the evaluation step, from `single.eval_step`.
      tried: facts about the model, found by tracing it.
    """

    plan: plans.Plan
    model: Any
    mesh: jax.sharding.Mesh
    recipe: Recipe
    state: TrainState
    compile: Callable[[TrainState, list[Source], plans.Plan], updates.Program]
    eval_step: Callable
    tried: trial.Trial


def prepare(
    config: TrainConfig,
    dataset: datasets.Dataset,
    statistics: tuple[list[float], list[float]],
    chosen: list[devices.Device],
    *,
    shapes_only: bool = False,
) -> Run:
    """Prepares everything that a run needs, and rejects an impossible configuration before anything is compiled.

    Args:
      config: configuration of the run.
      dataset: the data set to train on.
      statistics: mean and standard deviation of its pixels, one number per channel each.
      chosen: the devices.
      shapes_only: the state has shapes and no values, to compile an update and not to run it.

    Raises:
      UsageError: the configuration does not suit the data set, the devices or the model.
    """
    plan = plans.make(config, dataset.train.size, len(chosen))
    descent = make_descent(config, plan)
    evaluated = make_model(config, dataset.num_classes)
    tried, variables = trial.in_evaluation(config, dataset, evaluated, devices.memory_of(chosen[0]))
    mesh = devices.make_mesh(chosen)
    recipe = make_recipe(config, dataset.num_classes, statistics)
    recipe = recipe._replace(own_norms=bool(tried.own_norms), span=config.span)
    optimizer = descent.optimizer(plan.peak_learning_rate)
    if _users.is_users_own(config.model):
        model = make_model(config, dataset.num_classes, plan.total_steps)
        usual = make_momentum(config, config.batch_size)
        # The model's forward pass does not depend on the optimizer, and `train_step` cannot take L-BFGS.
        plain = Descent(optax.sgd, descent.schedule) if OPTIMIZERS[config.optimizer].full_batch else descent
        step = single.train_step(model, plain, mesh, recipe, usual)
        trial.in_training(config, dataset, variables, model, step, plain.optimizer(plan.peak_learning_rate))
    init = partial(single.init_state, evaluated, optimizer, dataset.train.image_shape, config.seed)
    state = devices.place(jax.eval_shape(init) if shapes_only else init(), devices.replicated(mesh))
    at = cache(updates.make(config, dataset.num_classes, plan, mesh, recipe))

    def compile(state: TrainState, sources: list[Source], plan: plans.Plan) -> updates.Program:
        # Padding is not counted, so that an epoch's last, smaller batch moves averages less.
        return at(plan.examples_of(feeding.examples(sources), feeding.is_masked(sources)))(state, sources)

    return Run(plan, evaluated, mesh, recipe, state, compile, single.eval_step(evaluated, mesh, recipe), tried)
