"""Updates to a target accuracy by batch size, at one rate and at tuned rates."""

from collections.abc import Sequence
from typing import Literal

from ...records.questions.convergence import Analysis, BestRate
from ...records.studies import StudyRow
from ..convergence import (
    CONFIDENCE,
    FACTOR,
    SEARCH_SEED,
    Setting,
    Trial,
    Tuned,
    fitted_steps,
    job_options,
    run_tuned,
    trial_of,
    tuned_so_far,
)
from ..jobs import Job
from ..question import Asked, Data, Question, keys_of


def fixed_jobs(data: Data, setting: Setting, rate: float = 0.02, momentum: float = 0.5) -> list[Job]:
    """Returns a run at every batch size at one rate, with each seed; none of a problem, whose optimizer is its own."""
    if data.is_problem:
        return []
    return [
        Job(
            f"fixed-b{batch_size}-seed{seed}",
            job_options(data, setting, batch_size, seed, optimizer="sgd", learning_rate=rate, momentum=momentum),
        )
        for seed in setting.seeds
        for batch_size in setting.fixed_sizes
    ]


def planned(asked: Asked) -> list[Job]:
    """Returns the runs at one rate, and those that the searches ask for next."""
    setting = asked.study.of(Setting)
    return [*fixed_jobs(asked.data, setting), *tuned_so_far(asked.data, setting, asked.runner)[1]]


def run(asked: Asked) -> Analysis:
    """Runs every size at one rate and at the rate that a search finds best, and fits the updates to the target."""
    setting = asked.study.of(Setting)
    fixed = fixed_jobs(asked.data, setting)
    asked.runner.expect(fixed)
    rows: list[StudyRow] = []

    def trials(jobs: Sequence[Job]) -> list[Trial]:
        rows.extend(asked.runner.run_all(jobs))
        return list(map(trial_of, rows[len(rows) - len(jobs) :]))

    found = run_tuned(asked.data, setting, trials, asked.runner.expect)
    return analyse(setting, [*asked.runner.run_all(fixed), *rows], found, asked.data.goal)


def analyse(
    setting: Setting,
    rows: Sequence[StudyRow],
    found: Sequence[Tuned],
    goal: Literal["accuracy", "loss"] = "accuracy",
) -> Analysis:
    """Returns the best rates, and the fit of the updates to the target or the reason why there is none."""
    fit, why = fitted_steps(at_best_rates(rows, found))
    return Analysis(
        keys=keys_of(rows),
        target=setting.target,
        goal=goal,
        seeds=list(setting.seeds),
        confidence=CONFIDENCE,
        tuned=[BestRate(batch_size=t.batch_size, rate=t.rate, reached=t.reached, on_edge=t.on_edge) for t in found],
        factor=setting.rates[1] / setting.rates[0] if len(setting.rates) > 1 else FACTOR,
        fit=fit,
        no_fit=why,
    )


def at_best_rates(rows: Sequence[StudyRow], found: Sequence[Tuned]) -> list[StudyRow]:
    """Returns the runs at the best rates that ended, without those of the search."""
    best = {tuned.batch_size: tuned.rate for tuned in found if tuned.rate is not None}
    return [
        row
        for row in rows
        if row.kind == "tuned"
        and row.seed != SEARCH_SEED
        and best.get(row.batch_size) == row.learning_rate
        and row.summary is not None
    ]


QUESTION = Question(
    order=30,
    help="runs to a target accuracy, at one rate and with the rate tuned at each size",
    setting=Setting,
    planned=planned,
    run=run,
    presets={
        "quick": Setting(
            target=0.9,
            fixed_sizes=(30, 120),
            tuned_sizes=(32, 128, 512),
            rates=(0.01, 0.02, 0.04),
            max_epochs=2,
            seeds=(0, 1),
        ),
        "mnist": Setting(
            target=0.98,
            fixed_sizes=(1, 6, 60, 600, 6000),
            tuned_sizes=(16, 64, 256, 1024),
            rates=(0.0025, 0.005, 0.01),
            max_epochs=20,
            seeds=(0, 1),
        ),
        "mnist_full": Setting(
            target=0.98,
            fixed_sizes=(1, 6, 60, 600, 6000),
            tuned_sizes=(4, 16, 64, 256, 1024, 4096, 16384),
            rates=(0.0025, 0.005, 0.01),
            max_epochs=40,
            seeds=(0, 1, 2, 3, 4),
        ),
    },
    # A curve is fitted.
    fewest_sizes=2,
    rates_follow=True,
    of_problems=True,
)
