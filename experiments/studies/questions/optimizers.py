"""Updates and time to a target, and accuracy at equal epochs, by optimizer and batch size.

Of every optimizer the same number of rates is tried at every batch size, about the best rate of the size below.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

from ...records.fields import Options
from ...records.questions.optimizers import Analysis, OptimizerFit, TunedOptimizer
from ...records.studies import StudyRow
from ...training.config.options import AUTO
from ...training.recipe.optimizers import OPTIMIZERS
from .. import convergence, tuning
from ..convergence import CONFIDENCE, SEARCH_SEED, Run, Trial, trial_of
from ..jobs import Job
from ..question import Asked, Changes, Data, Look, Question, keys_of, no_larger
from ..question import Setting as Base
from ..tuning import TRIALS, Found, Wanted

# A rate that takes more than so many times the updates of the best so far is not the best: its run ends there.
MOST_OVER_BEST = 2.5
FULL_BATCH = next(optimizer.name for optimizer in OPTIMIZERS if optimizer.full_batch)


@dataclasses.dataclass(frozen=True)
class Setting(Base):
    """The runs that are compared.

    Attributes:
      target: the accuracy to reach.
      optimizers: names of optimizers that take batches.
      batch_sizes: to compare, rising.
      max_epochs: epochs after which a run counts as not having reached the target.
      epochs: the epochs of runs that are compared at equal epochs.
      full_batch_updates: the most updates on the whole training set at once, with a line search; 0: none.
      seeds: the seeds of the runs at the best rates.
    """

    target: float
    optimizers: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    max_epochs: int
    epochs: int
    full_batch_updates: int
    seeds: tuple[int, ...]

    def changed(self, changes: Changes) -> Self:
        """Returns the setting with the target, length, sizes and seeds of the user."""
        convergence.refuse_search_seed(changes.seeds)
        return dataclasses.replace(
            self,
            target=changes.target or self.target,
            batch_sizes=changes.batch_sizes or self.batch_sizes,
            max_epochs=changes.max_epochs or self.max_epochs,
            seeds=changes.seeds or self.seeds,
        )

    def fitted(self, examples: int) -> Self:
        """Returns the setting with the batch sizes that fit the training set."""
        return dataclasses.replace(self, batch_sizes=no_larger(self.batch_sizes, examples))

    @property
    def compared_sizes(self) -> tuple[int, ...]:
        """Batch sizes at which the rate is tuned."""
        return self.batch_sizes


def options_of(optimizer: str) -> Options:
    """Returns the options of an optimizer beside its rate: Adam's second moment follows the batch."""
    return {"optimizer": optimizer, **({"b2": AUTO} if OPTIMIZERS[optimizer].second_moment else {})}


def job(
    data: Data, setting: Setting, optimizer: str, batch_size: int, rate: float, seed: int, most: int | None = None
) -> Job:
    """Returns a run to the target at a constant rate, of at most so many updates."""
    made: dict[str, Any] = convergence.job_options(
        data, setting, batch_size, seed, is_smoothed=True, **options_of(optimizer), learning_rate=rate
    )
    if most is not None and most * batch_size < made["epochs"] * data.examples:
        made = {name: value for name, value in made.items() if name != "epochs"} | {"steps": most}
    # The time of those at the best rates is shown.
    return Job(f"optimizer-{optimizer}-b{batch_size}-r{rate:.4g}-seed{seed}", made, alone=seed != SEARCH_SEED)


def full_batch_jobs(data: Data, setting: Setting) -> list[Job]:
    """Returns a run to the target on the whole training set at once, if the setting has one."""
    if not setting.full_batch_updates:
        return []
    seed = setting.seeds[0]
    made = convergence.job_options(data, setting, data.examples, seed, is_smoothed=True, optimizer=FULL_BATCH)
    made |= {"epochs": setting.full_batch_updates, "past_target": 0.0}
    return [Job(f"full-{FULL_BATCH}-b{data.examples}-seed{seed}", made, alone=True)]


def tune(data: Data, setting: Setting, run: Run) -> Found:
    """Tries rates of every optimizer at every batch size.

    Args:
      data: to train on.
      setting: the settings of the runs.
      run: returns the outcomes of jobs.

    Returns:
      The trials by optimizer and batch size.
    """

    def of(wanted: Wanted) -> Job:
        updates = None if wanted.best is None else wanted.best.updates
        most = None if updates is None else math.ceil(MOST_OVER_BEST * updates)
        return job(data, setting, wanted.optimizer, wanted.batch_size, wanted.rate, SEARCH_SEED, most)

    return tuning.tune(setting.optimizers, setting.batch_sizes, lambda wanted: run([of(one) for one in wanted]))


