"""The training of a problem, a program of five functions, as a trainee."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from batchnorm_jax.batch_size import NoiseEstimate, measure_noise, scale_learning_rate

from .. import data as datasets
from .._errors import UsageError
from ..problems import loading
from ..problems.problem import Problem
from ..records.runs import ProblemFacts, Result
from . import extending
from .clock import Clock
from .config import plan as plans
from .config import preflight
from .config.options import AUTO, LR_SCALINGS, TrainConfig
from .config.plan import Plan, Position
from .machine import devices
from .problem_state import Started, Structure, copied, is_key, running
from .state import TrainState
from .step.parts import make_schedule
from .step.updates import Program
from .storage.metrics import HELD_OUT
from .terminal import say
from .trainee import Trainee

# A noise measurement takes as many examples as that of a data set, from batches with a seed of their own.
NOISE_SHARDS, NOISE_SHARD_EXAMPLES = 32, 16
NOISE_SEED = 2_000_000_000
RATES_AT_A_TIME = 1_024
# A state that is not larger is updated twice at the start, to see whether the learning rate has any effect.
MOST_TRIED_BYTES = 2**28


class Reading(NamedTuple):
    """The input of an update.

    Attributes:
      batch: the batch, whatever the problem makes of it.
      examples: the number of its examples.
      step: the number of updates before this one.
    """

    batch: Any
    examples: int
    step: int


class ProblemNumbers(NamedTuple):
    """The numbers of a problem that a study needs.

    Attributes:
      examples: the number of training examples.
      goal: the quantity that is evaluated, "loss" or "accuracy".
      rule: how the rate grows with the batch.
      batch_size: the batch size at which the rate is good.
      learning_rate: the problem's own rate.
      has_gradient: whether the gradient noise can be measured.
      initial: the loss or the accuracy before any update.
      devices: the number of devices that hold its state.
      kind: the kind of these devices.
    """

    examples: int
    goal: Literal["loss", "accuracy"]
    rule: Literal["linear", "sqrt"]
    batch_size: int
    learning_rate: float
    has_gradient: bool
    initial: float
    devices: int
    kind: str


def trainee(config: TrainConfig, clock: Clock) -> Trainee:
    """Loads a problem and prepares its run; writes nothing.

    Args:
      config: configuration of the run, with a `problem`.
      clock: counts the time.

    Raises:
      UsageError: the problem cannot be loaded, fails, or does not suit the configuration.
    """
    devices.keep_compiled_programs(datasets.cache_dir() / "compiled")
    with clock("start"):
        # A problem that divides its batch does so itself. A CPU is one device for it, unless more are asked for.
        devices.set_up(config.num_devices or 1)
        problem = load(config)
        config = with_rate(config, problem)
    with clock("compile"):
        started = Started(config, problem)
        plan = plans.make(config, problem.examples, len(started.devices))
        made = _Run(config, problem, started.structure)
    if config.num_devices is not None and config.num_devices != len(started.devices):
        raise UsageError(
            f"--num_devices={config.num_devices}, and the state of --problem={config.problem} lies on "
            f"{len(started.devices)}; make its init place the state on all of them, or leave the flag out"
        )
    return Trainee(
        config=config,
        plan=plan,
        devices=started.devices,
        state=started.state,
        compile=made.compile,
        noise=made.noise,
        facts=ProblemFacts(examples=problem.examples, goal=problem.goal, state=started.digest()),
        lines=preflight.describe_problem(config, plan, len(started.devices), started.devices[0].platform),
        parameters=sum(int(np.size(leaf)) for leaf in started.state.opt_state),
        why_not_longer=lambda there: extending.why_not(
            with_rate(there, problem), config, problem.examples, len(started.devices)
        ),
        place=lambda: (made, _Evaluation(made)),
        begin=lambda: started.state,
    )


def describe(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Returns what a study needs to know of a problem; called in the process that trains, which alone may use devices.

    Args:
      folder: the folder of the study, which is not used.
      options: options of `TrainConfig`, the problem among them.

    Returns:
      A `ProblemNumbers`, as values that JSON can hold.
    """
    del folder
    config = TrainConfig(**options)
    loaded = load(config)
    started = Started(config, loaded)
    with running(config, "batch"):
        batch = loaded.batch(config.seed, 0, loaded.batch_size)
    if not minds_rate(config, loaded, started.structure.own(started.state), batch):
        raise UsageError(
            f"the update of --problem={config.problem} makes the same of two learning rates, so that it seems not to "
            "use its argument learning_rate, and no rate can be chosen"
        )
    return ProblemNumbers(
        examples=loaded.examples,
        goal=loaded.goal,
        rule=loaded.rule,
        batch_size=loaded.batch_size,
        learning_rate=loaded.learning_rate,
        has_gradient=loaded.gradient is not None,
        initial=evaluated(config, loaded, started.structure.own(started.state)),
        devices=len(started.devices),
        kind=started.devices[0].device_kind,
    )._asdict()


