"""The updates to a target of a run with noise: no luck, no dependence on how often it was evaluated."""

import math

import numpy as np
import pytest

from batchnorm_jax.batch_size import steps_to_target

TRUE = 400.0


def run(every, seed, noise=0.1):
    """The evaluations of a loss 2 exp(-step / 400), with noise in proportion; it is 2 / e after 400 updates."""
    steps = np.arange(0, 801, every)
    return steps, 2 * np.exp(-steps / 400 + noise * np.random.default_rng(seed).standard_normal(len(steps)))


@pytest.mark.parametrize("every", [1, 10, 100])
def test_the_mean_over_runs_is_right_however_often_they_are_evaluated(every):
    target = 2 / math.e
    found = [steps_to_target(*run(every, seed), target) for seed in range(100)]
    first = [steps[np.argmax(losses <= target)] for steps, losses in (run(every, seed) for seed in range(100))]
    assert np.mean(found) == pytest.approx(TRUE, rel=0.03)
    assert np.std(found) < 40
    # What it replaces: at one update per evaluation, the first one at the target is early by a sixth.
    if every == 1:
        assert np.mean(first) < 0.87 * TRUE


def test_without_noise_it_interpolates():
    steps, losses = [0, 10, 20], [3.0, 2.0, 1.0]
    assert steps_to_target(steps, losses, 1.5) == 15.0
    assert steps_to_target(steps, losses, 1.0) == 20.0
    assert steps_to_target(steps, losses, 4.0) == 0.0
    assert steps_to_target(steps, losses, 0.9) == math.inf


def test_a_run_that_diverged_counts_up_to_there():
    assert steps_to_target([0, 10, 20, 30], [3.0, 2.0, 1.0, math.inf], 1.5) == 15.0
    assert steps_to_target([0, 10, 20, 30], [3.0, 2.0, math.inf, 0.0], 1.5) == math.inf
    assert steps_to_target([0], [math.inf], 1.5) == math.inf


@pytest.mark.parametrize(
    ("steps", "losses", "target", "message"),
    [
        ([0, 1], [1.0], 0.5, r"steps has shape \(2,\) and losses \(1,\)"),
        ([], [], 0.5, "give one of each a time"),
        ([0, 0], [1.0, 0.5], 0.5, "steps must rise"),
        ([0, 1], [1.0, math.nan], 0.5, "leave out what came after the first nan"),
        ([0, 1], [1.0, 0.5], math.nan, "must be numbers"),
    ],
)
def test_what_is_no_run_is_refused(steps, losses, target, message):
    with pytest.raises(ValueError, match=message):
        steps_to_target(steps, losses, target)
