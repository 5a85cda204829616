"""Question 11, the search for the best recipe of a very large batch: what is tried, what is kept, what is said."""

import dataclasses
import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from experiments import _files
from experiments._errors import UsageError
from experiments.records.questions.search import Analysis
from experiments.reporting import write_study_page
from experiments.reporting.questions.search import accuracy_figure
from experiments.reporting.study import study_sections
from experiments.studies import batch_size, driver, jobs, settings, tuning
from experiments.studies.question import Asked, Data
from experiments.studies.questions import search
from experiments.training.config.options import TrainConfig
from experiments.training.recipe.optimizers import OPTIMIZERS
from tests import made

SETTING = search.Setting(
    batch_sizes=(64, 2048), optimizers=("nesterov", "muon", "schedule_free"), epochs=12, seeds=(0, 1)
)
STUDY = settings.study_of({"dataset": "mnist"}, SETTING)
DATA = Data({"dataset": "mnist"}, 55_000, 5_000)
# Points of accuracy that a change is worth, alone and with others; any other change costs a tenth.
WORTH = {"average_weights": 0.2, "label_smoothing": 0.1, "momentum": 0.05}


def asked_of(folder):
    return Asked(STUDY, DATA, driver.Runner(folder))


def law(best_optimizer, conflicting=()):
    """Returns what runs jobs: their accuracy is known from their options, and their rate is best at a known place."""

    def accuracy(options):
        off = options["learning_rate"] / tuning.first_rate(options["optimizer"], 64)
        points = 97.0 - 0.01 * max(off, 1 / off) + (1.0 if options["optimizer"] == best_optimizer else 0.0)
        changed = {
            name for name in WORTH if options.get(name, getattr(TrainConfig, name)) != getattr(TrainConfig, name)
        }
        if options.get("momentum") == 0.95:
            changed.discard("momentum")
        points += sum(WORTH[name] for name in changed)
        points -= 0.5 if changed >= set(conflicting or {"nothing"}) else 0.0
        usual = search.recipe_of(SETTING, options["optimizer"], options["batch_size"], options["learning_rate"])
        bad = any(options.get(name, value) != value for name, value in usual.items() if name not in WORTH)
        return (points - 0.1 * (bad or options.get("span") is not None or "backwards_per_forward" in options)) / 100

    def rows(wanted):
        return [
            made.row(job.key, job.options, summary=made.summary(accuracy(job.options)), label=job.label)
            for job in wanted
        ]

    return rows


def test_a_batch_that_fits_what_is_not_held_out_is_searched_at():
    sizes = dataclasses.replace(SETTING, batch_sizes=(64, 32_768, 60_000)).fitted(DATA.examples).batch_sizes
    assert sizes == (64, 32_768)


def test_without_images_to_hold_out_nothing_is_chosen(tmp_path):
    views = settings.study_of({"dataset": "digits"}, SETTING), Data({"dataset": "digits"}, 60_000, 0)
    with pytest.raises(UsageError, match=r"--parts=search chooses .* --dataset=digits cannot be: they are views"):
        search.planned(Asked(*views, driver.Runner(tmp_path)))


def test_of_changes_of_one_option_the_better_is_kept(tmp_path):
    """Half the warmup and twice the warmup both help, as do two momenta."""

    def rows(wanted):
        points = [0.2 * ("warmup" in job.key) + 0.1 * ("momentum" in job.key) for job in wanted]
        scored = zip(wanted, points, strict=True)
        return [made.row(job.key, job.options, summary=made.summary(0.9 + p / 100)) for job, p in scored]

    _, best = search.search(asked_of(tmp_path), rows)
    assert best[64].kept == ("short-warmup", "less-momentum")


def test_every_job_is_a_configuration_that_has_a_name(tmp_path):
    seen = {}

    def rows(wanted):
        seen.update({job.key: job for job in wanted})
        return law("muon")(wanted)

    _, best = search.search(asked_of(tmp_path), rows)
    finals = search.final_jobs(asked_of(tmp_path), best)
    assert len(finals) == 4 and {job.options["seed"] for job in finals} == {0, 1}
    for job in [*seen.values(), *finals]:
        TrainConfig(**job.options)
    assert all("validation_examples" in job.options for job in seen.values())
    assert not any("validation_examples" in job.options for job in finals)
    assert len([key for key in seen if key.startswith("search-b64-")]) == 3 * tuning.TRIALS


@pytest.mark.parametrize("size", SETTING.batch_sizes)
def test_changes_that_help_are_kept_as_long_as_they_help_together(size, tmp_path):
    _, best = search.search(asked_of(tmp_path), law("muon"))
    assert best[size].kept == ("average", "no-smoothing", "less-momentum")
    assert best[size].recipe["optimizer"] == "muon" and best[size].accuracy == pytest.approx(0.9834, abs=1e-4)
    _, best = search.search(asked_of(tmp_path), law("muon", ("average_weights", "label_smoothing")))
    assert best[size].kept == ("average", "less-momentum")


