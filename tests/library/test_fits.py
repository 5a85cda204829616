"""Fits of the updates to a target and of the time of an update: known answers, censoring, coverage of the intervals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from batchnorm_jax import batch_size
from batchnorm_jax.batch_size import _censored, _fits

SIZES = np.array([32, 128, 512, 2048])
S_MIN, B_CRIT = 100.0, 400.0
OVERHEAD, THROUGHPUT = 0.02, 5_000.0


def steps(sizes, b_crit=B_CRIT):
    return S_MIN * (1 + b_crit / sizes)


def seconds(sizes):
    return OVERHEAD + sizes / THROUGHPUT


def relative(noise, shape, seed):
    return np.exp(noise * np.random.default_rng(seed).standard_normal(shape))


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """One less than a multiple of 40, so that the ends of 95% fall on a draw."""
    monkeypatch.setattr(_fits, "DRAWS", 39)


@pytest.mark.parametrize("b_crit", [1.0, 20.0, 400.0, 50_000.0, 1e6])
def test_the_curve_is_recovered_from_points_on_it(b_crit):
    fit = batch_size.fit_steps_to_target(SIZES[::-1], steps(SIZES[::-1], b_crit))
    found = [fit.min_steps, fit.min_examples, fit.critical_batch_size]
    np.testing.assert_allclose(found, [S_MIN, S_MIN * b_crit, b_crit], rtol=1e-4)
    assert batch_size.predict_steps(fit, 777) == pytest.approx(steps(777, b_crit), rel=1e-6)
    # Nothing is uncertain, but for the rounding of steps to come.
    assert fit.intervals["min_examples"] == pytest.approx((S_MIN * b_crit,) * 2, rel=1e-2)


def test_the_curve_is_recovered_where_some_runs_stopped_below_it():
    sizes = np.repeat(SIZES, 2)
    stopped = np.arange(len(sizes)) % 3 == 0
    fit = batch_size.fit_steps_to_target(sizes, np.where(stopped, 0.7, 1.0) * steps(sizes), censored=stopped)
    assert (fit.min_steps, fit.critical_batch_size) == pytest.approx((S_MIN, B_CRIT), rel=1e-4)


def test_the_step_time_is_recovered_from_points_on_its_line():
    fit = batch_size.fit_step_time(SIZES, seconds(SIZES))
    assert fit[:3] == pytest.approx((OVERHEAD, THROUGHPUT, OVERHEAD * THROUGHPUT), rel=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_the_fit_is_the_maximum_of_the_likelihood(seed):
    """The maximum is that of scipy's densities, over all three parameters at once."""
    sizes = np.repeat(SIZES, 3)
    limit = 0.9 * steps(64)
    drawn = steps(sizes) * relative(0.2, len(sizes), seed)
    lost, counts = drawn > limit, np.minimum(drawn, limit)
    assert lost.any()

    def loss(parameters):
        log_steps, log_examples, log_noise = parameters
        normal = stats.norm(np.logaddexp(log_steps, log_examples - np.log(sizes)), math.exp(log_noise))
        return -np.sum(np.where(lost, normal.logsf(np.log(counts)), normal.logpdf(np.log(counts))))

    start = [math.log(S_MIN), math.log(S_MIN * B_CRIT), math.log(0.2)]
    best = optimize.minimize(
        loss, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10, "maxiter": 2000}
    )
    fit = batch_size.fit_steps_to_target(sizes, counts, censored=lost)
    np.testing.assert_allclose(np.log([fit.min_steps, fit.min_examples]), best.x[:2], atol=1e-4)


def test_a_set_beside_one_with_censored_numbers_has_the_same_loss():
    """The search drops sets as they end: what is left must not change its loss when the last censored number goes."""
    residual = np.random.default_rng(0).standard_normal((30, 4))
    lost = np.zeros((30, 4), bool)
    lost[0, 0] = True
    together = np.stack(_censored._location(residual, lost))
    np.testing.assert_allclose(together[:, 1:], _censored._location(residual[1:], lost[1:]), rtol=1e-6, atol=1e-6)
    assert together[0, 0] > residual[0].mean()


def test_runs_that_did_not_reach_the_target_are_not_taken_for_ones_that_did():
    """The smallest batches run out of updates half of the time, so that their counts look better than they are."""
    sizes, limit = np.repeat(SIZES, 3), steps(32)
    errors = {"censored": [], "observed": []}
    for seed in range(60):
        drawn = steps(sizes) * relative(0.4, len(sizes), seed)
        counts, lost = np.minimum(drawn, limit), drawn > limit
        for name, given_ in (("censored", lost), ("observed", None)):
            fit = batch_size.fit_steps_to_target(sizes, counts, censored=given_)
            errors[name].append(math.log(fit.min_examples / (S_MIN * B_CRIT)))
    bias = {name: np.mean(values) for name, values in errors.items()}
    error = {name: np.std(values) / math.sqrt(60) for name, values in errors.items()}
    assert abs(bias["censored"]) < 3 * error["censored"] + 0.02
    assert bias["observed"] < -5 * error["observed"] and abs(bias["observed"]) > 3 * abs(bias["censored"])


