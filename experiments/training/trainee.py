"""The interface between a session and its trainee: a model on a data set, or a problem, in the same loop."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from batchnorm_jax.batch_size import NoiseEstimate

from ..records.runs import Result
from .config.options import TrainConfig
from .config.plan import Plan, Position
from .config.stored import Facts
from .machine.devices import Device
from .state import TrainState
from .step.updates import Program


class Feed(Protocol):
    """The batches of a run; what they are made of is the matter of its programs."""

    def updates(self, position: Position, step: int) -> Iterator[list[Any]]:
        """Yields the sources of each update of an epoch that is left after `step` updates."""
        ...

    def examples(self, sources: list[Any]) -> int:
        """Returns the number of examples of an update."""
        ...

    def signature(self, sources: list[Any]) -> Any:
        """Returns a key that is equal for updates which one program can make."""
        ...


class Evaluate(Protocol):
    """The evaluation of a state on every split."""

    @property
    def names(self) -> set[str]:
        """The names of the splits."""
        ...

    def compile(self, state: TrainState) -> None:
        """Compiles what has not been compiled."""
        ...

    def __call__(self, state: TrainState) -> dict[str, Result]:
        """Returns the result of each split, by name; the first decides between runs."""
        ...


@dataclass(frozen=True)
class Trainee:
    """Everything that a session needs of what it trains.

    Attributes:
      config: the configuration, with what only the trainee knows filled in.
      plan: the sizes of the run.
      devices: the devices of all processes.
      state: the state from which a new run begins, but for what `begin` computes from the data.
      compile: (state, sources, plan) -> the program of an update from sources of the same signature.
      noise: measures the gradient noise of a state.
      facts: the facts that are stored with the configuration.
      lines: the lines to print before a run.
      parameters: the number of trained parameters.
      why_not_longer: as in `stored.write_config`.
      place: makes the feed and the evaluation, which may place data on the devices.
      begin: returns the state from which a new run begins.
      recalibrated: (state, evaluate, results) -> results with other statistics in the norms, where they differ.
    """

    config: TrainConfig
    plan: Plan
    devices: list[Device]
    state: TrainState
    compile: Callable[[TrainState, list[Any], Plan], Program]
    noise: Callable[[TrainState], NoiseEstimate]
    facts: Facts
    lines: list[str]
    parameters: int
    why_not_longer: Callable[[TrainConfig], str | None]
    place: Callable[[], tuple[Feed, Evaluate]]
    begin: Callable[[], TrainState]
    recalibrated: Callable[[TrainState, Any, dict[str, Result]], dict[str, Result]] | None = None