def test_a_recipe_with_changes_has_a_rate_of_its_own(tmp_path):
    """Without label smoothing twice the rate is better."""

    def rows(wanted):
        factors = (job.options["learning_rate"] / tuning.first_rate(job.options["optimizer"], 64) for job in wanted)
        best = (2.0 if job.options.get("label_smoothing") == 0.0 else 1.0 for job in wanted)
        points = [job.options.get("label_smoothing") == 0.0 for job in wanted]
        merits = [0.9 + 0.01 * p - 1e-3 * max(f / b, b / f) for f, b, p in zip(factors, best, points, strict=True)]
        return [
            made.row(job.key, job.options, summary=made.summary(merit))
            for job, merit in zip(wanted, merits, strict=True)
        ]

    _, best = search.search(asked_of(tmp_path), rows)
    (final, *_) = search.final_jobs(asked_of(tmp_path), best)
    assert best[64].kept == ("no-smoothing", "twice-rate") and final.label == "no label smoothing, twice the rate"
    assert final.options["learning_rate"] == 2 * tuning.first_rate(final.options["optimizer"], 64)


def test_changes_that_an_optimizer_refuses_are_left_out(tmp_path):
    keys = []

    def rows(wanted):
        keys.extend(job.key for job in wanted)
        return law("schedule_free")(wanted)

    _, best = search.search(asked_of(tmp_path), rows)
    assert best[64].recipe["schedule"] == "constant" and OPTIMIZERS["schedule_free"].averages
    start = "change-b64-schedule_free-"
    assert f"{start}no-smoothing" in keys and "change-b2048-schedule_free-span" in keys
    assert not {f"{start}{name}" for name in ("average", "polynomial", "ramp", "span")} & set(keys)


@pytest.mark.parametrize("best_optimizer", ["schedule_free", "muon"])
def test_no_change_is_left_untried_because_the_best_optimizer_refuses_it(best_optimizer, tmp_path):
    """Either kind of optimizer has its changes, and the best recipe of both is kept."""
    keys, worth = [], {"average_weights": 1.5 if best_optimizer == "schedule_free" else 0.1}

    def rows(wanted):
        keys.extend(job.key for job in wanted)
        made_by_law = law(best_optimizer)(wanted)
        extra = [sum(worth.get(name, 0.0) for name in job.options) / 100 for job in wanted]
        return [
            made.row(row.key, row.options, summary=made.summary(row.ended.result.known_accuracy + more))
            for row, more in zip(made_by_law, extra, strict=True)
        ]

    _, best = search.search(asked_of(tmp_path), rows)
    tried = {key.split("-")[2] for key in keys if key.startswith("change-b64-") and key.endswith("-less-decay")}
    assert len(tried) == 2 and {"schedule_free"} < tried
    # Averaging, which schedule-free refuses, brings another optimizer past it.
    assert best[64].recipe["optimizer"] != "schedule_free" and "average" in best[64].kept


def test_an_optimizer_that_a_ramp_makes_the_best_is_the_one_that_is_changed(tmp_path):
    """Where a ramp gains Muon much, Nesterov's momentum is better without one, and is not changed further."""
    keys = []

    def rows(wanted):
        keys.extend(job.key for job in wanted)
        points = [
            0.5 * (job.options["optimizer"] == "nesterov")
            + 1.0 * (job.options["optimizer"] == "muon" and "batch_ramp" in job.options)
            for job in wanted
        ]
        scored = zip(wanted, points, strict=True)
        return [made.row(job.key, job.options, summary=made.summary(0.9 + p / 100)) for job, p in scored]

    _, best = search.search(asked_of(tmp_path), rows)
    assert best[64].recipe["optimizer"] == "muon" and best[64].kept == ("ramp",)
    tried = {key.removeprefix("change-b64-") for key in keys if key.startswith("change-b64-")}
    assert {"nesterov-ramp", "nesterov-average", "muon-less-decay"} < tried and "nesterov-less-decay" not in tried


def test_joins_of_all_batch_sizes_are_run_side_by_side(tmp_path):
    rounds = []

    def rows(wanted):
        rounds.append({job.key.split("-")[1] for job in wanted if job.key.startswith("joined-")})
        return law("muon")(wanted)

    search.search(asked_of(tmp_path), rows)
    assert {f"b{size}" for size in SETTING.batch_sizes} in rounds


