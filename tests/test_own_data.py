"""One's own data and model: as the page has them, with labels of any integer type; and what the flags help with."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import _help, data, evaluate, train
from experiments._errors import UsageError
from experiments.data import users
from experiments.training import session
from experiments.training.config import plan, preflight, presets
from experiments.training.config.options import TrainConfig
from experiments.training.evaluation.checkpoint import evaluate_checkpoint
from tests import rig
from tests.programs import run

PAGE = (Path(__file__).parent.parent / "docs" / "guide" / "your_own.md").read_text()


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    """Its file and its first two commands, as they stand there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (file,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "mine.py").write_text(file)
    commands = [
        shlex.split(line) for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
    ]
    assert [command[2] for command in commands] == [f"experiments.{n}" for n in ("train", "evaluate", "recommend")]
    with monkeypatch.context() as patched:
        assert run(train, [*commands[0][3:], "--num_devices=2"], patched) == 0
    with monkeypatch.context() as patched:
        assert run(evaluate, [*commands[1][3:], "--num_devices=2"], patched) == 0
    said = capsys.readouterr().out
    assert float(re.findall(r"^test +100 +([\d.]+)%", said, re.MULTILINE)[-1]) > 90
    assert (tmp_path / "runs/mine/report.html").exists()
    (events,) = (tmp_path / "runs/mine/tensorboard").iterdir()
    # Curves alone, which TensorBoard shows as cards.
    assert b"test/accuracy" in events.read_bytes() and not re.search(rb"/(epoch|examples)", events.read_bytes())


def test_the_users_own_model_and_data_set_train(tmp_path, monkeypatch):
    """The page's file, by the functions that the programs call."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (file,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "mine.py").write_text(file)
    config = TrainConfig(
        dataset="mine:data", model="mine:model", batch_size=50, epochs=10, warmup_epochs=1, workdir="run", num_devices=2
    )
    assert session.train(config).results["test"].accuracy > 0.9
    _, (row,) = evaluate_checkpoint("run", dataset="mine:data", model="mine:model", num_devices=2)
    assert row.split == "test" and row.before.accuracy > 0.9


@pytest.mark.parametrize("dtype", ["int64", "int16", "uint8", "uint64", "int32"])
def test_labels_of_any_integer_type_are_taken(dtype, monkeypatch):
    made = rig.tiny()
    wide = made._replace(train=made.train._replace(labels=made.train.labels.astype(dtype)))
    monkeypatch.setattr(users._users, "function", lambda flag, name: lambda: wide)
    assert users.dataset("mine:data").train.labels.dtype == np.int32
    np.testing.assert_array_equal(users.dataset("mine:data").train.labels, made.train.labels)


@pytest.mark.parametrize("bad", [np.float32, 2**40])
def test_labels_that_are_no_classes_are_refused(bad, monkeypatch):
    made = rig.tiny()
    labels = made.train.labels.astype(bad) if isinstance(bad, type) else made.train.labels.astype(np.int64) + bad
    monkeypatch.setattr(users._users, "function", lambda flag, name: lambda: made._replace(
        train=made.train._replace(labels=labels)))  # fmt: skip
    with pytest.raises(UsageError, match="train: the labels must be"):
        users.dataset("mine:data")


def test_a_file_without_its_function_is_answered_with_the_spelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(UsageError, match="--dataset=mine:FUNCTION"):
        data.load("mine")


@pytest.mark.parametrize("length", [{"epochs": 1}, {"epochs": 2}, {"steps": 1}, {"steps": 20}])
def test_a_warmup_as_long_as_the_run_is_shortened_with_a_note(length):
    config = TrainConfig(batch_size=50, **length)
    made = plan.make(config, 500, 1)
    assert made.warmup_steps == made.total_steps // 10
    (note,) = [line for line in preflight.describe(config, made, 1, "cpu") if line.startswith("note")]
    assert f"shortened to {made.warmup_steps} of its {made.total_steps}" in note


def test_a_warmup_that_fits_is_left_alone():
    config = TrainConfig(batch_size=50, epochs=3)
    made = plan.make(config, 500, 1)
    assert made.warmup_steps == 20
    assert not [line for line in preflight.describe(config, made, 1, "cpu") if line.startswith("note")]


def test_presets_are_listed_with_result_and_source(monkeypatch, capsys):
    run(train, ["--list_presets"], monkeypatch)
    said = " ".join(capsys.readouterr().out.split())
    for name, preset in presets.PRESETS.items():
        assert f"{name} - result: {preset.result} - source: {preset.source}" in said


@pytest.mark.parametrize("given", [["--version"], ["-version", "--batch_size=1"]])
def test_the_version_is_said_whatever_else_is_given(given):
    assert re.fullmatch(r"batchnorm_jax \S+; jax \S+, flax \S+, optax \S+, numpy \S+", _help.asked(given, "") or "")


def test_every_option_of_a_run_is_in_a_group():
    listed = [name for names in _help.GROUPS.values() for name in names]
    assert len(set(listed)) == len(listed)
    assert set(TrainConfig.__dataclass_fields__) <= set(listed)


def test_evaluate_says_what_is_missing(monkeypatch, capsys):
    assert run(evaluate, [], monkeypatch) == 2
    assert "experiments.evaluate runs/NAME" in capsys.readouterr().err
