"""One training run, from its configuration to its summary."""

import contextlib
import dataclasses
import platform
import sys
from pathlib import Path

import jax
import msgspec
from jax.experimental import multihost_utils

from .. import _commands, _files
from .._errors import UsageError
from ..records.runs import Result, Summary, Target
from . import of_images, of_problem
from .clock import Clock
from .config.options import TrainConfig
from .config.plan import Plan
from .config.stored import read_name, write_config
from .loop import Fit
from .machine import processes
from .recipe.norms import NORMS
from .storage.checkpoints import Checkpoints, writing_to
from .storage.metrics import MetricsLog
from .storage.workdir import only_one
from .terminal import say
from .trainee import Trainee

SUMMARY = "summary.json"


def train(config: TrainConfig, *, check_statistics: bool = False) -> Summary:
    """Trains and evaluates one model, or a problem, and writes the results to the configuration's workdir.

    A run that was stopped resumes from its newest checkpoint; a run that is complete is not run again.

    Args:
      config: configuration of the run.
      check_statistics: at the end, also evaluate with population statistics from training images; where these change
        an accuracy by more than its sampling error, the summary has both results.

    Returns:
      The summary, which is also written to `summary.json` in the workdir.

    Raises:
      UsageError: the run cannot be done as configured.
      NonFiniteLossError: the loss is not finite; the message names the step.
      StorageError: the disk is full; earlier checkpoints and rows are intact.
      PeerError: another process of the run has ended.
    """
    clock = Clock()
    config = resolve(config)
    workdir = Path(str(config.workdir))
    trainee = prepare(config, clock)
    config = trainee.config
    first = processes.is_first()
    with contextlib.ExitStack() as held:
        held.enter_context(writing_to(workdir))
        held.enter_context(processes.watched())
        if first:
            held.enter_context(only_one(workdir))
            for line in trainee.lines:
                say(line)
            write_config(workdir, config, trainee.facts, trainee.why_not_longer)
            say(f"workdir   {workdir}")
        # The other processes read the configuration that the first one has written.
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("config")
        if (summary := _finished(workdir, trainee.plan)) is not None:
            if first:
                print("This run is complete. To train again, give another --workdir or --seed.\n")
            return summary
        with clock("start"):
            feed, evaluate = trainee.place()
            checkpoints = held.enter_context(Checkpoints(workdir, run=read_name(workdir)))
            state = checkpoints.restore(trainee.state, set_aside=True)
            if state is None:
                state = trainee.begin()
            if int(state.step) > 0 and first:
                print(f"Resuming from the checkpoint of step {int(state.step)}.", flush=True)
            log = held.enter_context(MetricsLog(workdir, int(state.step), writes=first))
        clock.add(checkpoints.notes.seconds)
        fit = Fit(trainee, feed, evaluate, checkpoints, log, clock)
        state, results, reached = fit(state)
        summary = _summarise(trainee, fit.plan, int(state.step), results, reached, clock)
        recalibrated = None
        if check_statistics and trainee.recalibrated is not None:
            with clock("evaluate"):
                recalibrated = trainee.recalibrated(state, evaluate, results)
        summary = msgspec.structs.replace(
            summary,
            recalibrated=recalibrated or None,
            first_step_ended=fit.first_step_ended,
            starts=fit.starts,
            memory=fit.memory,
        )
        if first:
            # The summary is written last, in one atomic write: its presence means that the run is complete.
            _files.write_json(workdir / SUMMARY, summary)
    return summary


def prepare(config: TrainConfig, clock: Clock) -> Trainee:
    """Prepares what a configuration trains, as far as that goes without writing anything.

    Args:
      config: configuration of the run, from `resolve`.
      clock: counts the time.

    Raises:
      UsageError: devices, data, model or problem cannot be had or used.
    """
    return (of_images if config.problem is None else of_problem).trainee(config, clock)


def resolve(config: TrainConfig) -> TrainConfig:
    """Returns the configuration with its default workdir filled in.

    Where the results depend on the number of devices, because norms use each device's own statistics, that number is
    filled in too.
    """
    if NORMS[config.norm].depends_on_devices:
        chosen = of_images.set_up_devices(config)
        config = dataclasses.replace(config, num_devices=len(chosen) // jax.process_count())
    return dataclasses.replace(config, workdir=config.workdir or config.default_workdir())


def _finished(workdir: Path, plan: Plan) -> Summary | None:
    """Returns the summary of a run that is complete, else None; the summary of a shorter run is renamed."""
    path = workdir / SUMMARY
    try:
        summary = _files.read_json(path, Summary)
    except UsageError as error:
        # Checking for the file first would be a race: the first process may rename it in between.
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise UsageError(f"{error}. Move the file away and start again: the run then writes a new one") from error
    if summary.updates >= plan.total_steps or summary.reached_after is not None or plan.largest is not None:
        return summary
    if processes.is_first():
        path.rename(path.with_stem(f"{path.stem}-{summary.updates}"))
    return None


def _summarise(
    trainee: Trainee, plan: Plan, step: int, results: dict[str, Result], reached: int | None, clock: Clock
) -> Summary:
    seconds = {name: round(seconds, 3) for name, seconds in sorted(clock.seconds.items())}
    outside = sum(clock.seconds[name] for name in ("start", "compile", "evaluate", "checkpoint", "noise"))
    training = clock.total() - outside
    compute = clock.seconds["compute"]
    accuracy, loss = trainee.config.target_accuracy, trainee.config.target_loss
    has_target = accuracy is not None or loss is not None
    return Summary(
        results=results,
        updates=step,
        epochs=plan.epochs_at(step),
        target=Target(accuracy=accuracy, loss=loss, reached_after_updates=reached) if has_target else None,
        parameters=trainee.parameters,
        seconds={**seconds, "in all": round(clock.total(), 3)},
        # The share of the training time that is not the compiled step.
        overhead=round(1 - compute / training, 4) if compute else None,
        devices=f"{len(trainee.devices)} x {trainee.devices[0].device_kind}",
        versions={"python": platform.python_version(), "jax": jax.__version__},
        command=_commands.shareable_command([*_commands.start("train"), *sys.argv[1:]]),
    )
