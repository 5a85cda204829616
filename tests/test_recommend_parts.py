"""The grounds of a recommendation: the line of the memory, and Bayes' rule for few runs to a target."""

import math
from unittest import mock

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments._errors import UsageError
from experiments.records.evidence import MeasuredRun, Noise
from experiments.studies.recommending import curves, memory
from experiments.studies.recommending.curves import (
    NOISE_LOG_SD,
    NOISE_OVER_CRITICAL,
    RATE_LOG_SD,
    SEED_CORRELATION,
    SEED_LOG_SD,
    SETTING_LOG_SD,
    USUAL_CRITICAL_EXAMPLES,
    USUAL_LOG_SD,
    Curves,
    NoisePrior,
    SeedSpread,
    best_runs,
    luck_of,
    noise_over,
    prior_of,
    seed_spread,
    settings_of,
    steps_by,
)


def runs(sizes, updates, reached=None):
    reached = [True] * len(sizes) if reached is None else reached
    fields = {"rate": 0.1, "seed": 0, "diverged": False, "step_seconds": None}
    return [
        MeasuredRun(batch_size=b, updates=s, reached=r, **fields)
        for b, s, r in zip(sizes, updates, reached, strict=True)
    ]


@settings(max_examples=10, deadline=None)
@given(
    scale=st.floats(20, 2_000),
    off=st.floats(1 / 6, 6),
    least=st.floats(50, 5_000),
    sizes=st.lists(st.sampled_from([8, 32, 128, 512, 2048]), min_size=4, max_size=5, unique=True),
)
def test_runs_outweigh_the_noise_scale_where_there_are_enough(scale, off, least, sizes):
    """On the curve: thirty runs at each of four sizes or more leave little of what was thought before."""
    sizes, truth = sorted(sizes) * 30, off * scale
    noise = NoisePrior(NOISE_OVER_CRITICAL * scale, 0.1)
    with mock.patch.object(curves, "SETTING_LOG_SD", 0.02):
        (found, examples), *draws = steps_by(noise, runs(sizes, [least * (1 + truth / size) for size in sizes]))
    for size in set(sizes):
        assert found + examples / size == pytest.approx(least * (1 + truth / size), rel=0.1)
    if min(sizes) < truth / 4 and max(sizes) > 4 * truth:
        assert examples / found == pytest.approx(truth, rel=0.2)
    assert np.shape(draws)[1] == 2


def test_the_intervals_hold_what_was_drawn():
    """By Bayes' rule: of problems drawn as is thought before the runs, 95% lie in intervals of 95%."""
    random = np.random.default_rng(0)
    inside = []
    for _ in range(300):
        truth = USUAL_CRITICAL_EXAMPLES * math.exp(random.normal(0, USUAL_LOG_SD))
        # About the truth, since it is the truth that was drawn.
        noise = NoisePrior(NOISE_OVER_CRITICAL * truth * math.exp(random.normal(0, math.hypot(NOISE_LOG_SD, 0.5))), 0.5)
        least = math.exp(random.uniform(4, 8))
        sizes = random.choice([16, 64, 256, 1024], random.integers(1, 4))
        # A setting has a deviation of its own, and each of its seeds another.
        of_setting = {size: random.normal(0, SETTING_LOG_SD) for size in (16, 64, 256, 1024)}
        off = [of_setting[size] for size in sizes] + random.normal(0, SEED_LOG_SD, len(sizes))
        updates = least * (1 + truth / sizes) * np.exp(off)
        # A third of the runs are cut short.
        most = updates * np.where(random.random(len(sizes)) < 1 / 3, random.uniform(0.3, 1, len(sizes)), 2)
        if np.all(most < updates):
            continue
        steps = steps_by(noise, runs(sizes.tolist(), np.minimum(updates, most).tolist(), (updates <= most).tolist()))
        low, high = np.quantile(steps[1:, 0] + steps[1:, 1] / 100, [0.025, 0.975])
        inside.append(low <= least * (1 + truth / 100) <= high)
    assert 0.92 <= np.mean(inside) <= 0.98


def test_predictions_hold_runs_with_new_seeds_where_all_were_run_with_one():
    """Problems whose seeds are more or less apart, in part by what all settings with the same seed have in common."""
    random = np.random.default_rng(0)
    sizes, inside, narrow = np.array([16, 64, 256, 1024]), [], []
    for _ in range(300):
        truth = USUAL_CRITICAL_EXAMPLES * math.exp(random.normal(0, USUAL_LOG_SD))
        least = math.exp(random.uniform(4, 8))
        apart = SEED_LOG_SD * math.sqrt(4 / random.chisquare(4))
        shared, own = apart * math.sqrt(SEED_CORRELATION), apart * math.sqrt(1 - SEED_CORRELATION)
        of_setting = least * (1 + truth / sizes) * np.exp(random.normal(0, SETTING_LOG_SD, len(sizes)))
        found = runs(sizes.tolist(), of_setting * np.exp(random.normal(0, shared) + random.normal(0, own, len(sizes))))
        seeds = seed_spread(found)
        known = Curves(steps_by(None, found, seeds.deviation), None, "runs", True, settings_of(found), seeds, {})
        new = of_setting[1] * math.exp(random.normal(0, apart))
        for runs_of, held in ((known.of_run(64), inside), (np.exp(random.normal(0, SEED_LOG_SD, 1000)), narrow)):
            low, high = np.quantile((runs_of * known.of_setting(64))[1:], [0.025, 0.975])
            held.append(low <= new <= high)
    assert 0.92 <= np.mean(inside) <= 0.98
    # As if all runs had seeds of their own, which lie as far apart as is usual.
    assert np.mean(narrow) < 0.9


