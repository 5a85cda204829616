"""One training run, from its configuration to its summary."""

import contextlib
import dataclasses
import platform
import sys
from pathlib import Path

import jax
import msgspec
import numpy as np
from jax.experimental import multihost_utils

from .. import _commands, _files
from .. import data as datasets
from .._errors import UsageError
from ..records.runs import DataFacts, Result, Summary, Target
from . import extending
from .clock import Clock
from .config import plan as plans
from .config import preflight
from .config.options import TrainConfig
from .config.plan import Plan
from .config.stored import read_name, write_config
from .evaluation import evaluator
from .evaluation.population import population_statistics, where_recalibrated_differs
from .loop import Fit
from .machine import devices, processes
from .noise.probe import noise_probe
from .recipe.norms import NORMS
from .state import TrainState
from .step import feeding
from .step.run import Run, prepare
from .storage.checkpoints import Checkpoints, writing_to
from .storage.metrics import MetricsLog
from .storage.workdir import only_one
from .terminal import say

SUMMARY = "summary.json"
# Fixed statistics of norms take one pass over these images per layer. A thousand have enough positions.
FIXED_STATISTICS_IMAGES = 1_000


def train(config: TrainConfig, *, check_statistics: bool = False) -> Summary:
    """Trains and evaluates one model, and writes the results to the configuration's workdir.

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
    with clock("start"):
        chosen, dataset, statistics = start(config)
    with clock("compile"):
        run = prepare(config, dataset, statistics, chosen)
        noise = noise_probe(config, run, dataset)
    first = processes.is_first()
    with contextlib.ExitStack() as held:
        held.enter_context(writing_to(workdir))
        held.enter_context(processes.watched())
        if first:
            held.enter_context(only_one(workdir))
            where = len(chosen), chosen[0].platform, jax.process_count()
            for line in preflight.describe(config, run.plan, *where, run.tried):
                say(line)
            if dataset.note:
                say(f"note      {dataset.note}")
            write_config(
                workdir,
                config,
                _facts(dataset, statistics),
                lambda there: extending.why_not(there, config, dataset.train.size, len(chosen)),
            )
            say(f"workdir   {workdir}")
        # The other processes read the configuration that the first one has written.
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("config")
        if (summary := _finished(workdir, run.plan)) is not None:
            if first:
                print("This run is complete. To train again, give another --workdir or --seed.\n")
            return summary
        with clock("start"):
            resident = feeding.is_resident(config, dataset, run.mesh, devices.memory_of(chosen[0]))
            feed = feeding.Feed(config, dataset.train, run.mesh, resident=resident)
            evaluate = evaluator.Evaluator(run.eval_step, dataset.test, run.mesh, resident=resident)
            checkpoints = held.enter_context(Checkpoints(workdir, run=read_name(workdir)))
            state = checkpoints.restore(run.state, set_aside=True)
            if state is None:
                state = initial_state(config, run, dataset)
            if int(state.step) > 0 and first:
                print(f"Resuming from the checkpoint of step {int(state.step)}.", flush=True)
            log = held.enter_context(MetricsLog(workdir, int(state.step), writes=first))
        clock.add(checkpoints.notes.seconds)
        fit = Fit(config, run, feed, evaluate, checkpoints, log, clock, noise)
        state, results, reached = fit(state)
        summary = _summarise(config, run._replace(plan=fit.plan), int(state.step), results, reached, clock)
        recalibrated = None
        if check_statistics and not NORMS[config.norm].fixes_statistics:
            with clock("evaluate"):
                recalibrated = where_recalibrated_differs(run, state, dataset, evaluate, results, config.span)
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


def start(config: TrainConfig) -> tuple[list[devices.Device], datasets.Dataset, tuple[list[float], list[float]]]:
    """Returns the devices and the data set of a run, and the mean and standard deviation of its training pixels."""
    chosen = set_up_devices(config)
    dataset = datasets.load(
        config.dataset, config.data_dir, image_size=config.image_size, validation_examples=config.validation_examples
    )
    return chosen, dataset, evaluator.pixel_statistics(dataset.train)


def initial_state(config: TrainConfig, run: Run, dataset: datasets.Dataset) -> TrainState:
    """Returns the state before the first update; fixed statistics are computed from the training set."""
    if not NORMS[config.norm].fixes_statistics:
        return run.state
    # Layer by layer, so that the output of each norm has mean 0 and variance 1 before the first update.
    statistics = population_statistics(
        run.model, run.recipe, run.mesh, run.state, dataset.train, mode="layerwise", examples=FIXED_STATISTICS_IMAGES
    )
    return run.state._replace(batch_stats=devices.place(statistics, devices.replicated(run.mesh)))


def set_up_devices(config: TrainConfig) -> list[devices.Device]:
    """Returns the devices of a configuration, with the other processes joined.

    Raises:
      UsageError: there are fewer devices, or they do not divide the batch.
    """
    devices.keep_compiled_programs(datasets.cache_dir() / "compiled")
    chosen = devices.set_up(
        config.num_devices,
        config.batch_size,
        micro_batches=config.accumulation_steps,
        connect=processes.connector(config),
    )
    # Before the data is read, which may take minutes.
    plans.check_divisible(config, config.batch_size, len(chosen), jax.process_count())
    return chosen


def resolve(config: TrainConfig) -> TrainConfig:
    """Returns the configuration with its default workdir filled in.

    Where the results depend on the number of devices, because norms use each device's own statistics, that number is
    filled in too.
    """
    if NORMS[config.norm].depends_on_devices:
        chosen = set_up_devices(config)
        config = dataclasses.replace(config, num_devices=len(chosen) // jax.process_count())
    return dataclasses.replace(config, workdir=config.workdir or config.default_workdir())


def _facts(dataset: datasets.Dataset, statistics: tuple[list[float], list[float]]) -> DataFacts:
    """Returns the facts about the training data that evaluation and resuming need."""
    height, width, channels = dataset.train.image_shape
    return DataFacts(
        image_shape=(height, width, channels),
        num_classes=dataset.num_classes,
        pixel_mean=statistics[0],
        pixel_std=statistics[1],
        examples=dataset.train.size,
        note=dataset.note,
        contents=datasets.digests(dataset),
    )


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
    config: TrainConfig, run: Run, step: int, results: dict[str, Result], reached: int | None, clock: Clock
) -> Summary:
    seconds = {name: round(seconds, 3) for name, seconds in sorted(clock.seconds.items())}
    outside = sum(clock.seconds[name] for name in ("start", "compile", "evaluate", "checkpoint", "noise"))
    training = clock.total() - outside
    compute = clock.seconds["compute"]
    target = config.target_accuracy
    return Summary(
        results=results,
        updates=step,
        epochs=run.plan.epochs_at(step),
        target=None if target is None else Target(accuracy=target, reached_after_updates=reached),
        parameters=int(sum(np.size(p) for p in jax.tree.leaves(run.state.params))),
        seconds={**seconds, "in all": round(clock.total(), 3)},
        # The share of the training time that is not the compiled step.
        overhead=round(1 - compute / training, 4) if compute else None,
        devices=f"{run.mesh.size} x {run.mesh.devices.flat[0].device_kind}",
        versions={"python": platform.python_version(), "jax": jax.__version__},
        command=_commands.shareable_command([*_commands.start("train"), *sys.argv[1:]]),
    )
