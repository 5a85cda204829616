"""The training of a model on images, as a trainee."""

import jax
import numpy as np

from .. import data as datasets
from ..records.runs import DataFacts, Result
from . import extending
from .clock import Clock
from .config import plan as plans
from .config import preflight
from .config.options import TrainConfig
from .evaluation import evaluator
from .evaluation.averaged import OfAverage, evaluated
from .evaluation.population import population, where_recalibrated_differs
from .machine import devices, processes
from .noise.probe import noise_probe
from .recipe.norms import NORMS
from .state import TrainState
from .step import feeding
from .step.run import Run, prepare
from .trainee import Evaluate, Trainee

# Fixed statistics of norms take one pass over these images per layer. A thousand have enough positions.
FIXED_STATISTICS_IMAGES = 1_000


def trainee(config: TrainConfig, clock: Clock) -> Trainee:
    """Prepares everything that a run needs, and writes nothing.

    Args:
      config: configuration of the run, from `session.resolve`.
      clock: counts the time.

    Raises:
      UsageError: devices, data or model cannot be had or used.
    """
    with clock("start"):
        chosen = set_up_devices(config)
        dataset = datasets.load(
            config.dataset,
            config.data_dir,
            image_size=config.image_size,
            validation_examples=config.validation_examples,
        )
        statistics = evaluator.pixel_statistics(dataset.train)
    with clock("compile"):
        run = prepare(config, dataset, statistics, chosen)
        noise = noise_probe(config, run, dataset)

    def place() -> tuple[feeding.Feed, Evaluate]:
        resident = feeding.is_resident(config, dataset, run.mesh, devices.memory_of(chosen[0]))
        feed = feeding.Feed(config, dataset.train, run.mesh, resident=resident)
        evaluate = evaluator.Evaluator(run.eval_step, dataset.test, run.mesh, resident=resident)
        if not config.evaluates_average:
            return feed, evaluate
        to_evaluate = evaluated(config, run.model, run.recipe, run.mesh, dataset.train)
        # What cannot be evaluated is refused before it is trained.
        to_evaluate(run.state)
        return feed, OfAverage(evaluate, to_evaluate)

    def recalibrated(state: TrainState, evaluate: evaluator.Evaluator, results: dict[str, Result]) -> dict[str, Result]:
        return where_recalibrated_differs(run, state, dataset, evaluate, results, config.span)

    lines = preflight.describe(config, run.plan, len(chosen), chosen[0].platform, jax.process_count(), run.tried) + (
        [f"note      {dataset.note}"] if dataset.note else []
    )
    return Trainee(
        config=config,
        plan=run.plan,
        devices=chosen,
        state=run.state,
        compile=run.compile,
        noise=noise,
        facts=_facts(dataset, statistics),
        lines=lines,
        parameters=int(sum(np.size(p) for p in jax.tree.leaves(run.state.params))),
        why_not_longer=lambda there: extending.why_not(there, config, dataset.train.size, len(chosen)),
        place=place,
        begin=lambda: initial_state(config, run, dataset),
        # The statistics of an average are those of training images already.
        recalibrated=None if NORMS[config.norm].fixes_statistics or config.evaluates_average else recalibrated,
    )


def initial_state(config: TrainConfig, run: Run, dataset: datasets.Dataset) -> TrainState:
    """Returns the state before the first update; fixed statistics are computed from the training set."""
    if not NORMS[config.norm].fixes_statistics:
        return run.state
    # Layer by layer, so that the output of each norm has mean 0 and variance 1 before the first update.
    statistics = population(
        run.model, run.recipe, run.mesh, dataset.train, mode="layerwise", examples=FIXED_STATISTICS_IMAGES
    )
    return run.state._replace(batch_stats=devices.place(statistics(run.state), devices.replicated(run.mesh)))


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