def minds_rate(config: TrainConfig, problem: Problem, state: Any, batch: Any) -> bool:
    """Returns whether two learning rates lead to different states, from copies of a state."""
    with running(config, "update"):
        rates = problem.learning_rate, 2 * problem.learning_rate
        ends = [problem.update(copied(state), batch, rate)[0] for rate in rates]
    pairs = zip(*map(jax.tree.leaves, ends), strict=True)
    # Keys of random numbers have no numbers of their own, and do not depend on the rate.
    return any(not np.array_equal(a, b, equal_nan=False) for a, b in pairs if not is_key(a))


def evaluated(config: TrainConfig, problem: Problem, state: Any) -> float:
    """Returns the loss or the accuracy of a state.

    Raises:
      UsageError: it is not one number, or not an accuracy.
    """
    with running(config, "evaluate"):
        value = problem.evaluate(state)
        if np.shape(value) != ():
            raise ValueError(f"it returned an array of shape {np.shape(value)}, and must return one number")
        value = float(value)
        if problem.goal == "accuracy" and (value < 0 or value > 1):
            raise ValueError(f"it returned {value:g}, and an accuracy is a share of 1")
    return value


def load(config: TrainConfig) -> Problem:
    """Returns the problem of a configuration, which suits its target and its noise measurements.

    Raises:
      UsageError: it cannot be loaded, or does not suit.
    """
    assert config.problem is not None
    problem = loading.load("problem", config.problem)
    check_target(config.problem, problem.goal, config.target_accuracy, config.target_loss)
    flags = {"--noise_every": config.noise_every, "--live": config.live, "--batch_ramp=auto": config.batch_ramp == AUTO}
    flag = next((name for name, given in flags.items() if given), None)
    if flag and problem.gradient is None:
        raise UsageError(
            f"{flag} measures the gradient noise, and --problem={config.problem} has no `gradient`, a function "
            "(state, batch) -> the gradient of the batch's mean loss; give it one, or leave the flag out"
        )
    return problem


def check_target(name: str, goal: str, accuracy: float | None = None, loss: float | None = None) -> None:
    """Refuses a target of the other kind than a problem's goal.

    Raises:
      UsageError: a target accuracy is given and the problem evaluates a loss, or the other way round.
    """
    given, right = ("accuracy", "loss") if accuracy is not None else ("loss", "accuracy")
    if {"accuracy": accuracy, "loss": loss}[given] is not None and goal != given:
        raise UsageError(
            f"--target_{given} is given, and --problem={name} evaluates its {right} (its `goal`); give --target_{right}"
        )


def refuse_met(numbers: ProblemNumbers, target: float) -> None:
    """Refuses a target that a problem is at before any update.

    Raises:
      UsageError: it is.
    """
    of_accuracy = numbers.goal == "accuracy"
    if numbers.initial >= target if of_accuracy else numbers.initial <= target:
        side = "higher" if of_accuracy else "lower"
        raise UsageError(
            f"--target_{numbers.goal}={target:g} is met before any update, at {numbers.initial:.4g}; give a {side} one"
        )


def with_rate(config: TrainConfig, problem: Problem) -> TrainConfig:
    """Returns the configuration with the problem's own rate at its batch size, where it has none."""
    if config.learning_rate is not None:
        return config
    if config.lr_scaling is None:
        rate = scale_learning_rate(problem.learning_rate, problem.batch_size, config.batch_size, rule=problem.rule)
    else:
        rate = LR_SCALINGS[config.lr_scaling](problem.learning_rate, problem.batch_size, config.batch_size)
    return dataclasses.replace(config, learning_rate=rate)


