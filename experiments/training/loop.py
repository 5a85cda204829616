"""The training loop: updates, and between them evaluations, noise measurements, logging and checkpoints."""

import math
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import msgspec
import numpy as np

from batchnorm_jax.batch_size import NoiseEstimate, init_noise, noise_scale, steps_to_target, update_noise

from ..records.checkpoints import Notes
from ..records.runs import NoiseRow, RampRow, Result, StepMemory
from .clock import Clock
from .config import preflight
from .config.options import AUTO
from .config.plan import RAMP_FACTOR
from .machine import processes
from .noise import ramp
from .noise.probe import MAX_SHARDS, SHARD_EXAMPLES
from .noise.sentence import expected_gain, larger_batch
from .progress import NON_FINITE_REMEDY, NonFiniteLossError, Progress
from .state import TrainState
from .step.updates import Program
from .storage.checkpoints import Checkpoints
from .storage.metrics import MetricsLog
from .trainee import Evaluate, Feed, Trainee

# With a running noise scale, one example is measured for every 10 that are trained on: about a tenth more computing.
TRAINED_PER_MEASURED_EXAMPLES = 10
# The share that the running averages of the noise keep at each measurement: they reach back about 1 / (1 - 0.8) = 5.
RUNNING_NOISE_DECAY = 0.8
# 128 + the number of SIGTERM, the status that a shell reports for a process which that signal ended.
SIGTERM_EXIT_STATUS = 143


