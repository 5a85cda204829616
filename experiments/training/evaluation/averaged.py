"""The evaluation of averaged weights, whose norms get statistics of their own."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
from jax.sharding import Mesh

from ... import data as datasets
from ...records.runs import Result
from ..config.options import TrainConfig
from ..machine import devices
from ..recipe.norms import NORMS
from ..recipe.weight_average import averaged_params
from ..state import Recipe, TrainState
from .evaluator import Evaluator
from .population import has_running, population


def evaluated(
    config: TrainConfig, model: nn.Module, recipe: Recipe, mesh: Mesh, train: datasets.Split
) -> Callable[[TrainState], TrainState]:
    """Returns a function from a state of training to the state that is evaluated.

    A run that evaluates an average of its weights has the average as parameters there. The running statistics belong
    to other weights, so that the norms get the statistics of 10,000 training images.

    Args:
      config: configuration of the run.
      model: the model as it is evaluated.
      recipe: settings of the forward pass.
      mesh: the devices.
      train: the training split.

    Raises:
      UsageError: the split has too few images for statistics.
    """
    if not config.evaluates_average:
        return lambda state: state
    replicated = devices.replicated(mesh)
    statistics: Any = None

    def averaged(state: TrainState) -> TrainState:
        nonlocal statistics
        state = state._replace(params=averaged_params(state.opt_state, state.params))
        if NORMS[config.norm].fixes_statistics or not has_running(state.batch_stats):
            return state
        if statistics is None:
            statistics = population(model, recipe, mesh, train, mode="pooled", span=config.span)
        return state._replace(batch_stats=devices.place(statistics(state), replicated))

    return averaged


class OfAverage:
    """The evaluation of what `evaluated` makes of a state, on every split.

    Args:
      evaluate: evaluates a state.
      to_evaluate: makes the state to evaluate.
    """

    def __init__(self, evaluate: Evaluator, to_evaluate: Callable[[TrainState], TrainState]):
        self._evaluate, self._to_evaluate = evaluate, to_evaluate

    @property
    def names(self) -> set[str]:
        """Names of the splits."""
        return self._evaluate.names

    def compile(self, state: TrainState) -> None:
        """Compiles the evaluation of the splits."""
        self._evaluate.compile(state)

    def __call__(self, state: TrainState) -> dict[str, Result]:
        """Returns the result of each split, by name."""
        return self._evaluate(self._to_evaluate(state))
