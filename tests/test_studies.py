"""Studies: jobs that are kept as they end and not run twice, and the report of the large-batch study."""

import dataclasses
import math
import re

import pytest

from experiments import _files
from experiments._errors import UsageError
from experiments.records import questions
from experiments.records.questions.search import Analysis, Recipe
from experiments.records.studies import StudyRow
from experiments.reporting import write_study_page
from experiments.studies import batch_size, convergence, driver, jobs, settings
from experiments.studies.questions import convergence as question
from experiments.studies.questions import ladder
from experiments.studies.recommending.lab import count_devices
from experiments.training.config.options import TrainConfig
from experiments.training.machine import devices
from tests import made, own

TINY = {
    "dataset": "tests.own:dataset",
    "model": "tests.own:model",
    "batch_size": 16,
    "steps": 2,
    "warmup_epochs": 0,
    "num_devices": 1,
}


DATA = convergence.Data({"dataset": "tests.own:dataset", "model": "tests.own:model"}, examples=48, held_out=16)
SETTING = convergence.Setting(
    target=0.7, fixed_sizes=(8, 48), tuned_sizes=(8, 16), rates=(0.2, 0.4, 0.8), max_epochs=20, seeds=(0, 1)
)


def run_all(wanted, folder):
    with driver.Runner(folder) as runner:
        return runner.run_all(wanted)


def test_a_study_keeps_each_run_and_goes_on_where_it_was(tmp_path, capsys):
    good, bad = jobs.Job("good", TINY), jobs.Job("bad", {**TINY, "batch_size": 1000})
    rows = run_all([good, bad], tmp_path)
    assert rows[0].ended.updates == 2 and "--batch_size=16" in rows[0].command
    assert sorted(rows[0].ended.command.split()[3:]) == sorted(rows[0].command.split()[3:])
    assert "--batch_size=1000 is larger than the training set of 64 examples" in (rows[1].error or "")
    # A line that was cut short costs itself alone; what is done stays done, what failed is tried again.
    with (tmp_path / jobs.FILE).open("a") as file:
        file.write('{"key": "cut')
    capsys.readouterr()
    again = run_all([good, jobs.Job("bad", TINY)], tmp_path)
    assert again[0] == rows[0] and again[1].summary is not None
    assert "good" not in capsys.readouterr().out
    assert {row.key: row.summary is not None for row in jobs.read(tmp_path / jobs.FILE)} == {"good": True, "bad": True}
    # Other options under the same key are another run.
    changed = run_all([jobs.Job("good", {**TINY, "steps": 3})], tmp_path)
    assert changed[0].ended.updates == 3


def test_a_run_that_takes_its_process_with_it_costs_its_row_alone(tmp_path):
    fatal, good = jobs.Job("fatal", {**TINY, "dataset": "tests.own:fatal"}), jobs.Job("good", TINY)
    (first, second), (third,) = run_all([fatal, good], tmp_path), run_all([jobs.Job("none", TINY)], tmp_path)
    # With the last line that the process has printed.
    assert re.fullmatch(r'its process ended with exit status 7 \(".+"\); see worker.log in the workdir', first.error)
    assert (tmp_path / "worker.log").exists() and str(tmp_path) not in (tmp_path / jobs.FILE).read_text()
    assert second.ended.updates == third.ended.updates == 2


def test_devices_that_cannot_be_set_up_are_an_answer(tmp_path):
    """And not the end of the process, which would leave no more than its exit status."""
    with driver.Runner(tmp_path) as runner:
        with pytest.raises(UsageError, match="--num_devices must be at least 1, not 0"):
            runner.ask(count_devices, 0)
        assert runner.ask(count_devices, 3)["count"] == 3