class Fit:
    """The training loop of one run; call it with the state to start from.

    Args:
      trainee: the trainee: its configuration, its plan, the function that compiles its updates, and its noise.
      feed: the batches.
      evaluate: the evaluation of every split.
      checkpoints: the checkpoints of the run.
      log: the metrics file.
      clock: the clock that adds up time by what it is spent on.

    Attributes:
      plan: the plan of the run, with the phases that an automatic ramp has added.
      first_step_ended: the time, in seconds since the epoch, when the first update after this start ended; None: there
        was no update.
      memory: device memory of the first compiled program, which reads full batches; None: there was no update left.
      starts: how many times the run was started, this time included.
    """

    def __init__(
        self,
        trainee: Trainee,
        feed: Feed,
        evaluate: Evaluate,
        checkpoints: Checkpoints,
        log: MetricsLog,
        clock: Clock,
    ):
        self._config, self._compile, self._noise = trainee.config, trainee.compile, trainee.noise
        self._devices, self._feed, self._evaluate = trainee.devices, feed, evaluate
        self.plan = ramp.restored(trainee.plan, checkpoints.notes.ramp)
        self._checkpoints, self._clock = checkpoints, clock
        self._log = log
        self._programs: dict[Any, Program] = {}
        self.first_step_ended: float | None = None
        self.memory: StepMemory | None = None
        self.starts = 1
        self._computing = 0.0
        # The evaluations of the first split so far, by their steps.
        self._course: list[tuple[int, Result]] = []
        self._places = Places(self._config.evaluate_every, self._config.evaluate_growth)
        # The first step of the present epoch, and an iterator over its remaining updates.
        self._open: tuple[int, Iterator[list[Any]]] | None = None

    def __call__(self, state: TrainState) -> tuple[TrainState, dict[str, Result], int | None]:
        """Trains to the last step, or to the target.

        Args:
          state: the state to start from, new or from a checkpoint.

        Returns:
          The final state, the last evaluation of every split, and the step at which the target was reached (None: it
          was not).

        Raises:
          NonFiniteLossError: a loss or a parameter is not finite.
          SystemExit: the process received SIGTERM; the state is saved.
        """
        step, results = int(state.step), {}
        first = processes.is_first()
        self.starts = self._checkpoints.notes.starts + 1
        self._progress = Progress(self.plan, self._log, step, log_every=self._config.log_every, quiet=not first)
        self._running_noise = init_noise()
        for estimate in self._log.noise(step):
            self._running_noise = update_noise(self._running_noise, NoiseEstimate(*estimate), RUNNING_NOISE_DECAY)
        with self._progress, processes.Termination() as self._termination:
            self._course = self._log.course(step)
            # A run ends at an evaluation, also one that was stopped between two of them.
            is_over = False
            if self._is_evaluated(step):
                # The run was stopped here, where an evaluation is due; make it if its rows are missing or damaged.
                results = self._log.evaluations(step)
                if set(results) != self._evaluate.names:
                    results = self._evaluate_and_log(state, step)
                is_over = self._is_over(step)
            while step < self.plan.total_steps and not is_over:
                state, step = self._to_evaluation(state, step)
                results = self._pause(state, step)
                is_over = self._is_over(step)
        return state, results, self._reached()

    def _is_evaluated(self, step: int) -> bool:
        """Returns whether an evaluation is due at this step: at the end of an epoch, or by --evaluate_every."""
        config, before = self._config, step - self._config.backwards_per_forward
        if step <= 0:
            return False
        if config.evaluate_growth:
            return step == self.plan.total_steps or self._places.next_after(before) <= step
        return self._ends_epoch(step) or _is_due(config.evaluate_every, before, step)

    def _ends_epoch(self, step: int) -> bool:
        return step > 0 and step == self.plan.locate(step - 1).last_step

    def _noise_every(self, step: int) -> int:
        """Returns the number of updates between two noise measurements in the epoch of a step; 0: no measurements."""
        config, phase = self._config, self.plan.locate(step).phase
        if config.noise_every or not (config.live or config.batch_ramp == AUTO):
            return config.noise_every
        trained_examples = TRAINED_PER_MEASURED_EXAMPLES * SHARD_EXAMPLES * MAX_SHARDS
        return min(max(1, trained_examples // phase.batch_size), phase.steps_per_epoch)

    def _updates(self, step: int) -> Iterator[list[Any]]:
        """Returns an iterator over the updates that are left of the epoch of a step."""
        position = self.plan.locate(step)
        if self._open is None or self._open[0] != position.first_step:
            self._open = position.first_step, self._feed.updates(position, step)
        return self._open[1]

    def _to_evaluation(self, state: TrainState, step: int) -> tuple[TrainState, int]:
        """Trains up to the next evaluation, and returns the state and the step there."""
        clock, progress = self._clock, self._progress
        progress.start_epoch()
        self._computing = -clock.seconds["compute"]
        noise_every = self._noise_every(step)
        under_way, paused = None, False
        while not paused:
            with clock.beside("input", "compute", under_way):
                sources = next(self._updates(step))
            program = self._program(state, sources)
            with clock("compute"):
                state, metrics = program.call(state, sources)
                progress.wait()
                if self.first_step_ended is None:
                    jax.block_until_ready(metrics)
                    self.first_step_ended = time.time()
            before, step = step, step + self._config.backwards_per_forward
            under_way = metrics["loss"]
            with clock.beside("log", "compute", under_way):
                # These are the metrics of the previous step: reading this step's would wait for the device.
                progress.read()
                progress.expect(step, metrics, self._feed.examples(sources))
            if _is_due(noise_every, before, step):
                self._settle(state)
                self._measure_noise(state, step)
            paused = self._is_evaluated(step)
            # Where an evaluation is due, `_pause` saves the state instead, after the evaluation unless SIGTERM came.
            if not paused:
                stop = self._termination.is_due(step)
                every = self._config.checkpoint_every
                if stop or (_is_due(every, before, step) if every else self._ends_epoch(step)):
                    self._settle(state)
                    self._save(state, step)
                if stop:
                    _exit_terminated(step)
        self._settle(state)
        self._computing += clock.seconds["compute"]
        if self._ends_epoch(step):
            # The ramp decides before the state is saved, so that the checkpoint holds its decision.
            self.plan = ramp.grown(self.plan, step, self._critical())
            self._progress.plan = self.plan
        return state, step

    def _settle(self, state: TrainState) -> None:
        """Waits for the step that the device is computing, and reads its metrics."""
        with self._clock("compute"):
            jax.block_until_ready(state)
        with self._clock("log"):
            self._progress.read()

    def _pause(self, state: TrainState, step: int) -> dict[str, Result]:
        """Evaluates and logs, then saves the state if a checkpoint is due; returns the results.

        On SIGTERM the state is saved and the process ends, without the evaluation: the run makes it when it resumes.
        """
        last = step == self.plan.total_steps
        if not last and self._termination.is_due(step):
            self._save(state, step)
            _exit_terminated(step)
        results = self._evaluate_and_log(state, step)
        before = step - self._config.backwards_per_forward
        last = last or self._is_over(step)
        stop = self._termination.is_due(step)
        every = self._config.checkpoint_every
        if last or stop or (_is_due(every, before, step) if every else self._ends_epoch(step)):
            self._save(state, step)
        if stop and not last:
            _exit_terminated(step)
        return results

    def _evaluate_and_log(self, state: TrainState, step: int) -> dict[str, Result]:
        with self._clock("compile"):
            self._evaluate.compile(state)
        with self._clock("evaluate"):
            results = self._evaluate(state)
        for name, result in results.items():
            if not np.isfinite(result.loss):
                raise NonFiniteLossError(f"the loss on {name} is {result.loss} after step {step}; {NON_FINITE_REMEDY}")
        self._course.append((step, next(iter(results.values()))))
        with self._clock("log"):
            # The ramp row goes first: evaluation rows at this step mean that everything before them is written.
            if not self._is_over(step):
                self._log_ramp(step)
            self._progress.end_epoch(step, results, self._computing)
            if self._config.live and np.isfinite(self._running_noise.average.trace):
                self._progress.say(self._noise_line(step))
        return results

    def _log_ramp(self, step: int) -> None:
        """Logs and reports that a new batch size begins at this step, if one does and it is not logged yet."""
        phase = self.plan.phases[-1]
        if self.plan.largest is None or phase.first_step != step or step == 0 or self._log.has(RampRow, step):
            return
        # This is the scale that decided, also in a run that resumed here: it is computed from the same rows.
        scale = float(noise_scale(self._running_noise))
        known = bool(np.isfinite(scale))
        row = RampRow(kind="ramp", step=step, epoch=phase.first_epoch, batch_size=phase.batch_size)
        self._log.write(msgspec.structs.replace(row, noise_scale=scale) if known else row)
        why = f"the noise scale is {self._noise_said()}; " if known else "the gradient cannot be told from noise; "
        gain = expected_gain(self._critical(), phase.batch_size // RAMP_FACTOR)
        self._progress.say(f"ramp      batch {phase.batch_size} from here on: {why}{gain}")

    def _measure_noise(self, state: TrainState, step: int) -> None:
        with self._clock("noise"):
            estimate = self._noise(state)
        with self._clock("log"):
            norm2, trace = (float(value) for value in estimate)
            epoch = self.plan.epochs_at(step)
            self._log.write(NoiseRow(kind="noise", step=step, epoch=epoch, gradient_norm2=norm2, trace=trace))
            self._running_noise = update_noise(self._running_noise, estimate, RUNNING_NOISE_DECAY)

    def _noise_line(self, step: int) -> str:
        said = f"{self._noise_said()}, " if np.isfinite(self._critical()) else ""
        batch_size = self.plan.locate(max(step - 1, 0)).phase.batch_size
        return f"noise     {said}{larger_batch(self._critical(), batch_size)}"

    def _critical(self) -> float:
        """Returns the critical batch size by the running noise scale, in examples; nan where it is not known."""
        return self._config.critical_share * float(noise_scale(self._running_noise))

    def _noise_said(self) -> str:
        """Returns the noise scale, and the critical batch size if it is another number."""
        scale, share = float(noise_scale(self._running_noise)), self._config.critical_share
        return _short(scale) + ("" if share == 1 else f", the critical batch size {_short(scale * share)}")

    def _program(self, state: TrainState, sources: list[Any]) -> Program:
        key = self._feed.signature(sources)
        if key not in self._programs:
            with self._clock("compile"):
                program = self._compile(state, sources, self.plan)
            local = [device for device in self._devices if device.process_index == jax.process_index()]
            memory = preflight.step_memory(program.largest, local)
            line = preflight.memory_line(memory)
            if not self._programs:
                self.memory = memory
                self._progress.say(line)
            self._programs[key] = program
            self.plan = ramp.within_memory(self.plan, memory)
        return self._programs[key]

    def _reached(self) -> int | None:
        """Returns the updates after which the target was reached; None: it was not, or there is none.

        That is the first evaluation at it; with `past_target`, where the losses without their noise are at it.
        """
        config = self._config
        of_accuracy = config.target_accuracy is not None
        target = -config.target_accuracy if config.target_accuracy is not None else config.target_loss
        if target is None:
            return None
        losses = [-(result.accuracy or 0.0) if of_accuracy else result.loss for _, result in self._course]
        if not config.past_target:
            return next((step for (step, _), loss in zip(self._course, losses, strict=True) if loss <= target), None)
        if min(losses, default=math.inf) > target:
            return None
        at = steps_to_target([step for step, _ in self._course], losses, target)
        return math.ceil(at) if math.isfinite(at) else None

    def _is_over(self, step: int) -> bool:
        """Returns whether the run ends here, because it has reached the target and gone past it as far as asked."""
        reached = self._reached()
        return reached is not None and step >= reached * (1 + self._config.past_target)

    def _save(self, state: TrainState, step: int) -> None:
        """Saves a state, unless its parameters or statistics are not finite.

        The update that made them may have diverged: its loss was computed before the update, and was still finite.
        """
        with self._clock("checkpoint"):
            for leaf in jax.tree.leaves((state.params, state.batch_stats)):
                if not np.isfinite(np.asarray(leaf, np.float32)).all():
                    raise NonFiniteLossError(f"the parameters are not finite after step {step}; {NON_FINITE_REMEDY}")
            notes = Notes(seconds=dict(self._clock.seconds), starts=self.starts, ramp=ramp.notes(self.plan))
            self._checkpoints.save(state, notes)


class Places:
    """The updates after which a run is evaluated, at distances that grow with them."""

    def __init__(self, every: int, growth: float):
        self._every, self._growth = every, growth
        self._place = 0

    def next_after(self, step: int) -> int:
        """Returns the first place after a step; call it with steps that rise."""
        while self._place <= step:
            self._place += max(self._every, math.floor(self._growth * self._place))
        return self._place


def _is_due(every: int, before: int, step: int) -> bool:
    """Returns whether a multiple of `every` lies in (before, step]; never for every = 0."""
    return every > 0 and step // every > before // every


def _short(scale: float) -> str:
    """Formats a number to three significant digits."""
    return f"{float(f'{scale:.3g}'):,.6g}"


def _exit_terminated(step: int) -> NoReturn:
    if processes.is_first():
        print(f"\nStopped by SIGTERM; step {step} is saved.", flush=True)
    sys.exit(SIGTERM_EXIT_STATUS)