def test_a_noise_scale_counts_as_far_as_it_is_known():
    """Without runs: normal about the usual, about a noise scale that is known, and between them else."""

    # The product of two normal densities.
    both = 1 / USUAL_LOG_SD**2 + 1 / NOISE_LOG_SD**2
    between = (math.log(USUAL_CRITICAL_EXAMPLES) / USUAL_LOG_SD**2 + math.log(5) / NOISE_LOG_SD**2) / both
    for noise, middle, wide in (
        (None, math.log(USUAL_CRITICAL_EXAMPLES), USUAL_LOG_SD),
        (NoisePrior(5 * NOISE_OVER_CRITICAL, 0.0), between, both**-0.5),
        (NoisePrior(5 * NOISE_OVER_CRITICAL, 1e6), math.log(USUAL_CRITICAL_EXAMPLES), USUAL_LOG_SD),
    ):
        likeliest, *draws = np.log(steps_by(noise, [])[:, 1])
        # The likeliest of the values that are weighed.
        assert likeliest == pytest.approx(middle, abs=0.03)
        assert np.std(draws) == pytest.approx(wide, rel=0.1)


@pytest.mark.parametrize(
    ("scale", "interval", "spread"),
    [
        (500.0, [400.0, 700.0], math.log(7 / 4) / 3.92),
        # Known to less than what is usual.
        (500.0, [1.0, 3000.0], None),
        (4354.0, [0.0, math.inf], None),
        (4354.0, [200.0, None], None),
        (None, [None, None], None),
        (math.inf, [math.inf, math.inf], None),
    ],
)
def test_a_noise_scale_without_bounds_is_not_known(scale, interval, spread):
    """A scale of 4,354 from few measurements was once believed, and predictions were off by a factor of two."""
    noise = prior_of(Noise(scale=scale, interval=tuple(interval), measurements=8))
    assert noise is None if spread is None else noise == pytest.approx((scale, spread), rel=1e-3)
    assert prior_of(None) is None


def test_the_noise_over_a_run_is_the_median_with_its_interval():
    """Coverage for a scale that grows tenfold, measured with noise: intervals hold the median, nearly all bounded."""
    random = np.random.default_rng(0)
    scales = 100 * 10 ** np.linspace(0, 1, 16)
    held, bounded = [], []
    for _ in range(200):
        # Of 20 directions in which a mean gradient is measured with noise as large as it is.
        noisy = ((1 + random.normal(size=(16, 20))) ** 2).mean(axis=1) - 1
        found = noise_over([[0, 0.0, norm2, scale] for norm2, scale in zip(noisy, scales, strict=True)])
        low, high = found.interval
        # An end without a bound is None.
        held.append((low is None or low <= math.sqrt(10) * 100) and (high is None or math.sqrt(10) * 100 <= high))
        bounded.append(prior_of(found) is not None)
    assert np.mean(held) >= 0.95 and np.mean(bounded) >= 0.95
    # Too few for any interval; and half of them without a gradient.
    few = noise_over([[1, 0.1, 0.02, 2.0]] * 3)
    assert few.scale == 100 and few.measurements == 3 and prior_of(few) is None
    assert prior_of(noise_over([[1, 0.1, 0.02, 2.0], [1, 0.1, -0.02, 2.0]] * 8)) is None


def test_a_run_that_was_cut_short_makes_its_size_look_worse():
    """By the noise scale some 100 updates were to be expected at 1,024, and not after 400 without the target."""
    at_64, noise = runs([64], [1_000]), NoisePrior(7_000.0, 0.1)

    def at_1024(*more):
        least, examples = steps_by(noise, at_64 + [run for part in more for run in part])[0]
        return least + examples / 1024

    untuned = at_1024(runs([1024], [400], [False]))
    # More so at a rate that has reached it, with another seed.
    assert at_1024() < 130 < 1.3 * at_1024() < untuned
    tuned = at_1024(runs([1024], [390]), runs([1024], [400], [False]))
    assert untuned < 0.8 * tuned and tuned == pytest.approx(400, rel=0.1)


