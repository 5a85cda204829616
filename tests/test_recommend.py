"""The recommended batch size, against problems whose answer is known, and with little time."""

import dataclasses
import math
import shlex

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from experiments.records.evidence import TriedBatch
from experiments.records.recommendation import Recommendation
from experiments.reporting import recommendation_lines
from experiments.reporting.recommendation import command
from experiments.studies.convergence import SEARCH_SEED
from experiments.studies.recommending.advice import advise
from experiments.studies.recommending.curves import prior_of
from experiments.studies.recommending.measure import measure
from experiments.studies.recommending.target import TargetSearch
from experiments.training.config import plan
from experiments.training.config.options import TrainConfig
from tests.law import Law, answer, kept


# Found by chance: the first evaluation of the first run was at the target, and runs at other sizes were cut too early.
@example(least=200, critical=30.0, overhead=0.0024725, throughput=9868.0, rate=1.0, spread=0.0)
@settings(max_examples=8, deadline=None)
@given(
    least=st.integers(200, 2_000),
    critical=st.floats(30, 2_000),
    overhead=st.floats(5e-4, 5e-3),
    throughput=st.floats(5e3, 2e5),
    rate=st.floats(0.05, 1.0),
    spread=st.sampled_from([0.0, 0.03]),
)
def test_with_time_enough_the_advice_is_near_the_best(least, critical, overhead, throughput, rate, spread):
    law = Law(least, critical, overhead, throughput, spread=spread, rate=rate)
    law.seconds = 15 * law.best_time() + 120
    evidence, advice = answer(law)
    taken = law.time(advice.batch_size, advice.learning_rate)
    assert taken <= 1.25 * law.best_time(), (advice, evidence.not_measured)
    updates = advice.predictions[-2].updates
    assert advice.predictions[-2].batch_size == advice.batch_size
    # The rates that were tried are a factor of two apart.
    assert 0.75 < updates[0] / law.updates(advice.batch_size) < 1.4


@settings(max_examples=10, deadline=None)
@given(minutes=st.floats(0.01, 5), target=st.sampled_from([None, 0.98]), least=st.integers(100, 20_000))
def test_the_budget_holds_and_what_is_missing_is_said(minutes, target, least):
    law = Law(least, minutes=minutes)
    evidence, advice = answer(law, target=target)
    # The first run has to be made to know what runs take, and one of a larger batch may take longer than it.
    assert law.now <= law.seconds + 2 * law.start + 2
    assert evidence.not_measured or minutes > 1
    result = kept(Recommendation(evidence=evidence, advice=advice, minutes=minutes, seconds=law.now))
    text = "\n".join(recommendation_lines(result))
    assert all(missing in text for missing in evidence.not_measured)
    if advice is None:
        assert "No recommendation" in text
    else:
        assert prior_of(evidence.noise) or any(run.reached for run in evidence.runs)


def test_every_run_to_the_target_has_the_length_of_a_schedule_that_was_given():
    law = Law(least=60, minutes=30)
    given = {"schedule": "cosine", "epochs": 2, "warmup_epochs": 0.5}
    evidence, advice = answer(law, **given)
    to_target = [job.options for job in law.jobs if job.key.startswith("target")]
    assert len({options["batch_size"] for options in to_target}) > 1
    assert all("steps" not in options for options in to_target)
    assert all(given.items() <= job.options.items() for job in law.jobs)
    assert given.items() <= advice.options.items() and advice.warmup_epochs == 0.5
    text = "\n".join(
        recommendation_lines(kept(Recommendation(evidence=evidence, advice=advice, minutes=30, seconds=law.now)))
    )
    assert "cosine over 2 epochs, warmup 0.5 epochs" in text and "--schedule=cosine" in text


def test_averaged_weights_are_part_of_every_run_and_of_the_answer():
    law = Law(minutes=6)
    evidence, advice = answer(law, average_weights=3000)
    assert {job.options["average_weights"] for job in law.jobs} == {3000} == {advice.options["average_weights"]}
    result = Recommendation(evidence=evidence, advice=advice, seconds=60.0, minutes=6)
    text = "\n".join(recommendation_lines(result))
    assert "an average, in which one counts half as much after 3,000 examples" in text
    assert "--average_weights=3000" in text


