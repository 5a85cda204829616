"""The training loop."""

import contextlib
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments import data as datasets
from experiments._errors import UsageError
from experiments.training import devices, evaluation, feeding, norms, preflight, processes, steps
from experiments.training.checkpoints import Checkpoints, only_one, write_config, writing_to
from experiments.training.clock import Clock
from experiments.training.config import TrainConfig
from experiments.training.metrics import MetricsLog
from experiments.training.population import population_statistics
from experiments.training.progress import REMEDY, NonFiniteLossError, Progress
from experiments.training.run import Program, Run, prepare

SUMMARY = "summary.json"
# Images by which statistics are fixed before the first update.
FROZEN_EXAMPLES = 1_000
# 128 + SIGTERM, as a shell has it.
TERMINATED = 143


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains and evaluates one model; results go under the configuration's workdir.

    A run that was stopped goes on from its newest checkpoint; one that is complete is not run again.

    Args:
      config: what to do.

    Returns:
      The summary, which `summary.json` in the workdir holds too: for each evaluated split its accuracy and loss, the
      updates, and the seconds by what they were spent on.

    Raises:
      UsageError: what was asked for cannot be done.
      NonFiniteLossError: the loss is not finite; the message names the step.
      StorageError: the disk is full; what was kept before is whole.
      PeerError: another process of the run has ended.
    """
    clock = Clock()
    config = resolve(config)
    workdir = Path(str(config.workdir))
    with clock("start"):
        chosen = set_up_devices(config)
        dataset = datasets.load(
            config.dataset,
            config.data_dir,
            image_size=config.image_size,
            validation_examples=config.validation_examples,
        )
        statistics = evaluation.pixel_statistics(dataset.train)
    with clock("compile"):
        run = prepare(config, dataset, statistics, chosen)
    first = processes.is_first()
    with contextlib.ExitStack() as held:
        held.enter_context(writing_to(workdir))
        held.enter_context(processes.watched())
        if first:
            held.enter_context(only_one(workdir))
            for line in preflight.describe(config, run.plan, len(chosen), chosen[0].platform, jax.process_count()):
                print(line)
            if dataset.note:
                print(f"note      {dataset.note}")
            write_config(workdir, config, _facts(dataset, statistics))
            print(f"workdir   {workdir}", flush=True)
        # The others read what the first has written.
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("config")
        if (summary := _finished(workdir)) is not None:
            if first:
                print("This run is complete; to run it again give another --workdir or --seed.\n")
            return summary
        with clock("start"):
            resident = feeding.is_resident(config, dataset, run.mesh, _device_memory(chosen[0]))
            feed = feeding.Feed(config, dataset.train, run.mesh, resident=resident)
            evaluate = evaluation.Evaluator(run.eval_step, dataset.test, run.mesh, resident=resident)
            checkpoints = held.enter_context(Checkpoints(workdir))
            state = checkpoints.restore(run.state, set_aside=True)
            if state is None:
                state = initial_state(config, run, dataset)
            elif first:
                print(f"Going on from the checkpoint of step {int(state.step)}.", flush=True)
            log = held.enter_context(MetricsLog(workdir, int(state.step), writes=first))
        clock.add(checkpoints.notes.get("seconds", {}))
        fit = Fit(config, run, feed, evaluate, checkpoints, log, clock)
        state, results, reached = fit(state)
        summary = _summarise(config, run, int(state.step), results, reached, clock)
        summary["first_step_ended"] = fit.first_step_ended
        summary["starts"] = fit.starts
        if first:
            # Written last and whole: its presence says that the run is complete.
            aside = workdir / f"{SUMMARY}.tmp"
            aside.write_text(json.dumps(summary, indent=2) + "\n")
            os.replace(aside, workdir / SUMMARY)
    return summary


def initial_state(config: TrainConfig, run: Run, dataset: datasets.Dataset) -> steps.TrainState:
    """The state before the first update; statistics that will not change are those of the training set."""
    if config.norm != "frozen":
        return run.state
    # Layer by layer, so that what each norm puts out has mean 0 and variance 1 before the first update.
    # They are gone over once a layer, and a thousand images have positions enough.
    statistics = population_statistics(
        run.model, run.recipe, run.mesh, run.state, dataset.train, mode="layerwise", examples=FROZEN_EXAMPLES
    )
    return run.state._replace(batch_stats=devices.place(statistics, devices.replicated(run.mesh)))


def set_up_devices(config: TrainConfig) -> list[devices.Device]:
    """The devices of a configuration, its other processes joined."""
    devices.keep_compiled_programs(datasets.cache_dir() / "compiled")
    return devices.set_up(
        config.num_devices,
        config.batch_size,
        micro_batches=config.accumulation_steps,
        connect=processes.connector(config),
    )


def resolve(config: TrainConfig) -> TrainConfig:
    """The configuration with its workdir filled in, and the number of devices where the numbers depend on it."""
    if config.norm in norms.PER_DEVICE:
        chosen = set_up_devices(config)
        config = dataclasses.replace(config, num_devices=len(chosen) // jax.process_count())
    return dataclasses.replace(config, workdir=config.workdir or config.default_workdir())


class Fit:
    """Trains to the last step: call it with the state to start from."""

    def __init__(
        self,
        config: TrainConfig,
        run: Run,
        feed: feeding.Feed,
        evaluate: evaluation.Evaluator,
        checkpoints: Checkpoints,
        log: MetricsLog,
        clock: Clock,
    ):
        self._config, self._run, self._feed, self._evaluate = config, run, feed, evaluate
        self._checkpoints, self._clock = checkpoints, clock
        self._log = log
        self._programs: dict[Any, Program] = {}
        self.first_step_ended: float | None = None
        self.starts = 1
        self._computing = 0.0
        # The first step of an epoch, and the updates of it that are left.
        self._open: tuple[int, Iterator[list[steps.Source]]] | None = None

    def __call__(self, state: steps.TrainState) -> tuple[steps.TrainState, dict, int | None]:
        """Returns the state at the end, the last evaluation of every split, and the step that reached the target."""
        plan = self._run.plan
        step, results, reached = int(state.step), {}, None
        first = processes.is_first()
        self.starts = self._checkpoints.notes.get("starts", 0) + 1
        self._progress = Progress(self._config, plan, self._log, step, quiet=not first)
        with processes.Termination() as self._termination:
            if self._is_evaluated(step):
                # It was stopped there: before the evaluation, or after.
                results = self._log.evaluations(step) or self._evaluate_and_log(state, step)
                reached = self._reached(results, step)
            while step < plan.total_steps and reached is None:
                state, step = self._to_evaluation(state, step)
                results = self._pause(state, step)
                reached = self._reached(results, step)
        self._progress.close()
        return state, results, reached

    def _is_evaluated(self, step: int) -> bool:
        """Whether an evaluation follows the update that led to this step: at the end of an epoch, and in between."""
        before = step - self._config.backwards_per_forward
        return self._ends_epoch(step) or (step > 0 and _is_due(self._config.evaluate_every, before, step))

    def _ends_epoch(self, step: int) -> bool:
        return step > 0 and step == self._run.plan.locate(step - 1).last_step

    def _updates(self, step: int) -> Iterator[list[steps.Source]]:
        """The updates that are left of an epoch."""
        position = self._run.plan.locate(step)
        if self._open is None or self._open[0] != position.first_step:
            self._open = position.first_step, self._feed.updates(position, step)
        return self._open[1]

    def _to_evaluation(self, state: steps.TrainState, step: int) -> tuple[steps.TrainState, int]:
        """Trains up to the next evaluation."""
        clock, progress = self._clock, self._progress
        progress.start_epoch()
        self._computing = -clock.seconds["compute"]
        updates = self._updates(step)
        under_way, paused = None, False
        while not paused:
            with clock.beside("input", "compute", under_way):
                sources = next(updates)
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
                # The metrics of the step before this one.
                progress.read()
                progress.expect(step, metrics, feeding.examples(sources))
            paused = self._is_evaluated(step)
            # The evaluation comes first, where there is one, or a run that resumes would lack it.
            if not paused:
                stop = self._termination.is_due(step)
                if stop or _is_due(self._config.checkpoint_every, before, step):
                    self._settle(state)
                    self._save(state, step)
                if stop:
                    _exit_terminated(step)
        self._settle(state)
        self._computing += clock.seconds["compute"]
        return state, step

    def _settle(self, state: steps.TrainState) -> None:
        """Waits for the step that is under way, and reads its metrics."""
        with self._clock("compute"):
            jax.block_until_ready(state)
        with self._clock("log"):
            self._progress.read()

    def _pause(self, state: steps.TrainState, step: int) -> dict:
        """Evaluates, logs and keeps the state; the evaluation comes later if the run is to stop."""
        last = step == self._run.plan.total_steps
        if not last and self._termination.is_due(step):
            self._save(state, step)
            _exit_terminated(step)
        results = self._evaluate_and_log(state, step)
        before = step - self._config.backwards_per_forward
        last = last or self._reached(results, step) is not None
        stop = self._termination.is_due(step)
        every = self._config.checkpoint_every
        if last or stop or (_is_due(every, before, step) if every else self._ends_epoch(step)):
            self._save(state, step)
        if stop and not last:
            _exit_terminated(step)
        return results

    def _evaluate_and_log(self, state: steps.TrainState, step: int) -> dict:
        with self._clock("compile"):
            self._evaluate.compile(state)
        with self._clock("evaluate"):
            results = self._evaluate(state)
        for name, result in results.items():
            if not np.isfinite(result["loss"]):
                raise NonFiniteLossError(f"the loss on {name} is {result['loss']} after step {step}; {REMEDY}")
        with self._clock("log"):
            self._progress.end_epoch(step, results, self._computing)
        return results

    def _program(self, state: steps.TrainState, sources: list[steps.Source]) -> Program:
        key = feeding.signature(sources)
        if key not in self._programs:
            with self._clock("compile"):
                program = self._run.compile(state, sources)
            line = preflight.memory_line(program.largest, self._run.mesh.local_devices)
            if processes.is_first() and not self._programs:
                print(line, flush=True)
            self._programs[key] = program
        return self._programs[key]

    def _reached(self, results: dict, step: int) -> int | None:
        """The step, if the target is reached there."""
        target = self._config.target_accuracy
        is_reached = target is not None and next(iter(results.values()))["accuracy"] >= target
        return step if is_reached else None

    def _save(self, state: steps.TrainState, step: int) -> None:
        """Keeps a state, unless the update that made it left what is not finite: its loss is not known yet."""
        with self._clock("checkpoint"):
            for leaf in jax.tree.leaves((state.params, state.batch_stats)):
                if not np.isfinite(np.asarray(leaf, np.float32)).all():
                    raise NonFiniteLossError(f"the parameters are not finite after step {step}; {REMEDY}")
            self._checkpoints.save(state, {"seconds": dict(self._clock.seconds), "starts": self.starts})


def _is_due(every: int, before: int, step: int) -> bool:
    """Whether a multiple of a number of updates lies after one step and not after the other; never for 0."""
    return every > 0 and step // every > before // every


def _exit_terminated(step: int) -> NoReturn:
    if processes.is_first():
        print(f"\nStopped by SIGTERM; step {step} is saved.", flush=True)
    sys.exit(TERMINATED)


def _device_memory(device: devices.Device) -> int | None:
    if device.platform == "cpu":
        return preflight.host_memory()
    return (device.memory_stats() or {}).get("bytes_limit")


def _facts(dataset: datasets.Dataset, statistics: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """What evaluation must know of the training data."""
    return {
        "image_shape": list(dataset.train.image_shape),
        "num_classes": dataset.num_classes,
        "pixel_mean": statistics[0].tolist(),
        "pixel_std": statistics[1].tolist(),
        "examples": dataset.train.size,
        "note": dataset.note,
    }


def _finished(workdir: Path) -> dict[str, Any] | None:
    path = workdir / SUMMARY
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} cannot be read ({error}); delete it, and the run ends again") from error


def _summarise(config: TrainConfig, run: Run, step: int, results, reached: int | None, clock: Clock) -> dict[str, Any]:
    seconds = {name: round(seconds, 3) for name, seconds in sorted(clock.seconds.items())}
    outside = sum(clock.seconds[name] for name in ("start", "compile", "evaluate", "checkpoint"))
    training = clock.total() - outside
    compute = clock.seconds["compute"]
    return {
        "results": results,
        "updates": step,
        "epochs": run.plan.epochs_at(step),
        "target": None
        if config.target_accuracy is None
        else {"accuracy": config.target_accuracy, "reached_after_updates": reached},
        "parameters": int(sum(np.size(p) for p in jax.tree.leaves(run.state.params))),
        "seconds": {**seconds, "in all": round(clock.total(), 3)},
        # Of the time that is neither start, compilation, evaluation nor checkpoints, what is not the compiled step.
        "overhead": round(1 - compute / training, 4) if compute else None,
        "devices": f"{run.mesh.size} x {run.mesh.devices.flat[0].device_kind}",
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "command": "python -m experiments.train " + " ".join(sys.argv[1:]),
    }