@settings(deadline=None)
@given(fixed=st.integers(10**5, 10**9), slope=st.integers(10**3, 10**7), limit=st.integers(10**9, 10**11))
def test_the_largest_batch_fits_and_the_next_does_not(fixed, slope, limit):
    sizes = [8, 32, 128, 512]
    line = memory.fit_memory(sizes, [fixed + slope * size for size in sizes])
    assert (line.fixed, line.per_example) == pytest.approx((fixed, slope), rel=1e-6) and line.error < 1e-6
    largest = memory.largest_batch(line, limit, 8)
    room = memory.USABLE_SHARE * limit
    assert largest % 8 == 0
    assert largest == 0 or fixed + slope * largest <= room * (1 + 1e-5)
    assert fixed + slope * (largest + 8) >= room * (1 - 1e-5)


def test_memory_that_does_not_grow_is_refused():
    with pytest.raises(UsageError, match="do not grow"):
        memory.fit_memory([8, 32], [1000, 900])
    with pytest.raises(UsageError, match="at least two batch sizes"):
        memory.fit_memory([8, 8], [1000, 1000])


def test_what_the_first_evaluation_finds_is_an_interval_and_no_number():
    """Four such runs (247, 247, 804, 804 updates, each at its only evaluation) once counted as exact."""

    def critical(between):
        found = runs([64, 64, 16, 16], [247, 247, 804, 804])
        bounds = [(0, run.updates) if between else (run.updates - 1, run.updates) for run in found]
        found = [msgspec.structs.replace(run, between=bound) for run, bound in zip(found, bounds, strict=True)]
        return np.log(np.divide(*steps_by(None, found)[1:, ::-1].T)), np.log(steps_by(None, found)[1:, 0])

    (exact, least), (wide, least_of_wide) = critical(between=False), critical(between=True)
    # As if they had said nothing of the critical batch size, and of the updates only that they are no more.
    assert np.std(wide) > 1.1 * np.std(exact) and np.std(wide) == pytest.approx(USUAL_LOG_SD, rel=0.05)
    assert np.quantile(least_of_wide, 0.975) < math.log(400) and np.median(least_of_wide) < np.median(least)


def test_seeds_that_are_alike_and_sizes_that_were_run_narrow_a_prediction():
    alike, apart = (
        runs([64] * 6, [round(300 * math.exp(spread * z)) for z in (-1.2, -0.6, -0.2, 0.2, 0.6, 1.2)])
        for spread in (0.02, 0.8)
    )
    assert seed_spread(alike).deviation < 0.26 < SEED_LOG_SD < seed_spread(apart).deviation
    found = settings_of(alike)[64]
    assert found.number == 6 and found.mean == pytest.approx(math.log(300), abs=0.01)
    assert SETTING_LOG_SD < found.spread(0.3) < math.hypot(SETTING_LOG_SD, 0.3)


def test_of_two_rates_the_one_with_more_seeds_is_the_best():
    """It was run with more since it was better by fewer; the other one was lucky once."""
    one, many = runs([64], [200]), runs([64] * 3, [250, 260, 255])
    many = [msgspec.structs.replace(run, rate=0.2, seed=seed) for seed, run in enumerate(many)]
    assert {run.rate for run in best_runs([*one, *many])} == {0.2}


def test_what_is_expected_of_the_best_of_few_rates_is_not_the_luck_for_which_it_was_chosen():
    """Three rates with one seed, of which the first is lucky more often than not."""
    random = np.random.default_rng(0)
    with_luck, corrected = [], []
    for spread in (0.2, SEED_LOG_SD) * 500:
        of_rates = random.normal(math.log(1000), RATE_LOG_SD, 3)
        shared, own = spread * math.sqrt(SEED_CORRELATION), spread * math.sqrt(1 - SEED_CORRELATION)
        found = np.exp(of_rates + random.normal(0, shared) + random.normal(0, own, 3)).round()
        tried = [
            msgspec.structs.replace(run, rate=rate)
            for rate, run in zip((0.1, 0.2, 0.4), runs([64] * 3, found), strict=True)
        ]
        off = settings_of(best_runs(tried))[64].mean - of_rates[found.argmin()]
        with_luck.append(off)
        corrected.append(off + luck_of(tried, spread)[64])
    assert np.mean(with_luck) < -0.1
    # Rates that are not near the best one do not count, so that some of the luck is left.
    assert abs(np.mean(corrected)) < 0.4 * abs(np.mean(with_luck))
    # A prediction has it: at a size that was run its own, at another the mean.
    known = Curves(np.ones((3, 2)), None, "runs", True, {}, SeedSpread(0.3), {64: 0.1, 128: 0.3})
    assert [known.of_run(size)[0] for size in (64, 32)] == pytest.approx(np.exp([0.1, 0.2]))
    # A rate that was run with more seeds than others was not chosen among them by its own.
    more = [msgspec.structs.replace(run, seed=seed) for seed, run in enumerate(runs([64] * 3, [900, 1000, 1100]))]
    assert luck_of([*more, *(msgspec.structs.replace(run, rate=0.2) for run in runs([64], [800]))], 0.3) == {64: 0.0}
