"""Question 10, which optimizer bears which batch size: the trials, the runs at the best rates, and the section."""

import dataclasses
import json
import re

import pytest

from experiments._errors import UsageError
from experiments.reporting import write_study_page
from experiments.reporting.study import study_sections
from experiments.studies import batch_size, driver, jobs, settings, tuning
from experiments.studies.convergence import SEARCH_SEED, Trial
from experiments.studies.question import Changes, Data
from experiments.studies.questions import optimizers
from experiments.training.config.options import TrainConfig
from experiments.training.recipe.optimizers import OPTIMIZERS

SETTING = optimizers.Setting(
    target=0.7,
    optimizers=("muon", "schedule_free"),
    batch_sizes=(8, 32),
    max_epochs=8,
    epochs=1,
    full_batch_updates=8,
    seeds=(0, 1),
)
ONE = dataclasses.replace(SETTING, optimizers=("muon",))
TINY = settings.study_of({"dataset": "tests.own:larger", "model": "tests.own:model", "num_devices": 1}, ONE)
DATA = Data({"dataset": "tests.own:larger"}, 96, 0)


def law(best):
    """Runs whose updates to the target rise with the distance from a best rate, which may depend on the batch size."""

    def run(made):
        trials = []
        for job in made:
            off = job.options["learning_rate"] / best(job.options["optimizer"], job.options["batch_size"])
            trials.append(Trial(round(100 * max(off, 1 / off)), 0.9))
        return trials

    return run


@pytest.mark.parametrize("factor", [1 / 16, 1 / 4, 1 / 2, 1, 2, 4, 16])
def test_every_optimizer_has_as_many_trials_and_the_best_is_followed(factor):
    """To a factor of 16 off what its default says; at the next size, from there."""

    def best(name, size):
        return factor * tuning.first_rate(name, 8) * (size / 8) ** 0.5

    found = optimizers.tune(DATA, SETTING, law(best))
    assert set(found) == {(name, size) for name in SETTING.optimizers for size in SETTING.batch_sizes}
    for (name, size), search in found.items():
        assert len(search.trials) == tuning.TRIALS
        assert search.best == pytest.approx(best(name, size), rel=1e-3)
        assert search.is_on_edge == (size == 8 and factor in (1 / 16, 16))


def test_trials_without_a_finite_loss_or_the_target_lead_to_lower_rates():
    def run(made):
        bad = [job.options["learning_rate"] > 0.9 * tuning.first_rate("muon", 8) for job in made]
        return [Trial(None, None) if worst else Trial(None, 0.5) for worst in bad]

    found = optimizers.tune(DATA, SETTING, run)
    search = found["muon", 8]
    assert search.best < tuning.first_rate("muon", 8) and not search.outcome.updates
    to_target, equal = optimizers.final_jobs(DATA, SETTING, {("muon", 8): search})
    # Runs that do not reach the target count as cut short, and are compared at equal epochs too.
    assert [job.options["seed"] for job in to_target] == [job.options["seed"] for job in equal] == [0, 1]


def test_a_trial_ends_where_it_can_no_longer_be_the_best():
    asked = []

    def run(made):
        asked.extend(made)
        return law(lambda name, size: tuning.first_rate(name, size))(made)

    optimizers.tune(DATA, SETTING, run)
    first, *later = [
        job.options for job in asked if job.options["optimizer"] == "muon" and job.options["batch_size"] == 8
    ]
    # 100 updates at the best rate, which is the first; 8 epochs have 96.
    assert first["epochs"] == 8 and "steps" not in first
    assert all("steps" not in options for options in later)
    short = optimizers.job(DATA, SETTING, "muon", 8, 0.1, SEARCH_SEED, 40).options
    assert short["steps"] == 40 and "epochs" not in short and TrainConfig(**short).steps == 40


def test_the_runs_say_what_their_optimizer_needs():
    for name in SETTING.optimizers:
        made = optimizers.job(DATA, SETTING, name, 8, 0.1, 0).options
        assert made["schedule"] == "constant" and ("b2" in made) == OPTIMIZERS[name].second_moment
    whole = optimizers.full_batch_jobs(DATA, SETTING)
    assert [job.options["batch_size"] for job in whole] == [96] and "learning_rate" not in whole[0].options


def test_the_seed_of_the_search_is_refused():
    with pytest.raises(UsageError, match=f"--seeds: {SEARCH_SEED} is the seed of the search"):
        SETTING.changed(Changes(seeds=(0, SEARCH_SEED)))
    assert SETTING.changed(Changes(batch_sizes=(4, 8))).fitted(6).batch_sizes == (4,)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a study of the question alone."""
    folder = tmp_path_factory.mktemp("study")
    assert batch_size.run(TINY, ["optimizers"], folder) == []
    return folder


def test_the_question_is_answered_from_the_files_alone(study):
    rows = {row.key: row for row in jobs.read(study / jobs.FILE)}
    found = json.loads((study / "optimizers.json").read_text())
    searched = [row for row in rows.values() if row.kind == "optimizer" and row.seed == SEARCH_SEED]
    assert len(searched) == 2 * tuning.TRIALS
    assert {row.kind for row in rows.values()} == {"optimizer", "equal", "full"}
    for tuned in found["tuned"]:
        for seed in SETTING.seeds:
            equal = rows[f"equal-{tuned['optimizer']}-b{tuned['batch_size']}-seed{seed}"]
            assert equal.learning_rate == tuned["rate"] and equal.ended.epochs == 1
    (section,) = study_sections(study)
    assert section.number == 10 and "L-BFGS on all 235 examples at once" in section.answer
    text = re.sub(r"<[^>]*>", "", write_study_page(study).read_text())
    assert all(name in text for name in ("Muon", "L-BFGS", "line search"))


def test_a_study_that_is_done_plans_nothing_more(study):
    data = settings.data_of(TINY)
    planned = batch_size.planned(TINY, "optimizers", data, driver.Runner(study))
    assert {job.key for job in planned} == set(json.loads((study / "optimizers.json").read_text())["keys"])
    # Of one that has not begun the first trials are known, and the run that needs none.
    fresh = batch_size.planned(TINY, "optimizers", data, driver.Runner(study / "none"))
    assert [job.options["seed"] for job in fresh] == [SEARCH_SEED, 0]