def test_a_study_of_which_no_run_can_begin_is_refused_before_any_does(tmp_path, monkeypatch):
    """By its model in the process that trains, and only if every kind of run is refused; and by its devices."""
    good = jobs.Job("good", {**TINY, "batch_size": 48})
    with driver.Runner(tmp_path) as runner:
        for model, said in {
            "tests.users:fails": "the factory raised",
            "tests.users:fails_in_training": "its training step raised",
            "tests.users:nothing": "must return a flax.linen module, and it returned a NoneType",
        }.items():
            bad = jobs.Job("bad", {**TINY, "model": model})
            with pytest.raises(UsageError, match=f"no run of this study can begin with --num_devices=1: .*{said}"):
                runner.try_out([bad])
            runner.try_out([bad, good])
        runner.try_out([])
    assert not (tmp_path / jobs.FILE).exists() and not (tmp_path / "runs").exists()
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UsageError, match=r"can begin.*JAX_PLATFORMS=cuda asks for devices that are not found here"):
        driver.try_out([good])


def test_a_cpu_is_not_divided_into_more_devices_than_can_work(monkeypatch):
    with pytest.raises(
        UsageError, match=r"--num_devices=1000, but a CPU of .* cores is divided into at most .* devices"
    ):
        devices.set_up(1000)


def test_a_loss_that_is_not_finite_is_a_result_and_stays(tmp_path, capsys):
    job = jobs.Job("high", {**TINY, "learning_rate": 1e9, "norm": "none"})
    (row,) = run_all([job], tmp_path)
    assert row.diverged and "--learning_rate" in row.error
    capsys.readouterr()
    assert run_all([job], tmp_path) == [row] and capsys.readouterr().out == ""


class SizedRow(StudyRow, frozen=True, kw_only=True, omit_defaults=True):
    """A row with two fields that are noted after the run."""

    size: int | None = None
    wrong: int | None = None


def test_what_is_found_out_of_a_run_is_added_to_its_row_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(questions.ROWS, "good", SizedRow)
    job = jobs.Job("good", TINY)
    for _ in range(2):
        with driver.Runner(tmp_path) as runner:
            assert runner.run(job).ended.updates == 2
            runner.note(job, "size", own.size_of_summary)
            runner.note(job, "wrong", own.fails)
            row = runner.run(job)
            assert row.size == (jobs.workdir(job, tmp_path) / "summary.json").stat().st_size and row.wrong is None
    assert len((tmp_path / jobs.FILE).read_text().splitlines()) == 2
    assert capsys.readouterr().out.count("good: wrong: not today") == 2


def test_one_process_trains_on_as_many_devices_as_divide_each_batch(tmp_path):
    options = {name: value for name, value in TINY.items() if name != "num_devices"}
    rows = run_all([jobs.Job(f"b{size}", {**options, "batch_size": size}) for size in (1, 16)], tmp_path)
    most = max(n for n in range(1, devices.cpu_cores() + 1) if 16 % n == 0)
    assert [row.ended.devices.split()[0] for row in rows] == ["1", str(most)]


def each(run):
    """Returns a function that runs jobs one after another."""
    return lambda some: [run(job) for job in some]


def reached(updates, accuracy=0.5):
    return convergence.Trial(updates, accuracy)


# A loss that is not finite, and another error.
DIVERGED, FAILED = convergence.Trial(None, None), convergence.Trial(None, None, failed=True)


def test_the_outcome_of_a_run_is_read_from_its_row():
    options = {"batch_size": 8, "seed": 0, "learning_rate": 0.1}

    def trial(**fields):
        return convergence.trial_of(made.row("tuned-b8", options, **fields))

    assert trial(summary=made.summary(0.7, reached=20)) == (20, 0.7, False)
    assert trial(summary=made.summary(0.7, reached=None)) == (None, 0.7, False)
    assert trial(error="nan", diverged=True) == DIVERGED and trial(error="no memory") == FAILED


