"""Published recipes, and flags beside them."""

import dataclasses

import pytest

from experiments import _flags, train
from experiments.training.config import plan as plans
from experiments.training.config import presets
from experiments.training.config.options import TrainConfig
from tests.programs import use_own_flags


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_is_a_configuration_that_a_flag_changes(name):
    config = presets.configure(name, {})
    assert presets.configure(name, {"seed": 5}) == dataclasses.replace(config, seed=5)
    plans.make(config, 1_281_167 if config.dataset == "imagenet2012" else 50_000, 8)


def test_a_base_rate_beside_a_preset_wins_over_its_rate():
    config = presets.configure("cifar10_lars", {"base_learning_rate": 0.5})
    assert config.peak_learning_rate == 0.5 * 32
    assert presets.configure("cifar10_lars", {"seed": 1}).peak_learning_rate == 10.0


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_says_what_to_run_and_what_to_expect(name):
    preset = presets.PRESETS[name]
    assert all((preset.result, preset.source, preset.time)) and presets.command(name)[-1] == f"--preset={name}"


def test_the_list_has_the_command_of_every_preset(monkeypatch, capsys):
    use_own_flags(train, monkeypatch)
    _flags.parse(["train", "--list_presets"])
    assert train.main() == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("python")] == [
        f"python -m experiments.train --preset={name}" for name in sorted(presets.PRESETS)
    ]


def test_the_speed_run_has_the_rate_of_its_source_and_grows_it_by_the_square_root():
    small, large = (presets.configure(name, {}) for name in ("page2018", "page2018_8192"))
    assert small.peak_learning_rate == pytest.approx(0.4)
    assert large.peak_learning_rate == pytest.approx(0.4 * (8192 / 512) ** 0.5)
    same = {"batch_size": 512, "learning_rate": small.learning_rate}
    assert dataclasses.replace(large, **same) == small


def test_flags_that_change_nothing_are_named():
    config = TrainConfig(learning_rate=0.1, base_learning_rate=0.2, step_factor=3.0, steps=5)
    unused = presets.unused(config, ["learning_rate", "base_learning_rate", "step_factor", "steps", "seed"])
    assert unused == [
        "--step_factor applies to --schedule=step",
        "--base_learning_rate applies to a run without --learning_rate",
    ]
    assert presets.unused(TrainConfig(schedule="step", step_factor=3.0), ["schedule", "step_factor"]) == []


def test_every_lars_preset_has_a_nesterov_twin():
    """Data, model, batch and epochs are equal, so that only the optimizer and its constants differ."""
    twins = {"you2017_lars": "you2017_nesterov", "mlperf_lars": "mlperf_nesterov", "cifar10_lars": "cifar10_nesterov"}
    lars = {name for name in presets.PRESETS if presets.configure(name, {}).optimizer == "lars"}
    assert lars == set(twins)
    for name, twin in twins.items():
        one = presets.configure(name, {})
        other = presets.configure(twin, {"batch_size": one.batch_size})
        assert other.optimizer == "nesterov"
        for field in ("dataset", "model", "epochs", "label_smoothing", "augmentation", "span", "warmup_epochs"):
            assert getattr(one, field) == getattr(other, field), (name, field)