def test_batch_sizes_rise_whichever_is_ready_first(tmp_path):
    """Without changes that help at the larger size its best recipe is known at once."""

    def rows(wanted):
        points = [0.1 * (job.options["batch_size"] == 64 and "momentum" in job.options) for job in wanted]
        scored = zip(wanted, points, strict=True)
        return [made.row(job.key, job.options, summary=made.summary(0.9 + p / 100)) for job, p in scored]

    _, best = search.search(asked_of(tmp_path), rows)
    assert best[64].kept and not best[2048].kept and list(best) == [64, 2048]


@pytest.mark.parametrize("size", [2048, 8192, 32_768])
def test_a_ramp_is_tried_where_updates_are_scarce(size):
    changed = search.CHANGES["ramp"].options(search.recipe_of(SETTING, "nesterov", size, 0.4), 55_000)
    assert changed is not None and (changed["batch_size"], changed["batch_ramp"]) == (size // 4, size)
    assert changed["learning_rate"] == pytest.approx(0.1)


def test_changes_that_exclude_each_other_are_not_joined(tmp_path):
    """A ramp and several updates per forward pass, where both help."""
    worth = {"batch_ramp": 0.3, "backwards_per_forward": 0.2}
    keys = []

    def rows(wanted):
        keys.extend(job.key for job in wanted)
        points = [sum(gain for name, gain in worth.items() if name in job.options) for job in wanted]
        scored = zip(wanted, points, strict=True)
        return [made.row(job.key, job.options, summary=made.summary(0.9 + p / 100)) for job, p in scored]

    _, best = search.search(asked_of(tmp_path), rows)
    assert best[64].kept == ("ramp",) and {"ramp", "updates"} <= {key.split("-")[-1] for key in keys}


@pytest.mark.parametrize(
    ("optimizer", "size", "rate"),
    [("nesterov", 2048, 0.01), ("muon", 2048, 0.04), ("muon", 1024, 0.04), ("muon", 512, None), ("muon", 2050, None)],
)
def test_many_updates_per_forward_pass_have_the_rate_of_as_many_examples(optimizer, size, rate):
    """Each has at least 64 examples, and all have as many."""
    changed = search.CHANGES["many-updates"].options(search.recipe_of(SETTING, optimizer, size, 0.16), 50_000)
    wanted = {"backwards_per_forward": 16, "drop_remainder": True, "learning_rate": pytest.approx(rate)}
    assert changed == (None if rate is None else wanted)


def test_a_size_at_which_nothing_ends_well_has_no_recipe(tmp_path):
    def rows(wanted):
        return [
            None if job.options["batch_size"] == 64 else row
            for job, row in zip(wanted, law("muon")(wanted), strict=True)
        ]

    _, best = search.search(asked_of(tmp_path), rows)
    assert set(best) == {2048}


@pytest.mark.parametrize("means", [*itertools.permutations((0.9, 0.95, 0.99))])
@pytest.mark.parametrize("points", [1, 2, 3])
def test_no_label_of_the_picture_lies_over_a_line_or_a_point(means, points, tmp_path):
    rows = [
        made.row(
            f"final-b{size}-seed{seed}",
            {**search.recipe_of(SETTING, "schedule_free_adamw", size, 0.1), "seed": seed},
            summary=made.summary(mean + (seed - 1) / 1000, epochs=12.0),
        )
        for size, mean in zip((64, 8192, 32_768), means[:points], strict=False)
        for seed in (0, 1, 2)
    ]
    (tmp_path / "results.jsonl").write_bytes(b"".join(map(_files.line, rows)))
    _files.write_json(tmp_path / "search.json", Analysis(keys=[row.key for row in rows]))
    drawing = accuracy_figure(tmp_path)
    canvas = FigureCanvasAgg(drawing)
    canvas.draw()
    canvas.draw()
    (axes,) = drawing.axes
    assert len(axes.texts) == points
    for text in axes.texts:
        box, frame = text.get_window_extent(), axes.get_window_extent()
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1, text
        for line in axes.lines:
            path = line.get_transform().transform_path(line.get_path())
            assert not path.intersects_bbox(box, filled=False), (text.get_text(), means)


def test_a_small_study_is_answered_and_plans_nothing_more(tmp_path):
    setting = search.Setting(batch_sizes=(32,), optimizers=("muon",), epochs=1, seeds=(0,))
    study = settings.study_of({"dataset": "tests.own:larger", "model": "tests.own:model", "num_devices": 1}, setting)
    assert any("of about 19 runs" in line for line in batch_size.describe(study, ["search"], tmp_path / "none"))
    assert batch_size.run(study, ["search"], tmp_path) == []
    (section,) = study_sections(tmp_path)
    assert section.number == 11 and section.answer.startswith("After 1 epoch a batch of 32 ends at")
    assert "label smoothing" in write_study_page(tmp_path).read_text()
    planned = batch_size.planned(study, "search", settings.data_of(study), driver.Runner(tmp_path))
    assert {job.key for job in planned} == {row.key for row in jobs.read(tmp_path / jobs.FILE)}
