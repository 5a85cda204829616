"""Updates to a target accuracy by batch size, at one rate and at tuned rates."""

from collections.abc import Sequence
from typing import Literal

from batchnorm_jax.batch_size import fit_steps_to_target

from ...records.questions.convergence import Analysis, BestRate, StepsFit, StepsIntervals
from ...records.studies import StudyRow
from ..convergence import (
    CONFIDENCE,
    FACTOR,
    SEARCH_SEED,
    Setting,
    Trial,
    Tuned,
    job_options,
    run_tuned,
    trial_of,
    tuned_so_far,
    updates_to_target,
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
    sizes, steps, censored = steps_for_fit(rows, found)
    fit, why = None, None
    try:
        fitted = fit_steps_to_target(sizes, steps, censored=censored, confidence=CONFIDENCE)
        fit = StepsFit(
            min_steps=fitted.min_steps,
            min_examples=fitted.min_examples,
            critical_batch_size=fitted.critical_batch_size,
            intervals=StepsIntervals(**fitted.intervals),
        )
    except ValueError as error:
        # Without the name of the function, which says nothing to a reader of the report.
        why = str(error).partition(": ")[2]
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


def steps_for_fit(rows: Sequence[StudyRow], found: Sequence[Tuned]) -> tuple[list[int], list[int], list[bool]]:
    """Returns batch sizes, updates and whether they are censored, of the runs at the best rates."""
    best = {tuned.batch_size: tuned.rate for tuned in found if tuned.rate is not None}
    sizes, steps, censored = [], [], []
    for row in rows:
        is_final = row.kind == "tuned" and row.seed != SEARCH_SEED
        if not is_final or best.get(row.batch_size) != row.learning_rate or row.summary is None:
            continue
        reached = updates_to_target(row)
        sizes.append(row.batch_size)
        steps.append(row.summary.updates if reached is None else reached)
        censored.append(reached is None)
    return sizes, steps, censored


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
