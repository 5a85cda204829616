"""The program that branches any training program: what it trains, keeps, says and refuses."""

import json
import math
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _files, branch
from experiments._errors import UsageError
from experiments.problems import Problem, loading, mlp
from experiments.records.branching import Branching, BranchPoint
from experiments.studies import branching
from tests import programs

PROBLEM = """
import numpy as np

updates = []


class Quadratic:
    examples = 64

    def init(self, seed):
        return np.full(3, 2.0)

    def update(self, state, batch, learning_rate):
        updates.append(len(batch))
        return state - learning_rate * (state - batch.mean(axis=0)), None

    def batch(self, seed, step, size):
        return np.random.default_rng((seed, step, size)).normal(size=(size, 3))

    def evaluate(self, state):
        return (state**2).sum() / 2


def problem():
    return Quadratic()


def broken():
    raise KeyError("no data")


def nothing():
    return 5
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of a user in the working directory; returns the batch sizes of the updates made so far."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(PROBLEM)
    return lambda: __import__("mine").updates


def study(*flags, monkeypatch):
    return programs.run(
        branch,
        [
            "--problem=mine:problem",
            "--batch_size=4",
            "--learning_rate=0.1",
            "--multiples=2,4",
            "--workdir=there",
            *flags,
        ],
        monkeypatch,
    )


def test_a_users_program_is_branched_and_the_same_command_trains_nothing_again(mine, monkeypatch, capsys):
    flags = ("--branch_points=16,32", "--branch_examples=64", "--seeds=0,1")
    assert study(*flags, monkeypatch=monkeypatch) in (None, 0)
    said = capsys.readouterr().out
    made = list(mine())
    # Eight updates of the run, and at each point and seed one branch as it is and two for each other batch size.
    assert len(made) == 8 + 2 * 2 * (16 + 2 * 8 + 2 * 4)
    assert "after 16 examples, loss" in said and "critical batch size" in said and "results   there" in said
    result = _files.read_json(_path("branching.json"), Branching)
    assert [point.point for point in result.points] == [16, 32] and result.problem == "mine:problem"
    assert result.command.startswith("python -m experiments.branch --problem=mine:problem")
    rows = [json.loads(line) for line in _path("branches.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["key"] for row in rows}) == 2 * 2 * 5
    study(*flags, monkeypatch=monkeypatch)
    # The run itself is trained again, up to the last point.
    assert mine()[len(made) :] == [4] * 8
    assert _files.read_json(_path("branching.json"), Branching).points == result.points
    study(*flags[:2], "--seeds=0,1,2", monkeypatch=monkeypatch)
    assert len(mine()) == len(made) + 8 + 8 + 2 * (16 + 2 * 8 + 2 * 4)


def test_another_program_in_the_same_folder_is_trained_anew(mine, monkeypatch):
    Path("mine.py").write_text(PROBLEM + "\n\ndef other():\n    return Quadratic()\n")
    flags = ("--branch_points=16", "--branch_examples=64", "--seeds=0")
    study(*flags, monkeypatch=monkeypatch)
    before = len(mine())
    study(*flags, "--problem=mine:other", monkeypatch=monkeypatch)
    assert len(mine()) - before == 4 + 16 + 2 * 8 + 2 * 4


def test_a_run_that_diverged_is_not_branched(mine, monkeypatch, capsys):
    with np.errstate(all="ignore"):
        assert study("--learning_rate=1e9", "--branch_points=4000", monkeypatch=monkeypatch) == 2
    assert "after 4,000 examples; give a lower --learning_rate" in capsys.readouterr().err


def _path(name):
    return Path("there") / name


def test_what_was_trained_before_it_was_stopped_is_kept(mine, monkeypatch):
    kept = []
    keep = branching.Study._keep

    def stop(self, *arguments):
        keep(self, *arguments)
        kept.append(arguments)
        if len(kept) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(branching.Study, "_keep", stop)
    flags = ("--branch_points=16", "--branch_examples=64", "--seeds=0,1,2")
    assert study(*flags, monkeypatch=monkeypatch) == 130
    assert len(_path("branches.jsonl").read_text().splitlines()) == 7
    monkeypatch.setattr(branching.Study, "_keep", keep)
    before = len(mine())
    study(*flags, monkeypatch=monkeypatch)
    # The first seed was whole; the second is trained anew.
    assert len(mine()) - before == 4 + 2 * (16 + 2 * 8 + 2 * 4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--problem=mine"], "--problem must have the form package.module:function, not mine"),
        (["--problem=mine:other"], "--problem=mine:other: the module mine has no function other"),
        (["--problem=mine:broken"], "--problem=mine:broken: the function raised KeyError: 'no data'"),
        (["--problem=mine:nothing"], "a int came, without examples, init, update, batch, evaluate"),
        (["--branch_points=32,16"], "--branch_points must rise, as in 2000,8000, not 32,16"),
        (["--branch_examples=8"], "--branch_examples=8 is less than the largest batch, 16 examples"),
        (["--multiples=1"], "--multiples must be at least 2"),
    ],
)
def test_what_cannot_be_branched_is_refused_in_one_sentence(flags, message, mine, monkeypatch, capsys):
    assert study(*flags, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error and not _path("branches.jsonl").exists()


def test_a_folder_of_branches_has_no_page(mine, monkeypatch, capsys):
    from experiments import report

    study("--branch_points=16", "--branch_examples=64", "--seeds=0", monkeypatch=monkeypatch)
    assert programs.run(report, ["there"], monkeypatch) == 2
    assert "holds branches of experiments.branch, of which there is no page" in capsys.readouterr().err


def test_the_noise_scale_stands_beside_the_branches(tmp_path):
    made = mlp.problem(width=8)
    request = branching.Request(
        problem="x:y", branch_points=(64,), branch_examples=256, multiples=(2,), seeds=(0,), workdir=str(tmp_path)
    )
    (point,) = branching.Study(request, made).run("").points
    assert point.noise_scale is None or point.noise_scale > 0
    assert "gradient noise scale" in branching.line(
        BranchPoint(point=1, loss=1.0, noise_scale=50.0, within_tolerance=8)
    )


def test_an_answer_is_a_line():
    point = BranchPoint(point=2000, loss=0.5, critical_batch_size=100.0, interval=(50.0, None), within_tolerance=32)
    assert branching.line(point) == (
        "after 2,000 examples, loss 0.5000: critical batch size 100 (50 to no bound); "
        "all up to 32 end within the tolerance"
    )
    none = BranchPoint(point=2000, loss=0.5, why_not="the loss of the original must fall")
    assert branching.line(none).endswith("no answer: the loss of the original must fall")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"goal": "speed"}, "the goal of a problem is 'loss' or 'accuracy', not 'speed'"),
        ({"rule": "cubic"}, "the rule of a problem is 'linear' or 'sqrt', not 'cubic'"),
        ({"examples": 0}, "the examples of a problem must be positive, not 0"),
        ({"learning_rate": math.nan}, "the learning_rate of a problem must be positive, not nan"),
    ],
)
def test_a_problem_out_of_range_is_refused(changes, message):
    functions = dict.fromkeys(loading.FUNCTIONS, lambda *_: jnp.zeros(()))
    with pytest.raises(UsageError, match=message):
        Problem(**{"examples": 8, **functions, **changes})


def test_anything_with_the_attributes_is_a_problem(monkeypatch):
    functions = dict.fromkeys(loading.FUNCTIONS, lambda *_: np.float32(0.25))
    module = types.SimpleNamespace(problem=lambda: types.SimpleNamespace(examples=8, goal="accuracy", **functions))
    monkeypatch.setattr(loading._users, "function", lambda flag, name: module.problem)
    found = loading.load("problem", "mine:problem")
    assert found.examples == 8 and found.rule == "sqrt" and found.loss(None) == 0.75
