"""Schedules, optimizers, the preflight's sizes and refusals, and the configuration."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments._errors import UsageError
from experiments.training import of_images
from experiments.training.config import plan as plans
from experiments.training.config import preflight, presets
from experiments.training.config.options import TrainConfig
from experiments.training.machine import devices
from experiments.training.recipe import optimizers, schedules
from experiments.training.step import trial


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


@pytest.mark.parametrize("name", [o.name for o in optimizers.OPTIMIZERS if not o.full_batch])
def test_weight_decay_and_trust_ratios_leave_norms_and_biases_alone(name):
    """With no gradient only decay moves anything; with one, a norm's parameter takes the raw rate."""
    momentum = 0.5 if optimizers.OPTIMIZERS[name].averages else 0.0
    optimizer = optimizers.make(name, optax.constant_schedule(0.5), momentum=momentum, weight_decay=0.1)
    state = optimizer.init(PARAMS)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, PARAMS), state, PARAMS)
    assert (updates["Dense_0"]["kernel"] < 0).all()
    assert (updates["Dense_0"]["bias"] == 0).all() and (updates["BatchNorm_0"]["scale"] == 0).all()
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    # Adam's correction by 1 - 0.999 leaves five digits in float32.
    np.testing.assert_allclose(updates["BatchNorm_0"]["scale"], -0.5, rtol=1e-5)


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
    ("batch_size", "drop", "per_epoch", "total", "warmup", "dropped"),
    [(8192, True, 7, 140, 14, 2656), (8192, False, 8, 160, 16, 0), (60, False, 1000, 20000, 2000, 0)],
)
def test_plan(batch_size, drop, per_epoch, total, warmup, dropped):
    plan = plans.make(TrainConfig(batch_size=batch_size, drop_remainder=drop), 60_000, 2)
    assert plan.phases == (plans.Phase(0, 0, batch_size, per_epoch),)
    assert (plan.total_steps, plan.warmup_steps, plan.dropped) == (total, warmup, dropped)
    assert plan.locate(per_epoch) == plans.Position(plan.phases[0], 1, per_epoch, 2 * per_epoch)


def test_a_step_schedule_divides_where_it_is_told():
    config = TrainConfig(batch_size=600, epochs=9, schedule="step", step_epochs="3,6", step_factor=5, warmup_epochs=1)
    plan = plans.make(config, 60_000, 2)
    assert plan.boundaries == {300: 1 / 5, 600: 1 / 5}
    schedule = schedules.make(
        "step", 1.0, warmup_steps=plan.warmup_steps, total_steps=plan.total_steps, boundaries=plan.boundaries
    )
    rates = [float(schedule(step)) for step in (99, 299, 300, 599, 600, 899)]
    np.testing.assert_allclose(rates, [1, 1, 0.2, 0.2, 0.04, 0.04], rtol=1e-6)
    defaults = plans.make(TrainConfig(batch_size=600, epochs=90, schedule="step"), 60_000, 2)
    assert list(defaults.boundaries) == [3000, 6000, 8000]


def test_a_batch_ramp_multiplies_until_its_limit_and_then_divides():
    """Smith et al.: 128, 640, 3200, 5120; the last factor of 5 is 1.6 of batch and 3.125 of rate."""
    config = TrainConfig(
        batch_size=128,
        batch_ramp=5120,
        epochs=200,
        schedule="step",
        step_epochs="60,120,160",
        step_factor=5,
        warmup_epochs=0,
    )
    plan = plans.make(config, 50_000, 2)
    assert [p.batch_size for p in plan.phases] == [128, 640, 3200, 5120]
    assert [p.first_epoch for p in plan.phases] == [0, 60, 120, 160]
    assert [p.first_step for p in plan.phases] == [0, 23_400, 28_080, 28_680]
    assert plan.boundaries == {28_680: pytest.approx(1 / 3.125)}
    assert plan.total_steps == 28_680 + 40 * 9 and plan.epochs == 200
    assert plan.locate(28_079).epoch == 119 and plan.locate(28_080).phase.batch_size == 3200
    # Every step lies in one epoch, and the epochs follow each other.
    starts = [plan.locate(s).first_step for s in range(28_000, 28_800)]
    assert starts == sorted(starts) and all(
        plan.locate(s).first_step <= s < plan.locate(s).last_step for s in range(28_000, 28_800)
    )


RAMP = {"batch_size": 8, "batch_ramp": 128, "schedule": "step", "step_factor": 4.0, "epochs": 6, "warmup_epochs": 0}


def test_milestones_beyond_the_end_change_nothing():
    """The ramp is over after 50 epochs, though its milestones go on to 80, to a batch that would not fit."""
    config = TrainConfig(**RAMP | {"batch_size": 64, "batch_ramp": 10_000, "step_epochs": "30,60,80", "epochs": 50})
    plan = plans.make(config, 6400, 2)
    assert plan.total_steps == 30 * 100 + 20 * 25 and plan.epochs == 50
    assert [p.batch_size for p in plan.phases] == [64, 256]
    short = plans.make(TrainConfig(**RAMP | {"epochs": 2}), 512, 1)
    assert short.epochs == 2 and [p.batch_size for p in short.phases] == [8, 32]
    fixed = plans.make(TrainConfig(batch_size=64, schedule="step", step_epochs="30,60", epochs=50), 6400, 2)
    assert list(fixed.boundaries) == [3000]


