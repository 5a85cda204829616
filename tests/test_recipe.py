"""Schedules, optimizers, the preflight's sizes and refusals, and the configuration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments._errors import UsageError
from experiments.training import devices, optimizers, preflight, schedules
from experiments.training.config import TrainConfig


def test_schedules_against_their_formulas():
    """Ten updates of warmup in a hundred, in float64 NumPy."""
    i = np.arange(100)
    after = (i - 10) / 90
    decays = {
        "constant": np.ones(100),
        "cosine": 0.5 * (1 + np.cos(np.pi * after)),
        "polynomial": (1 - after) ** 2,
    }
    for name, decay in decays.items():
        schedule = schedules.make(name, 3.0, warmup_steps=10, total_steps=100)
        expected = 3.0 * np.where(i < 10, (i + 1) / 10, decay)
        np.testing.assert_allclose([float(schedule(s)) for s in i], expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("warmup", [0, 1])
def test_short_warmups(warmup):
    schedule = schedules.make("constant", 2.0, warmup_steps=warmup, total_steps=3)
    assert [float(schedule(i)) for i in range(3)] == [2.0, 2.0, 2.0]


PARAMS = {"Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "BatchNorm_0": {"scale": jnp.ones(2)}}


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_weight_decay_and_trust_ratios_leave_norms_and_biases_alone(name):
    """With no gradient only decay moves anything; with one, a norm's parameter takes the raw rate."""
    optimizer = optimizers.make(name, optax.constant_schedule(0.5), momentum=0.0, weight_decay=0.1)
    state = optimizer.init(PARAMS)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, PARAMS), state, PARAMS)
    assert (updates["Dense_0"]["kernel"] < 0).all()
    assert (updates["Dense_0"]["bias"] == 0).all() and (updates["BatchNorm_0"]["scale"] == 0).all()
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    np.testing.assert_allclose(updates["BatchNorm_0"]["scale"], -0.5)


def test_momentum_optimizers_against_numpy():
    for name, nesterov in (("sgd", False), ("nesterov", True)):
        optimizer = optimizers.make(name, optax.constant_schedule(0.1), momentum=0.9, weight_decay=0.01)
        params = {"kernel": jnp.asarray([1.0, -2.0])}
        state = optimizer.init(params)
        p, v = np.array([1.0, -2.0]), np.zeros(2)
        for g in ([0.5, 1.0], [-1.0, 0.25], [0.1, 0.2]):
            updates, state = optimizer.update({"kernel": jnp.asarray(g)}, state, params)
            params = optax.apply_updates(params, updates)
            d = np.array(g) + 0.01 * p
            v = 0.9 * v + d
            p = p - 0.1 * (d + 0.9 * v if nesterov else v)
        np.testing.assert_allclose(params["kernel"], p, rtol=1e-6)


@pytest.mark.parametrize(
    ("batch_size", "drop", "expected"),
    [
        (8192, True, (7, 140, 14, 2656, False)),
        (8192, False, (8, 160, 16, 0, True)),
        (60, False, (1000, 20000, 2000, 0, False)),
    ],
)
def test_plan(batch_size, drop, expected):
    assert preflight.plan(TrainConfig(batch_size=batch_size, drop_remainder=drop), 60_000) == expected


def test_the_peak_rate_follows_the_batch_size():
    rates = {
        s: TrainConfig(batch_size=1024, base_learning_rate=0.1, lr_scaling=s).peak_learning_rate
        for s in ("linear", "sqrt", "none")
    }
    assert rates == pytest.approx({"linear": 0.4, "sqrt": 0.2, "none": 0.1})
    assert TrainConfig(batch_size=1024, learning_rate=7.0).peak_learning_rate == 7.0


def test_running_statistics_average_over_as_many_examples_at_any_batch_size():
    """Two updates at 256 keep as much of the past as one at 512."""
    one, two = (TrainConfig(batch_size=b).running_momentum for b in (512, 256))
    assert two == 0.9 and one == pytest.approx(two * two)
    assert TrainConfig(batch_size=512, norm_momentum=0.7).running_momentum == 0.7


def test_the_preflight_says_what_a_run_will_be():
    config = TrainConfig(batch_size=8192, learning_rate=100.0)
    text = "\n".join(preflight.describe(config, preflight.plan(config, 60_000), 60_000, 2, "cpu"))
    assert "global 8192 = 2 cpu devices x 4096 per device x 1 accumulation" in text
    assert "2,656 examples (4.4%) left out" in text and "warning" in text and "peak 100 after 14 updates" in text


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (
            lambda: preflight.plan(TrainConfig(batch_size=70_000), 60_000),
            r"larger than the training set of 60000.*largest that works is 60000",
        ),
        (
            lambda: schedules.make("cosine", 1.0, warmup_steps=200, total_steps=5),
            r"warmup of 200 updates is not shorter.*--warmup_epochs",
        ),
        (
            lambda: devices.set_up(3, 100),
            r"--batch_size=100 is not divisible by 3 devices; .* 99 and 102.*--num_devices=1",
        ),
        (lambda: devices.set_up(9, 90), r"--num_devices=9, but this process has 8"),
        (
            lambda: schedules.make("cosin", 1.0, warmup_steps=0, total_steps=1),
            r"unknown schedule 'cosin'; there are: constant, cosine, polynomial\. Did you mean 'cosine'",
        ),
        (
            lambda: optimizers.make("adam", optax.constant_schedule(1.0), momentum=0.9, weight_decay=0.0),
            r"unknown optimizer 'adam'; there are: lars, nesterov, sgd",
        ),
        (lambda: TrainConfig(lr_scaling="linea"), r"unknown lr_scaling 'linea'.*Did you mean 'linear'"),
        (lambda: TrainConfig(batch_size=0), r"--batch_size must be at least 1, not 0"),
        (lambda: TrainConfig(steps=0), r"--steps must be at least 1, not 0"),
        (lambda: TrainConfig(momentum=1.0), r"--momentum must be at least 0 and less than 1"),
        (lambda: TrainConfig(learning_rate=float("nan")), r"--learning_rate must be finite"),
    ],
)
def test_bad_input_is_refused_with_the_way_out(refused, message):
    with pytest.raises(UsageError, match=message):
        refused()


def test_the_default_workdir_is_of_the_configuration_alone():
    changes = [{}, {"seed": 1}, {"epochs": 3}, {"base_learning_rate": 0.3}]
    paths = [TrainConfig(**c).default_workdir() for c in changes]
    assert len(set(paths)) == len(paths)
    assert TrainConfig(data_dir="elsewhere", num_devices=2).default_workdir() == paths[0]
    for a, b in itertools.pairwise(paths):
        assert a != b