@pytest.mark.parametrize("best_rate", [0.05, 0.4, 6.4])
def test_the_search_follows_the_best_rate_off_its_grid(best_rate):
    """Updates grow with the distance from the best rate on a logarithmic axis; far above it the loss is not finite."""
    tried = []

    def run(job):
        rate = job.options["learning_rate"]
        tried.append(rate)
        if rate > 4 * best_rate:
            return DIVERGED
        distance = abs(math.log2(rate / best_rate))
        return reached(round(100 * (1 + distance)) if distance < 4.5 else None)

    tuned = convergence.search(DATA, SETTING, 64, SETTING.rates, each(run))
    assert tuned.rate == pytest.approx(best_rate) and not tuned.on_edge
    assert len(tried) == len(set(tried)) <= 3 + convergence.MOST_EXTENSIONS
    assert list(tuned.trials) == sorted(tried)


def test_a_search_that_ends_on_the_edge_says_so():
    tuned = convergence.search(
        DATA, SETTING, 64, SETTING.rates, each(lambda job: reached(round(1000 / job.options["learning_rate"])))
    )
    assert tuned.on_edge and tuned.reached and tuned.rate == max(tuned.trials)


def test_where_no_rate_reaches_the_target_the_search_follows_the_accuracy():
    """The best is at a rate of 0.1, below the grid; losses of 3.2 and more are not finite."""

    def run(job):
        distance = abs(math.log2(job.options["learning_rate"] / 0.1))
        return reached(None, 0.6 - 0.05 * distance)

    missed = convergence.search(DATA, SETTING, 64, SETTING.rates, each(run))
    assert (missed.rate, missed.reached, missed.on_edge) == (0.1, False, False)
    # It is run with every seed, and stays in the fit as what it is.
    found = convergence.run_tuned(DATA, dataclasses.replace(SETTING, tuned_sizes=(64,)), each(run))
    assert (found[0].rate, found[0].reached) == (0.1, False)
    all_diverge = convergence.search(DATA, SETTING, 64, SETTING.rates, each(lambda job: DIVERGED))
    assert all_diverge.rate is None and len(all_diverge.trials) == 3 + convergence.MOST_EXTENSIONS
    assert min(all_diverge.trials) == pytest.approx(0.2 / 2**convergence.MOST_EXTENSIONS, rel=1e-2)


def test_a_run_that_fails_ends_the_search_at_its_size_alone():
    tried = []

    def run(job):
        tried.append(job.options["batch_size"])
        if job.options["batch_size"] == 8:
            return FAILED
        return reached(round(100 * abs(math.log2(job.options["learning_rate"] / 0.4)) + 100))

    found = convergence.run_tuned(DATA, SETTING, each(run))
    assert [t.rate for t in found] == [None, 0.4]
    # Three rates at 8; at 16 three rates and two seeds.
    assert tried == [8] * 3 + [16] * 5


def test_the_fit_is_given_the_runs_at_the_best_rates_and_those_that_were_cut_short():
    found = [convergence.Tuned(b, 0.1, True, False, {}) for b in (16, 64)]
    rows = [
        made.row(job.key, job.options, summary=made.summary(reached=updates))
        for job, updates in (
            (convergence.tuned_job(DATA, SETTING, 16, 0.1, 0), 200),
            (convergence.tuned_job(DATA, SETTING, 16, 0.2, 0), 100),
            (convergence.tuned_job(DATA, SETTING, 16, 0.1, convergence.SEARCH_SEED), 150),
            (convergence.tuned_job(DATA, SETTING, 64, 0.1, 1), None),
        )
    ]
    at_best = question.at_best_rates(rows, found)
    assert [(row.batch_size, row.seed, convergence.updates_to_target(row)) for row in at_best] == [
        (16, 0, 200),
        (64, 1, None),
    ]
    # One run at each of two sizes, one of them cut short, is too little for a curve.
    fit, why = convergence.fitted_steps(at_best)
    assert fit is None or why is None


@pytest.mark.parametrize(
    ("rates", "best", "tried"),
    [
        ((0.01, 0.1), 10.0, [0.01, 0.1, 1.0, 10.0, 100.0]),
        ((0.01, 0.1), 0.001, [0.01, 0.1, 0.001, 0.0001]),
        ((0.5,), 1.0, [0.5, 1.0, 2.0]),
    ],
)
def test_a_grid_of_ones_own_is_gone_beyond_in_its_own_steps(rates, best, tried):
    asked = []

    def run(job):
        asked.append(job.options["learning_rate"])
        return reached(round(100 + 100 * abs(math.log(asked[-1] / best))))

    assert convergence.search(DATA, SETTING, 8, rates, each(run)).rate == best
    assert asked == pytest.approx(tried)