def test_two_milestones_in_one_update_divide_twice():
    config = TrainConfig(batch_size=64, schedule="step", step_epochs="2.1,2.4", epochs=5, warmup_epochs=0)
    assert plans.make(config, 64, 1).boundaries == {2: pytest.approx(0.01)}


def test_the_cyclic_schedule_starts_at_the_peak_and_returns_to_it():
    schedule = schedules.make("cyclic", 6.0, warmup_steps=10, total_steps=100, cycle_steps=20)
    np.testing.assert_allclose([float(schedule(10 + i)) for i in (0, 5, 10, 15, 20)], [6, 3.5, 1, 3.5, 6], rtol=1e-6)


def test_the_peak_rate_follows_the_batch_size():
    rates = {
        s: TrainConfig(batch_size=1024, base_learning_rate=0.1, lr_scaling=s).peak_learning_rate
        for s in ("linear", "sqrt", "none")
    }
    assert rates == pytest.approx({"linear": 0.4, "sqrt": 0.2, "none": 0.1})
    assert TrainConfig(batch_size=1024, learning_rate=7.0).peak_learning_rate == 7.0


def test_running_statistics_average_over_as_many_examples_at_any_batch_size():
    """Two updates at 256 keep as much of the past as one at 512."""
    one, two = (TrainConfig(batch_size=b).running_momentum() for b in (512, 256))
    assert two == 0.9 and one == pytest.approx(two * two)
    assert TrainConfig(batch_size=512, norm_momentum=0.7).running_momentum() == 0.7
    assert TrainConfig(batch_size=64).running_momentum(512) == one


def test_the_preflight_says_what_a_run_will_be():
    config = TrainConfig(batch_size=8192, learning_rate=100.0)
    text = "\n".join(preflight.describe(config, plans.make(config, 60_000, 2), 2, "cpu"))
    assert "global 8192 = 2 cpu devices x 4096 per device x 1 accumulation" in text
    assert "2,656 examples (4.4%) left out" in text and "warning" in text and "peak 100 after 14 updates" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 64}, None),
        (
            {"batch_size": 500, "accumulation_steps": 500, "optimizer": "lbfgs"},
            "last averages over 9 positions, .* of 1 ",
        ),
        ({"batch_size": 64, "span": 1}, "last averages over 9 positions, those of 1 example:"),
        ({"batch_size": 4, "norm": "local", "accumulation_steps": 2}, "9 positions"),
        ({"batch_size": 499, "drop_remainder": False}, "9 positions in the last batch of an epoch"),
        ({"batch_size": 64, "norm": "group"}, None),
    ],
)
def test_the_preflight_warns_of_statistics_over_few_positions(options, said):
    """By their number, whatever leads to it."""
    config = TrainConfig(**options)
    devices = 2 if options.get("norm") == "local" else 1
    tried = trial.Trial({"first": 144, "last": 9}, ())
    lines = preflight.describe(config, plans.make(config, 500, devices), devices, "cpu", 1, tried)
    warnings = [line for line in lines if "averages over" in line]
    assert len(warnings) == (said is not None) and (said is None or re.search(said, warnings[0]))