# Name: sizes of the runs, critical batch size, noise, budget in updates by size.
SETTINGS = {
    "four points": (SIZES, B_CRIT, 0.2, None),
    "five seeds of two sizes": (np.repeat([64, 2048], 5), B_CRIT, 0.1, None),
    "beyond the largest batch": (SIZES, 20_000.0, 0.1, None),
    "equal updates": (np.repeat(SIZES, 2), B_CRIT, 0.2, lambda sizes: np.full(len(sizes), steps(32))),
    "equal epochs": (np.repeat(SIZES, 2), B_CRIT, 0.2, lambda sizes: steps(2048) * 2048 / sizes),
    "nine in ten stopped": (np.repeat(SIZES, 16), B_CRIT, 0.2, lambda sizes: 0.8 * steps(sizes)),
}


@pytest.mark.parametrize(("name", "confidence"), [*((name, 0.8) for name in SETTINGS), ("four points", 0.95)])
def test_intervals_hold_the_truth_as_often_as_they_say(name, confidence, monkeypatch):
    """In 200 simulated studies, within four standard errors: neither less often nor more."""
    monkeypatch.setattr(_fits, "DRAWS", 19 if confidence == 0.8 else 39)
    sizes, b_crit, noise, budget = SETTINGS[name]
    limit = np.full(len(sizes), np.inf) if budget is None else budget(sizes)
    truth = {
        "min_steps": S_MIN,
        "min_examples": S_MIN * b_crit,
        "critical_batch_size": b_crit,
        "steps": steps(500, b_crit),
    }
    held, studies = dict.fromkeys(truth, 0), 0
    for seed in range(200):
        drawn = steps(sizes, b_crit) * relative(noise, len(sizes), seed)
        reached = drawn <= limit
        if np.sum(reached) < 3 or np.ptp(sizes[reached]) == 0:
            continue
        studies += 1
        fit = batch_size.fit_steps_to_target(
            sizes, np.minimum(drawn, limit), censored=~reached, confidence=confidence, seed=seed
        )
        intervals = fit.intervals | {"steps": batch_size.predict_steps_interval(fit, 500, confidence=confidence)}
        for key, (low, high) in intervals.items():
            held[key] += low <= truth[key] <= high
    assert studies > 190
    allowed = 4 * math.sqrt(confidence * (1 - confidence) / studies)
    for key, times in held.items():
        assert abs(times / studies - confidence) < allowed, (key, times)


def test_intervals_of_the_step_time_hold_the_truth_as_often_as_they_say():
    truth = {"overhead": OVERHEAD, "throughput": THROUGHPUT, "knee": OVERHEAD * THROUGHPUT}
    held, studies = dict.fromkeys(truth, 0), 200
    for seed in range(studies):
        fit = batch_size.fit_step_time(SIZES, seconds(SIZES) * relative(0.1, 4, seed), confidence=0.8, seed=seed)
        for key, (low, high) in fit.intervals.items():
            held[key] += low <= truth[key] <= high
    for key, times in held.items():
        assert abs(times / studies - 0.8) < 4 * math.sqrt(0.8 * 0.2 / studies), (key, times)


def test_batches_that_are_all_small_bound_the_critical_size_from_below_alone():
    sizes = np.repeat([8, 16, 32], 5)
    fit = batch_size.fit_steps_to_target(sizes, steps(sizes, 1e5) * relative(0.05, 15, 0))
    low, high = fit.intervals["critical_batch_size"]
    assert 32 < low < 1e5 and high == math.inf and fit.intervals["min_steps"][0] == 0
    low, high = fit.intervals["min_examples"]
    assert low < S_MIN * 1e5 < high < 1.3 * low


def test_batches_that_are_all_large_bound_the_critical_size_from_above_alone():
    sizes = np.repeat([1024, 2048, 4096], 5)
    fit = batch_size.fit_steps_to_target(sizes, steps(sizes, 1.0) * relative(0.05, 15, 1))
    low, high = fit.intervals["critical_batch_size"]
    assert low == 0 and 1 < high < 1024 and fit.intervals["min_examples"][0] == 0
    low, high = fit.intervals["min_steps"]
    assert low < S_MIN < high < 1.3 * low


def test_a_constant_that_is_not_there_is_zero_and_its_ratio_infinite():
    """Steps that fall faster than the batch grows, and times that do not grow with it: the ends of all curves."""
    falling = batch_size.fit_steps_to_target(SIZES, 1e6 / SIZES**1.1)
    assert falling.min_steps == 0 and falling.critical_batch_size == math.inf
    assert batch_size.predict_steps(falling, 64) == falling.min_examples / 64
    rising = batch_size.fit_step_time(SIZES, 0.1 * SIZES**-0.1)
    assert rising.throughput == math.inf == rising.knee and 0.04 < rising.overhead < 0.1