def test_a_schedule_that_takes_more_than_the_budget_says_so():
    evidence, _ = answer(Law(least=60, minutes=1), schedule="cosine", epochs=50)
    assert not evidence.runs and evidence.minutes_needed > 1
    assert any("too little time is left for a run to it" in what for what in evidence.not_measured)


def test_two_sizes_are_timed_where_compiling_takes_much_of_the_budget():
    class Slow(Law):
        start = 12.0

    law = Slow(minutes=2, overhead=1e-4)
    _, advice = answer(law)
    timed = [job.options["batch_size"] for job in law.jobs if job.key.startswith("time")]
    assert len(timed) == 2 and advice is not None
    # Without a run to the target, a third one takes its place.
    law = Slow(least=10**7, minutes=3, overhead=1e-4)
    answer(law)
    assert len([job for job in law.jobs if job.key.startswith("time")]) == 3


@pytest.mark.parametrize("examples", [55_000, 5_000])
def test_a_race_is_one_of_equal_time(examples):
    law = Law(minutes=30)
    evidence, _ = answer(law, examples=examples)
    shorts = [job.options for job in law.jobs if job.key.startswith("short")]
    seconds = [options["steps"] * law.update_seconds(options["batch_size"]) for options in shorts]
    assert len({options["batch_size"] for options in shorts}) > 1
    # But that a fit of the time says how many updates that are, and there are at least so many.
    assert max(seconds) < 1.1 * min(seconds)
    size, rate, _ = min(evidence.race, key=lambda entry: entry[2])
    first = evidence.runs[0]
    assert (first.batch_size, first.rate) == (size, rate)


def test_noise_that_few_measurements_do_not_bound_is_measured_again():
    """By the next run; and what stays unknown is said."""

    class Late(Law):
        def noise(self, job):
            first = job.key == next(job.key for job in self.jobs if "noise_every" in job.options)
            return super().noise(job)[:3] if first else super().noise(job)

    law = Late(minutes=20)
    evidence, _ = answer(law)
    measured = [job for job in law.jobs if "noise_every" in job.options]
    assert len(measured) == 2 and evidence.noise.measurements >= 6 and prior_of(evidence.noise)
    assert not any("noise" in what for what in evidence.not_measured)

    class Never(Law):
        def noise(self, job):
            return []

    evidence, advice = answer(Never(minutes=20))
    assert evidence.noise is None and advice.batch_size
    said = [what for what in evidence.not_measured if "the gradient noise scale" in what]
    assert len(said) == 1 and ("its measurements are too few" in said[0] or "too little time" in said[0])


@pytest.mark.parametrize("longest", [math.inf, 1_000])
def test_time_that_is_left_measures_the_noise_of_a_target_that_is_reached_too_soon(longest):
    """Runs to it had two measurements, which bound nothing, while half of the budget was left."""
    law = Law(least=40, minutes=5, longest=longest)
    evidence, _ = answer(law)
    runs = [job for job in law.jobs if "noise_every" in job.options]
    assert prior_of(evidence.noise) and not any("noise" in what for what in evidence.not_measured)
    # Along a run to the target, and not beyond it: the scale grows.
    first = next(run for run in evidence.runs if run.reached)
    assert evidence.runs[0].diverged is (longest == 1_000)
    options = runs[-1].options
    assert runs[-1].key.startswith("noise-") and law.now < law.seconds
    assert (options["steps"], options["learning_rate"]) == (first.updates, first.rate)


@pytest.mark.parametrize("target", [None, 0.98])
def test_examples_too_few_for_noise_are_said_once(target):
    evidence, _ = answer(Law(minutes=20), target=target, examples=120)
    assert evidence.noise is None
    said = [what for what in evidence.not_measured if "noise" in what]
    assert said == ["the gradient noise scale: 120 examples are too few"]