def test_the_preflight_says_what_norms_of_the_models_own_do():
    config = TrainConfig(batch_size=64)
    plan = plans.make(config, 6_000, 1)
    text = "\n".join(preflight.describe(config, plan, 1, "cpu", 1, trial.Trial({"a": 9, "b": 9}, ("a", "b"))))
    assert "norm      2 that the model makes itself run so as well" in text
    text = "\n".join(preflight.describe(config, plan, 1, "cpu", 1, trial.Trial({}, ())))
    assert "warning   the model has no batch normalization, so that --norm=batch changes nothing" in text


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (
            lambda: plans.make(TrainConfig(batch_size=70_000), 60_000, 1),
            r"larger than the training set of 60000.*largest that works is 60000",
        ),
        (
            lambda: schedules.make("cosine", 1.0, warmup_steps=200, total_steps=5),
            r"warmup of 200 updates is not shorter.*--warmup_epochs",
        ),
        (
            lambda: of_images.set_up_devices(TrainConfig(num_devices=3, batch_size=100)),
            r"--batch_size=100 is not divisible by 3 devices; .* 99 and 102.*--num_devices=1",
        ),
        (lambda: devices.set_up(9, 90), r"--num_devices=9, but this process has 8"),
        (
            lambda: schedules.make("cosin", 1.0, warmup_steps=0, total_steps=1),
            r"unknown schedule 'cosin'; there are: constant, cosine, cyclic, polynomial, step\. Did you mean 'cosine'",
        ),
        (
            lambda: optimizers.make("adam", optax.constant_schedule(1.0), momentum=0.9, weight_decay=0.0),
            r"unknown optimizer 'adam'; there are: adamw, lamb, lars, .*nesterov",
        ),
        (lambda: TrainConfig(lr_scaling="linea"), r"unknown lr_scaling 'linea'.*Did you mean 'linear'"),
        (lambda: TrainConfig(batch_size=0), r"--batch_size must be at least 1, not 0"),
        (lambda: TrainConfig(steps=0), r"--steps must be at least 1, not 0"),
        (lambda: TrainConfig(momentum=1.0), r"--momentum must be at least 0 and less than 1"),
        (lambda: TrainConfig(learning_rate=float("nan")), r"--learning_rate must be finite"),
        (lambda: TrainConfig(optimizer="lasr"), r"unknown optimizer 'lasr'.*Did you mean 'lars'"),
        (lambda: TrainConfig(dtype="float16"), r"unknown dtype 'float16'; there are: bfloat16, float32"),
        (
            lambda: TrainConfig(step_epochs="60,30"),
            r"--step_epochs must be positive, .* and rise, not 60,30",
        ),
        (lambda: TrainConfig(step_epochs="a"), r"--step_epochs must be numbers"),
        (lambda: TrainConfig(batch_size=6, backwards_per_forward=4), r"--backwards_per_forward=4 does not divide"),
        (
            lambda: TrainConfig(backwards_per_forward=2, accumulation_steps=2),
            r"--backwards_per_forward=2 splits one forward pass; it takes --accumulation_steps=1",
        ),
        (lambda: TrainConfig(batch_ramp=512), r"--batch_ramp=512 multiplies .* --schedule=step.*not cosine"),
        (lambda: TrainConfig(batch_ramp=32, schedule="step"), r"--batch_ramp=32 is below --batch_size=64"),
        (lambda: TrainConfig(span=8, norm="local"), r"--span groups the examples of --norm=batch, not of --norm=local"),
        (
            lambda: TrainConfig(optimizer="lbfgs", augmentation="crop"),
            r"--optimizer=lbfgs .* --augmentation=none, not crop",
        ),
        (lambda: TrainConfig(coordinator_address="a:1"), r"comes with --num_processes and --process_id"),
        (lambda: TrainConfig(num_processes=2), r"come with --coordinator_address=HOST:PORT"),
        (lambda: TrainConfig(target_accuracy=98.0), r"--target_accuracy is a share of 1, such as 0.98, not 98"),
        (
            lambda: plans.make(TrainConfig(batch_size=128, span=48), 60_000, 8),
            r"--span=48 does not divide the 128 examples \(8 devices x 16\).* 1, 2, 4, 8, 16, 32, 64, 128$",
        ),
        (
            lambda: plans.make(TrainConfig(batch_size=128, span=128, accumulation_steps=2), 60_000, 8),
            r"--span=128 does not divide the 64 examples \(8 devices x 8\)",
        ),
        (
            lambda: plans.make(TrainConfig(batch_size=128, span=8, drop_remainder=False), 60_000, 8),
            r"--span=8 takes --drop_remainder",
        ),
        (
            lambda: plans.make(TrainConfig(batch_size=100, accumulation_steps=3), 60_000, 2),
            r"--batch_size=100 is not divisible by 2 devices x 3 --accumulation_steps; .* 96 and 102",
        ),
        (
            lambda: plans.make(TrainConfig(batch_size=100, optimizer="lbfgs"), 60_000, 2),
            r"--optimizer=lbfgs takes the whole training set at once: --batch_size=60000, not 100",
        ),
        (
            lambda: plans.make(TrainConfig(batch_size=100, backwards_per_forward=5, steps=12), 60_000, 2),
            r"--steps=12 .* not a multiple of --backwards_per_forward=5; .* 10 and 15",
        ),
        (
            lambda: plans.make(TrainConfig(schedule="step", step_epochs="1", warmup_epochs=2), 60_000, 2),
            r"--schedule=step makes its first change after 937 updates, inside the warmup of 1874",
        ),
        (
            lambda: plans.make(TrainConfig(**RAMP | {"step_epochs": "1,2", "warmup_epochs": 2}), 512, 1),
            r"first change after 64 updates, inside the warmup of 128",
        ),
        (
            lambda: of_images.set_up_devices(TrainConfig(num_devices=4, batch_size=100, accumulation_steps=2)),
            r"--batch_size=100 .* 4 devices x 2 --accumulation_steps; .* 96 and 104\. Or give --num_devices=2\.$",
        ),
        (
            lambda: plans.make(TrainConfig(**RAMP | {"batch_ramp": 30, "step_epochs": "1,2"}), 512, 4),
            r"--batch_ramp: a batch of 30 is not divisible by 4 devices; .* 28 and 32\. Or give --num_devices=2\.$",
        ),
        (
            lambda: plans.check_divisible(TrainConfig(batch_size=12), 12, 8, 4),
            r"--batch_size=12 is not divisible by 8 devices \(4 processes x 2\); .* 8 and 16\. Or .*=1\.$",
        ),
        (lambda: plans.make(TrainConfig(batch_size=64), 63, 2), r"the largest that works is 62"),
        (lambda: presets.configure("goyal", {}), r"unknown preset 'goyal'.*Did you mean 'goyal2017'"),
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