def final_jobs(data: Data, setting: Setting, found: Found) -> tuple[list[Job], list[Job]]:
    """Returns the runs at the best rates, with each seed: those to the target, and those of equal epochs."""
    best = [(name, size, search.best) for (name, size), search in found.items() if search.outcome.ended]
    to_target = [job(data, setting, name, size, rate, seed) for name, size, rate in best for seed in setting.seeds]
    equal = [
        Job(f"equal-{name}-b{size}-seed{seed}", _equal_epochs(data, setting, name, size, rate, seed))
        for name, size, rate in best
        for seed in setting.seeds
    ]
    return to_target, equal


def _equal_epochs(data: Data, setting: Setting, name: str, size: int, rate: float, seed: int) -> dict[str, Any]:
    return {
        **data.options,
        **data.constant,
        # All training images, and the test split; rates fall, but of those that average in their place.
        "validation_examples": 0,
        "schedule": "constant" if OPTIMIZERS[name].averages else "cosine",
        "batch_size": size,
        "epochs": setting.epochs,
        **options_of(name),
        "learning_rate": rate,
        "seed": seed,
    }


def planned(asked: Asked) -> list[Job]:
    """Returns the runs that are known: those that have rows, and those that are next."""
    data, setting, look = asked.data, asked.study.of(Setting), Look(asked.runner)

    def trials(jobs: Sequence[Job]) -> list[Trial]:
        return [Trial(None, None) if row is None else trial_of(row) for row in look(jobs)]

    found = tune(data, setting, trials)
    if not look.is_open:
        to_target, equal = final_jobs(data, setting, found)
        look([*to_target, *equal])
    return [*look.known, *full_batch_jobs(data, setting)]


def _total(setting: Setting) -> int:
    """Returns about how many runs there are: not all of the best rates need end well."""
    per_size = TRIALS + 2 * len(setting.seeds)
    return per_size * len(setting.optimizers) * len(setting.batch_sizes) + (setting.full_batch_updates > 0)


def run(asked: Asked) -> Analysis:
    """Tries the rates, and makes the runs at the best of them."""
    data, setting, runner = asked.data, asked.study.of(Setting), asked.runner
    rows: list[StudyRow] = []

    def trials(jobs: Sequence[Job]) -> list[Trial]:
        rows.extend(made := runner.run_all(jobs))
        return list(map(trial_of, made))

    found = tune(data, setting, trials)
    to_target, equal = final_jobs(data, setting, found)
    made = runner.run_all([*to_target, *equal, *full_batch_jobs(data, setting)])
    final = made[: len(to_target)]
    return Analysis(
        keys=keys_of([*rows, *made]),
        target=setting.target,
        goal=data.goal,
        seeds=list(setting.seeds),
        confidence=CONFIDENCE,
        trials=TRIALS,
        factor=max(tuning.ABOUT),
        tuned=[
            TunedOptimizer(
                optimizer=name,
                batch_size=size,
                rate=search.best if search.outcome.ended else None,
                reached=search.outcome.updates is not None,
                on_edge=search.is_on_edge,
            )
            for (name, size), search in sorted(
                found.items(), key=lambda item: (setting.optimizers.index(item[0][0]), item[0][1])
            )
        ],
        fits=[_fit(name, [row for row in final if row.options["optimizer"] == name]) for name in setting.optimizers],
    )


def _fit(optimizer: str, rows: Sequence[StudyRow]) -> OptimizerFit:
    fit, why = convergence.fitted_steps([row for row in rows if row.summary is not None])
    return OptimizerFit(optimizer=optimizer, fit=fit, no_fit=why)


_COMPARED = ("nesterov", "lars", "adamw", "muon", "schedule_free")

QUESTION = Question(
    order=100,
    help="optimizers to a target and at equal epochs, each with the same number of rates at each size",
    setting=Setting,
    planned=planned,
    run=run,
    presets={
        "mnist_full": Setting(
            target=0.98,
            optimizers=(*_COMPARED, "lamb", "schedule_free_adamw"),
            batch_sizes=(64, 256, 1024, 4096, 16384),
            max_epochs=40,
            epochs=12,
            full_batch_updates=100,
            seeds=(0, 1, 2),
        ),
    },
    otherwise=Setting(
        target=0.97,
        optimizers=_COMPARED,
        batch_sizes=(64, 512, 4096),
        max_epochs=20,
        epochs=3,
        full_batch_updates=40,
        seeds=(0, 1),
    ),
    fewest_sizes=2,
    rates_follow=True,
    total=lambda asked: _total(asked.study.of(Setting)),
)