def row(key, options, accuracy):
    return made.row(key, options, summary=made.summary(accuracy), command="python -m experiments.train")


def test_an_analysis_of_an_earlier_version_is_still_shown(tmp_path):
    """It named the keys alone."""
    rows = [row("final-b64-seed0", {"batch_size": 64, "optimizer": "lars", "learning_rate": 1.0}, 0.99)]
    (tmp_path / jobs.FILE).write_bytes(b"".join(map(_files.line, rows)))
    (tmp_path / "search.json").write_text('{"keys": ["final-b64-seed0"]}')
    text = write_study_page(tmp_path).read_text()
    assert re.search(r"After [\d.]+ epochs? a batch of 64 ends at 99.00%. Means", text)


@pytest.mark.parametrize(
    ("parts", "idle"),
    [
        (["optimizers"], ["rates"]),
        (["search"], ["target", "max_epochs", "rates"]),
        (["convergence", "search"], []),
        (["ladder"], ["target", "max_epochs", "batch_sizes", "rates"]),
    ],
)
def test_what_a_user_gives_and_no_part_reads_is_known(parts, idle):
    assert batch_size.unread(settings.PRESETS["mnist_full"], parts) == idle


def test_every_rung_of_the_ladder_is_a_configuration_that_has_a_name():
    rungs = ladder.jobs({"dataset": "mnist"}, ladder.Setting())
    assert len(rungs) == len({rung.key for rung in rungs}) == 3 * len(ladder.rungs(ladder.Setting()))
    assert all(rung.label for rung in rungs)
    for rung in rungs:
        TrainConfig(**rung.options)
    assert not any("ramp" in name for name, _ in ladder.rungs(ladder.Setting(epochs=2)))
    first, ramp, last = rungs[0].options, rungs[9].options, rungs[10].options
    assert first["decay_all"] and first["warmup_epochs"] == 0 and first["label_smoothing"] == 0
    assert (ramp["batch_size"], ramp["batch_ramp"], ramp["learning_rate"]) == (2048, 8192, 0.4)
    assert last["epochs"] == 24 and last["optimizer"] == "nesterov" and not last["decay_all"]
    assert (last["batch_size"], last["batch_ramp"], last["learning_rate"]) == (8192, None, 1.6)


def test_the_report_has_a_section_for_what_was_run(tmp_path):
    with pytest.raises(UsageError, match="holds no study"):
        write_study_page(tmp_path)
    rows = [
        row(f"search-b64-nesterov-{rate}", {"batch_size": 64, "optimizer": "nesterov", "learning_rate": rate}, score)
        for rate, score in ((0.1, 0.97), (0.3, 0.98), (1.0, 0.99))
    ]
    rows += [
        row(f"final-b{b}-seed{s}", {"batch_size": b, "optimizer": "lars", "learning_rate": 1.0}, 0.9 + s / 100)
        for b in (64, 8192)
        for s in range(3)
    ]
    (tmp_path / jobs.FILE).write_bytes(b"".join(map(_files.line, rows)))
    recipe = Recipe(batch_size=64, optimizer="lars", rate=1.0, on_edge=False, kept=["averaged weights"], held_out=0.9)
    analysis = Analysis(keys=[r.key for r in rows], epochs=12, trials=5, recipes=[recipe])
    _files.write_json(tmp_path / "search.json", analysis)
    text = write_study_page(tmp_path).read_text()
    assert "1: 99.00*" in text and text.count("<svg") == 1
    assert "91.00</td>" in text and "90.00</td>" in text and "92.00</td>" in text
    assert "After 12 epochs a batch of 64 ends at 91.00%, with LARS, averaged weights; a batch of 8,192" in text