def test_draws_are_those_of_the_seed_and_the_fit_is_not_theirs():
    counts = steps(SIZES) * relative(0.1, 4, 0)
    first, again, other = (batch_size.fit_steps_to_target(SIZES, counts, seed=seed) for seed in (0, 0, 1))
    assert first.intervals == again.intervals != other.intervals
    assert first[:3] == other[:3]


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(0, 1_000))
def test_units_of_batches_and_of_steps_do_not_matter(batch_unit, step_unit, seed):
    """In thousands, say: the critical batch size is in the unit of the batches, and their product in both."""
    sizes, limit = np.repeat(SIZES, 2), steps(32)
    drawn = steps(sizes) * relative(0.1, len(sizes), seed)
    counts, lost = np.minimum(drawn, limit), drawn > limit
    fit = batch_size.fit_steps_to_target(sizes, counts, censored=lost)
    scaled = batch_size.fit_steps_to_target(batch_unit * sizes, step_unit * counts, censored=lost)
    units = {"min_steps": step_unit, "min_examples": step_unit * batch_unit, "critical_batch_size": batch_unit}
    for name, unit in units.items():
        assert getattr(scaled, name) == pytest.approx(unit * getattr(fit, name), rel=1e-4)
        assert scaled.intervals[name] == pytest.approx([unit * end for end in fit.intervals[name]], rel=1e-4)


@pytest.mark.parametrize(("b_crit", "knee"), [(400.0, 100.0), (20_000.0, 3.0), (5.0, 5_000.0)])
def test_the_best_batch_size_is_where_the_time_is_least(b_crit, knee):
    grid = np.geomspace(1e-2, 1e6, 400_001)
    times = (1 + b_crit / grid) * (knee + grid)
    assert batch_size.best_batch_size(b_crit, knee) == pytest.approx(grid[times.argmin()], rel=1e-4)
    assert batch_size.best_batch_size(math.inf, knee) == math.inf and batch_size.best_batch_size(b_crit, 0.0) == 0


GOOD = {"batch_sizes": [32, 64, 128], "steps": [300, 200, 150]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": [300, 200]}, "batch_sizes has shape .3,. and steps .2,.; give one of each"),
        ({"batch_sizes": 32, "steps": 300}, "batch_sizes has shape .. and steps"),
        ({"censored": [False]}, "censored has shape .1,. and steps .3,.; give one value a run"),
        (
            {"censored": [True, False, False]},
            "at least 3 runs of at least 2 batch sizes must reach .* 2 of 3 did, of 2",
        ),
        ({"batch_sizes": [32, 32, 32]}, "3 of 3 did, of 1; add runs, train for longer"),
        ({"batch_sizes": [], "steps": []}, "0 of 0 did, of 0"),
        ({"steps": [300, 0, 150]}, "steps must be positive and finite, and 0 came"),
        ({"steps": [300, math.nan, 150]}, "steps must be positive and finite, and nan came"),
        ({"batch_sizes": [32, 64, math.inf]}, "batch_sizes must be positive and finite, and inf came"),
        ({"batch_sizes": [-32, 64, 128]}, "batch_sizes must be positive and finite, and -32 came"),
        ({"confidence": 0.0}, "confidence=0 must be above 0 and at most 0.95"),
        ({"confidence": 1.0}, "confidence=1 must be above 0"),
        ({"confidence": math.nan}, "confidence=nan must be above 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused(wrong, message):
    with pytest.raises(ValueError, match=f"^fit_steps_to_target: .*{message}"):
        batch_size.fit_steps_to_target(**(GOOD | wrong))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seconds": [0.1]}, "batch_sizes has shape .3,. and seconds .1,."),
        (
            {"batch_sizes": [32, 64], "seconds": [0.1, 0.2]},
            "at least 3 measurements of at least 2 batch sizes .* 2 came",
        ),
        ({"seconds": [0.1, -0.2, 0.3]}, "seconds must be positive and finite, and -0.2 came"),
        ({"confidence": 95}, "confidence=95 must be above 0"),
    ],
)
def test_times_that_cannot_be_fitted_are_refused(wrong, message):
    with pytest.raises(ValueError, match=f"^fit_step_time: .*{message}"):
        batch_size.fit_step_time(**({"batch_sizes": [32, 64, 128], "seconds": [0.1, 0.2, 0.3]} | wrong))


def test_what_cannot_be_predicted_is_refused():
    fit = batch_size.fit_steps_to_target(**GOOD)
    for size in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^predict_steps: batch_size must be positive and finite"):
            batch_size.predict_steps(fit, size)
    with pytest.raises(ValueError, match=r"^predict_steps_interval: batch_size"):
        batch_size.predict_steps_interval(fit, 0)
    with pytest.raises(ValueError, match=r"^predict_steps_interval: confidence=2"):
        batch_size.predict_steps_interval(fit, 64, confidence=2)
    for pair in ((-1, 1), (1, -1), (-1, -1), (math.nan, 1), (math.inf, 0)):
        with pytest.raises(ValueError, match=r"^best_batch_size: critical_batch_size="):
            batch_size.best_batch_size(*pair)