def test_short_runs_say_on_which_side_the_next_batch_size_is():
    """A noise scale far above the critical batch size asked for a large one once, which took the time of all others."""

    class Misleading(Law):
        def noise(self, job):
            return [[step, loss, norm2, 50 * trace] for step, loss, norm2, trace in super().noise(job)]

    law = Misleading(critical=300.0, minutes=20)
    evidence, _ = answer(law)
    assert evidence.noise.scale > 10_000
    race, sizes = {}, list(dict.fromkeys(run.batch_size for run in evidence.runs))
    for size, _, loss in evidence.race:
        race[size] = min(loss, race.get(size, math.inf))
    assert {sizes[0] // 4, 4 * sizes[0]} <= set(race)
    assert sizes[1] == min(sizes[0] // 4, 4 * sizes[0], key=lambda size: race[size]) < sizes[0]


def test_without_a_target_noise_and_knee_decide():
    law = Law(critical=400.0)
    evidence, advice = answer(law, target=None)
    assert any("target_accuracy" in text for text in evidence.not_measured)
    assert advice.source == "noise" and advice.predictions[0].seconds is None
    assert advice.critical_batch_size.value == pytest.approx(400, rel=0.2)
    # sqrt(400 x 10) = 63.
    assert advice.batch_size == 64
    assert advice.learning_rate == pytest.approx(law.best_rate(64), rel=0.8)
    assert "target_accuracy" not in advice.options


@pytest.mark.parametrize("options", [{}, {"span": 16}, {"norm": "none"}, {"span": 3}])
def test_the_command_is_one_that_the_trainer_takes(options):
    _, advice = answer(Law(minutes=30), **options)
    words = shlex.split(command(advice))
    assert words[:3] == ["python", "-m", "experiments.train"]
    flags = dict(word.removeprefix("--").split("=") for word in words[3:])
    fields = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    config = TrainConfig(**advice.options)
    for name, default in fields.items():
        value = getattr(config, name)
        assert (str(value) == flags[name]) if name in flags else value == default, name
    assert config.target_accuracy == 0.98 and config.peak_learning_rate == advice.learning_rate
    plan.make(config, 55_000, 2)


def test_what_binds_is_named():
    # Far more noise than the device can use, and the other way round.
    assert answer(Law(critical=5_000.0, overhead=1e-4, minutes=30))[1].binds == "knee"
    assert answer(Law(critical=30.0, overhead=1e-1, minutes=60))[1].binds == "noise"
    _, advice = answer(Law(critical=5_000.0, overhead=5e-2, minutes=60), examples=2_000)
    assert advice.binds == "data" and advice.batch_size <= 250


def test_the_largest_batch_is_tried_where_the_data_come_near_it():
    far, _ = answer(Law(minutes=30))
    assert far.memory.tried is None and far.memory.largest > 100_000
    near, _ = answer(Law(minutes=30, per_example=3 * 10**6))
    assert near.memory.tried == TriedBatch(batch_size=near.memory.tried.batch_size, error=None)
    assert near.memory.largest / 4 <= near.memory.tried.batch_size <= near.memory.largest


def test_one_batch_size_without_noise_is_said_to_be_a_guess():
    law = Law(minutes=30)
    evidence, _ = answer(law)
    size = evidence.runs[0].batch_size
    runs = [run for run in evidence.runs if run.batch_size == size]
    evidence = msgspec.structs.replace(evidence, noise=None, runs=runs)
    advice = advise(evidence)
    assert advice.source == "usual" and advice.predictions[0].updates
    assert advise(msgspec.structs.replace(evidence, runs=[])) is None


def test_a_batch_that_does_not_run_is_a_result_and_a_limit():
    """Without that limit the best batch is of some 1,600; with it larger ones are cut."""
    law = Law(least=100, critical=5_000.0, overhead=5e-2, most=600, minutes=60, per_example=3 * 10**6)
    evidence, advice = answer(law)
    tried = evidence.memory.tried
    assert tried.batch_size > 600 and tried.error == "its process ended with exit status -9"
    assert evidence.memory.largest < tried.batch_size
    assert max(job.options["batch_size"] for job in law.jobs if "target" in job.key) <= max(600, tried.batch_size // 2)
    assert advice is not None


def test_memory_that_binds_is_named_and_accumulation_makes_up_for_it():
    law = Law(least=100, critical=5_000.0, overhead=5e-2, minutes=60)
    evidence, advice = answer(law)
    assert advice.binds != "memory" and advice.batch_size >= 1024
    memory = msgspec.structs.replace(evidence.memory, largest=256)
    evidence = msgspec.structs.replace(evidence, memory=memory)
    advice = advise(evidence)
    assert advice.binds == "memory"
    assert advice.per_device * 2 * advice.accumulation_steps == advice.batch_size
    assert advice.per_device * 2 <= 256
    assert "accumulation" in advice.loosen
    for parts, text in ((1, "the whole batch"), (2, f"each micro-batch of {advice.batch_size // 2}")):
        cut = msgspec.structs.replace(advice, accumulation_steps=parts)
        result = Recommendation(evidence=evidence, advice=cut, seconds=60.0, minutes=60)
        assert f"statistics over {text}" in "\n".join(recommendation_lines(result))
    whole = advise(msgspec.structs.replace(evidence, options={**evidence.options, "norm": "renorm"}))
    assert whole.accumulation_steps == 1
    assert whole.binds == "memory" and "accumulation" not in whole.loosen


def test_of_a_target_that_is_not_reached_noise_speaks():
    evidence, advice = answer(Law(least=10**7, minutes=3))
    assert any("not reached at batch size" in text for text in evidence.not_measured)
    assert advice.source == "noise" and advice.predictions[0].updates is None
    assert "epochs" not in advice.options and advice.options["target_accuracy"] == 0.98


def test_a_rate_that_diverges_after_a_while_is_followed_by_lower_ones():
    law = Law(longest=20_000, minutes=30)
    evidence, advice = answer(law)
    assert evidence.runs[0].diverged and any(run.reached for run in evidence.runs)
    assert evidence.noise is not None
    assert advice.source == "runs" and advice.learning_rate <= law.best_rate(advice.batch_size)


def test_rates_that_all_diverge_are_said_to():
    law = Law(rate=1e-9)
    # Time and memory are measured at a rate of their own.
    law.best_rate = lambda batch_size: 1e-6 if law.jobs[-1].key.startswith(("time", "largest")) else 1e-12
    evidence, advice = answer(law)
    assert advice is None and any("diverged" in text for text in evidence.not_measured)
    assert len([job for job in law.jobs if job.key.startswith("short")]) == 3 + 4


def test_a_search_that_goes_on_asks_for_the_same_runs():
    law = Law(minutes=6)
    before = measure(law, law.problem())
    made, law.now = len(law.jobs), 0.0
    after = measure(law, law.problem())
    size = before.runs[0].batch_size
    first = [run.key for run in before.runs if run.batch_size == size and run.seed >= SEARCH_SEED]
    assert [run.key for run in after.runs if run.key in first] == first
    assert {run.key for run in after.runs} & {job.key for job in law.jobs[:made]} >= set(first)


def test_each_batch_size_is_searched_with_a_seed_of_its_own_that_its_rates_share():
    """However much time there is, a size has the same one, so that a search that goes on finds its runs."""
    seeds: dict[int, set[int]] = {}
    for minutes in (6, 30):
        for run in answer(Law(minutes=minutes))[0].runs:
            if run.seed >= SEARCH_SEED:
                seeds.setdefault(run.batch_size, set()).add(run.seed)
    assert len(seeds) > 2 and all(len(found) == 1 for found in seeds.values())
    assert len(set.union(*seeds.values())) == len(seeds)


def test_a_run_at_another_size_ends_where_it_has_taken_twice_the_least_time():
    """Where the rates of other sizes do not follow the rule, so that runs there miss the target."""
    law = Law(critical=50.0, overhead=1e-3, throughput=5e3, minutes=6)
    usual = law.best_rate
    law.best_rate = lambda batch_size: usual(batch_size) * (1 if batch_size == 16 else 30)
    evidence, _ = answer(law)
    jobs = [job for job in law.jobs if job.key.startswith("target")]
    least, cut = math.inf, 0
    for run, job in zip(evidence.runs, jobs, strict=True):
        if run.seed < SEARCH_SEED:
            break
        seconds = 1e-3 + run.batch_size / 5e3
        if run.batch_size != evidence.runs[0].batch_size:
            # A run goes past its target by a fifth.
            assert job.options["steps"] * seconds <= 1.25 * 2 * least
            cut += not run.reached
        if run.reached:
            least = min(least, run.updates * seconds)
    assert cut


def test_a_run_that_will_be_cut_needs_no_more_time_than_until_then(monkeypatch):
    """At a size that is expected to be ten times as slow as the fastest one."""
    searches = []
    search = TargetSearch.__call__
    monkeypatch.setattr(TargetSearch, "__call__", lambda self, *args: (searches.append(self), search(self, *args)))
    law = Law(minutes=30)
    answer(law)
    (found,) = searches
    updates = 10 * min(map(found._time, found._bests())) / law.update_seconds(2)
    law.now = law.seconds - 0.5 * updates * law.update_seconds(2)
    assert found._allowed(2, updates) == 0
    # Of ten times the time, two are a fifth.
    assert found._allowed(2, updates, slower=2.0) == pytest.approx(updates / 5, rel=0.05)
    # So a size is not left out for want of time for a whole run.
    evidence, _ = answer(Law(least=60, critical=2.0, minutes=0.8, rate=0.02))
    assert {run.batch_size for run in evidence.runs} == {16, 32, 64}


@pytest.mark.parametrize("start", [3.0, 6.0])
@pytest.mark.parametrize("minutes", [0.4, 0.5, 0.6, 0.8])
@pytest.mark.parametrize("critical", [30.0, 300.0])
def test_of_little_time_neither_timing_nor_short_runs_take_all(start, minutes, critical):
    """Where four programs take a quarter to all of it to compile, and a run to the target a few seconds."""
    law = Law(least=100, critical=critical, throughput=1e5, minutes=minutes)
    law.start, law.again, law.evaluation = start, 0.5, 0.05
    evidence, advice = answer(law)
    assert any(run.reached for run in evidence.runs) and advice is not None
    assert law.spent() <= 1.05 * law.seconds


@pytest.mark.parametrize(
    ("critical", "minutes", "least"),
    [(20.0, 1.4, 150), (40.0, 1.8, 150), (40.0, 2.3, 250), (80.0, 1.6, 60), (80.0, 2.3, 150)],
)
def test_a_second_size_needs_no_more_time_than_until_its_runs_end_and_the_side_with_time_is_taken(
    critical, minutes, least
):
    """Where updates are slow, whole runs at both neighbours of the first size are longer than what is left."""
    law = Law(least=least, critical=critical, overhead=0.02, throughput=2e3, minutes=minutes, rate=0.02)
    evidence, _ = answer(law)
    assert len({run.batch_size for run in evidence.runs}) == 2


def test_after_a_miss_at_a_larger_size_a_lower_rate_is_tried():
    law = Law(critical=2000.0, overhead=5e-3, throughput=2e5, minutes=8)
    usual = law.best_rate
    law.best_rate = lambda batch_size: usual(batch_size) / (1 if batch_size <= 1024 else 6)
    evidence, _ = answer(law)
    first, second = [run for run in evidence.runs if run.batch_size == 2048][:2]
    assert evidence.runs[0].batch_size == 1024 and not (first.reached or first.diverged)
    assert second.reached and second.rate < first.rate


def test_time_that_is_left_goes_to_other_seeds_of_the_fastest_settings():
    law = Law(minutes=60, spread=0.2)
    evidence, advice = answer(law)
    seeds = {}
    for run in evidence.runs:
        seeds.setdefault((run.batch_size, run.rate), set()).add(run.seed)
    most = max(seeds.values(), key=len)
    assert len(most) == 9 and sum(len(found) == 9 for found in seeds.values()) >= 2
    assert len(seeds[advice.batch_size, advice.learning_rate]) == 9
    # What was left out for want of time is nothing, and so no other budget is asked for.
    assert evidence.minutes_needed is None
    few = answer(Law(minutes=4, spread=0.2))[1]
    widths = [a.chosen.updates[2] / a.chosen.updates[1] for a in (advice, few)]
    assert widths[0] < widths[1]


def test_a_budget_that_is_too_small_names_one_that_is_not():
    evidence, advice = answer(Law(minutes=0.5))
    assert advice is None and evidence.minutes_needed > 0.5
    more, _ = answer(Law(minutes=1.2 * evidence.minutes_needed))
    # What was refused for want of time then is made now.
    assert set(evidence.not_measured) - set(more.not_measured)