class _Run:
    """The batches, each a `Reading`, the programs and the noise of a run; a `trainee.Feed`."""

    def __init__(self, config: TrainConfig, problem: Problem, structure: Structure):
        self.config, self.problem, self.structure = config, problem, structure
        self._has_warned = self._has_warmed_up = False

    def updates(self, position: Position, step: int) -> Iterator[list[Any]]:
        """Yields the batch of each update of an epoch that is left."""
        size = position.phase.batch_size
        # Batches are counted in their own size, so that a batch that has grown goes on where the smaller ones ended.
        ahead = position.phase.first_epoch * self.problem.examples // size - position.phase.first_step
        for number in range(step, position.last_step):
            with running(self.config, "batch"):
                batch = self.problem.batch(self.config.seed, number + ahead, size)
            yield [Reading(batch, size, number)]

    def examples(self, sources: list[Any]) -> int:
        """Returns the number of examples of an update."""
        return sources[0].examples

    def signature(self, sources: list[Any]) -> Any:
        """Returns the batch size, which decides the shapes."""
        return sources[0].examples

    def compile(self, state: TrainState, sources: list[Any], plan: Plan) -> Program:
        """Compiles the update for a batch; one that is not a jitted function compiles at its first call."""
        rates = _Rates(make_schedule(self.config, plan)(plan.peak_learning_rate))
        update, structure = self.problem.update, self.structure
        largest, batch, rate, own = None, sources[0].batch, rates.at(sources[0].step), structure.own(state)
        with running(self.config, "update"):
            if hasattr(update, "lower"):
                structure.check(own, *jax.eval_shape(update, own, batch, rate))
                largest = update.lower(own, batch, rate).compile()
            else:
                # A function that is not jitted as a whole compiles its parts as it runs, here on a copy.
                structure.check(own, *jax.block_until_ready(update(copied(own), batch, rate)))
        self._warn(own, batch, sources[0].examples)
        if self._measures_noise:
            self._warm_up_noise(own, state)

        def call(state: TrainState, sources: list[Any]) -> tuple[TrainState, dict[str, jax.Array]]:
            (source,) = sources
            rate = rates.at(source.step)
            with running(self.config, "update"):
                own, loss = update(structure.own(state), source.batch, rate)
                metrics = {"loss": jnp.asarray(loss), "learning_rate": jnp.asarray(rate)}
                return structure.plain(own, np.asarray(source.step + 1, np.int32)), metrics

        return Program(call, largest)

    def _warn(self, own: Any, batch: Any, size: int) -> None:
        """Says what seems to be wrong with an update, though it can be made."""
        if self._has_warned:
            return
        self._has_warned = True
        axes = {np.shape(leaf)[0] for leaf in jax.tree.leaves(batch) if np.ndim(leaf) > 0}
        if len(axes) == 1 and axes != {size}:
            say(f"warning   its batch has {axes.pop():,} examples along the first axis, and {size:,} were asked for")
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(own) if isinstance(leaf, jax.Array) and not is_key(leaf))
        if held <= MOST_TRIED_BYTES and not minds_rate(self.config, self.problem, own, batch):
            say(
                "warning   two learning rates lead to the same state: the update seems not to use its argument "
                "learning_rate, so that --learning_rate, --schedule and --warmup_epochs change nothing"
            )

    @property
    def _gradient(self) -> Callable[[Any, Any], Any]:
        assert self.problem.gradient is not None  # `load` refuses measurements of a problem without.
        return self.problem.gradient

    @property
    def _measures_noise(self) -> bool:
        config = self.config
        return bool(config.noise_every or config.live or config.batch_ramp == AUTO)

    def _warm_up_noise(self, own: Any, state: TrainState) -> None:
        """Measures the noise of two shards once, so that the first measurement takes no longer than others.

        A gradient that was compiled ahead of time would be traced again at its first call, and the sums of gradients
        are compiled at theirs.
        """
        if self._has_warmed_up:
            return
        self._has_warmed_up = True
        with running(self.config, "gradient"):
            batch = self.problem.batch(NOISE_SEED, int(state.step), 2 * NOISE_SHARD_EXAMPLES)
            measure_noise(self._gradient, own, [batch], shards=2)

    def noise(self, state: TrainState) -> NoiseEstimate:
        """Measures the gradient noise, on examples that follow from the step."""
        size = NOISE_SHARDS * NOISE_SHARD_EXAMPLES
        with running(self.config, "gradient"):
            batch = self.problem.batch(NOISE_SEED + self.config.seed % 1_000, int(state.step), size)
            estimate = measure_noise(self._gradient, self.structure.own(state), [batch], NOISE_SHARDS)
        return NoiseEstimate(*(value.item() for value in estimate))


class _Rates:
    """The learning rates by the number of updates, as numbers of the host, many at a time.

    A program on a device for each would take longer than a small update.
    """

    def __init__(self, schedule: optax.Schedule):
        self._schedule = jax.jit(jax.vmap(schedule))
        self._first, self._rates = 0, np.zeros(0)

    def at(self, step: int) -> float:
        """Returns the rate of the update that follows `step` updates."""
        if not 0 <= step - self._first < len(self._rates):
            self._first = step
            self._rates = np.asarray(self._schedule(jnp.arange(step, step + RATES_AT_A_TIME)), np.float64)
        return self._rates[step - self._first].item()


class _Evaluation:
    """The evaluation of a problem; a `trainee.Evaluate`."""

    def __init__(self, run: _Run):
        self._run, self._is_compiled = run, False
        self.names = {HELD_OUT}

    def compile(self, state: TrainState) -> None:
        """Compiles `evaluate`, unless it is not a jitted function and compiles at its first call."""
        evaluate = self._run.problem.evaluate
        if hasattr(evaluate, "lower") and not self._is_compiled:
            with running(self._run.config, "evaluate"):
                evaluate.lower(self._run.structure.own(state)).compile()
        self._is_compiled = True

    def __call__(self, state: TrainState) -> dict[str, Result]:
        """Returns the loss, or the accuracy and the share of wrong answers."""
        problem = self._run.problem
        value = evaluated(self._run.config, problem, self._run.structure.own(state))
        if problem.goal == "accuracy":
            return {HELD_OUT: Result(accuracy=value, loss=1 - value)}
        return {HELD_OUT: Result(loss=value)}
