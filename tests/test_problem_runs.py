"""A problem through the programs: it is trained, resumed, studied and recommended for as a model on images is."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import batch_size_study, reporting
from experiments._errors import UsageError
from experiments.records.recommendation import Recommendation
from experiments.records.runs import OF_DATA_AND_MODEL, StoredRun
from experiments.studies import jobs
from experiments.training import loop, of_problem, session
from experiments.training.config.options import LATER, TrainConfig
from experiments.training.evaluation.checkpoint import restore
from experiments.training.progress import NonFiniteLossError
from experiments.training.storage import metrics
from experiments.training.storage.metrics import HELD_OUT
from tests import programs

ROOT = Path(__file__).parent.parent
QUADRATIC = {"problem": "tests.own_problems:quadratic", "batch_size": 8, "steps": 40, "schedule": "constant"}
PLAIN = {"problem": "tests.own_problems:plain", "batch_size": 4, "schedule": "constant", "warmup_epochs": 0}


def train(folder, **options):
    return session.train(TrainConfig(**QUADRATIC | options, workdir=str(folder)))


def rows(folder):
    return metrics.read(folder / metrics.FILE)


def test_a_problem_is_trained_as_it_would_be_by_hand(tmp_path):
    from tests.own_problems import quadratic

    summary = train(tmp_path / "run", warmup_epochs=0, evaluate_every=10)
    problem = quadratic()
    state = problem.init(0)
    for step in range(40):
        state, _ = problem.update(state, problem.batch(0, step, 8), 0.05)
    assert summary.results[HELD_OUT].loss == pytest.approx(float(problem.evaluate(state)), rel=1e-6)
    assert summary.result.accuracy is None and summary.updates == 40 and summary.epochs == 40 / 32
    assert [row.step for row in rows(tmp_path / "run") if row.kind == HELD_OUT] == [10, 20, 30, 32, 40]
    with pytest.raises(LookupError, match="goal of this problem is a loss"):
        _ = summary.result.known_accuracy


def test_a_measurement_of_the_noise_compiles_nothing(tmp_path, monkeypatch, caplog):
    """A study takes the time of the first for that of all."""
    measure, measured = of_problem._Run.noise, []

    def logged(self, state):
        measured.append(int(state.step))
        with jax.log_compiles():
            return measure(self, state)

    monkeypatch.setattr(of_problem._Run, "noise", logged)
    jax.clear_caches()
    train(tmp_path, noise_every=20)
    assert measured == [20, 40]
    assert not [record.getMessage() for record in caplog.records if "ompil" in record.getMessage()]


@pytest.mark.parametrize("killed_after", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"target_loss": 1.0, "past_target": 0.6, "evaluate_growth": 0.1}])
def test_a_run_that_is_stopped_goes_on_bit_for_bit(tmp_path, monkeypatch, options, killed_after):
    """With a key, half precision and a count in its state; also in the part past its target."""
    options = {"evaluate_every": 4, "checkpoint_every": 3, "noise_every": 5, **options}
    whole = train(tmp_path / "whole", **options)
    evaluate, calls = loop.Fit._evaluate_and_log, []

    def dies(self, state, step):
        calls.append(step)
        if len(calls) == killed_after:
            raise KeyboardInterrupt
        return evaluate(self, state, step)

    monkeypatch.setattr(loop.Fit, "_evaluate_and_log", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", **options)
    monkeypatch.setattr(loop.Fit, "_evaluate_and_log", evaluate)
    again = train(tmp_path / "stopped", **options)
    assert (again.results, again.updates, again.target) == (whole.results, whole.updates, whole.target)
    assert again.starts == 2 and rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    if options.get("past_target"):
        reached = again.reached_after
        assert again.updates >= 1.6 * reached and again.updates < 40


@pytest.mark.parametrize("name", ["with_function", "of_python_numbers"])
def test_whatever_a_state_holds_it_is_resumed_in_another_process(tmp_path, name):
    """A function beside the arrays, whose address is another one there, and numbers of Python's."""
    options = {"problem": f"tests.own_problems:{name}", "evaluate_every": 8, "warmup_epochs": 0, "steps": 16}
    train(tmp_path / "whole", **options | {"steps": 32})
    command = [f"--{option}={value}" for option, value in {**QUADRATIC, **options}.items()]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *command, f"--workdir={tmp_path / 'two'}"],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    longer = train(tmp_path / "two", **options | {"steps": 32})
    assert longer.starts == 2
    there, here = ([row for row in rows(tmp_path / run) if row.step != 16] for run in ("whole", "two"))
    assert there == here


@pytest.mark.parametrize("at", range(15, 21))
def test_a_run_that_is_stopped_past_its_target_ends_where_it_would_have(tmp_path, monkeypatch, at):
    """At an update after which it is far enough past the target, but where it is not evaluated, too."""
    options = {**PLAIN, "steps": 60, "target_accuracy": 0.085, "past_target": 1.0, "evaluate_every": 7}
    whole = session.train(TrainConfig(**options, workdir=str(tmp_path / "whole")))
    assert whole.updates > at >= whole.reached_after
    program = loop.Fit._program

    def stops(self, state, sources):
        if sources[0].step == at:
            self._save(state, at)
            raise KeyboardInterrupt
        return program(self, state, sources)

    monkeypatch.setattr(loop.Fit, "_program", stops)
    with pytest.raises(KeyboardInterrupt):
        session.train(TrainConfig(**options, workdir=str(tmp_path / "stopped")))
    monkeypatch.setattr(loop.Fit, "_program", program)
    again = session.train(TrainConfig(**options, workdir=str(tmp_path / "stopped")))
    assert (again.updates, again.results, again.target) == (whole.updates, whole.results, whole.target)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("swapped", r"the state of init has a part \['a'\], and that of update has not"),
        ("widened", r"the part \['b'\] of the state is bfloat16 of shape \(8,\) before it and float32"),
        ("grown", r"the part \['b'\] of the state is bfloat16 of shape \(8,\) before it and float32 of shape \(9,\)"),
        ("of_many_losses", r"its update raised ValueError: the loss must be one number, not float32 of shape \(8,\)"),
        ("in_percent", "its evaluate raised ValueError: it returned 93.5, and an accuracy is a share of 1"),
    ],
)
def test_what_a_function_returns_is_checked(tmp_path, name, said):
    with pytest.raises(UsageError, match=said):
        session.train(TrainConfig(problem=f"tests.own_problems:{name}", batch_size=8, steps=9, workdir=str(tmp_path)))


def test_a_rate_that_has_no_effect_is_said_and_no_batch_size_is_recommended(tmp_path, capsys):
    train(tmp_path / "run", problem="tests.own_problems:deaf")
    assert "warning   two learning rates lead to the same state" in capsys.readouterr().out
    with pytest.raises(UsageError, match="makes the same of two learning rates"):
        of_problem.describe(tmp_path, {"problem": "tests.own_problems:deaf"})
    train(tmp_path / "other")
    assert "warning" not in capsys.readouterr().out


def test_a_target_that_is_met_before_any_update_is_refused(tmp_path):
    numbers = of_problem.ProblemNumbers(**of_problem.describe(tmp_path, {"problem": "tests.own_problems:quadratic"}))
    assert numbers.initial == 4.5 and numbers.has_gradient
    of_problem.refuse_met(numbers, 4.4)
    with pytest.raises(UsageError, match=r"--target_loss=5 is met before any update, at 4\.5; give a lower one"):
        of_problem.refuse_met(numbers, 5.0)


def test_a_longer_run_goes_on_and_a_changed_problem_does_not(tmp_path, monkeypatch):
    from tests import own_problems

    train(tmp_path, warmup_epochs=0)
    longer = train(tmp_path, warmup_epochs=0, steps=50)
    assert longer.updates == 50 and longer.starts == 2
    monkeypatch.setattr(own_problems, "SIZE", 9)
    with pytest.raises(UsageError, match=r"holds a run of a problem with another state\."):
        train(tmp_path, warmup_epochs=0, steps=60)


def test_a_lucky_evaluation_is_no_target_that_is_reached(tmp_path):
    """The accuracy is at 0.3 after 10 updates by luck, and for good after 30."""
    first = session.train(TrainConfig(**PLAIN, steps=60, target_accuracy=0.3, evaluate_every=2, workdir=str(tmp_path)))
    assert (first.reached_after, first.updates) == (10, 10)
    options = {**PLAIN, "steps": 60, "target_accuracy": 0.3, "past_target": 0.5, "evaluate_every": 2}
    whole = session.train(TrainConfig(**options, workdir=str(tmp_path / "past")))
    assert 22 <= whole.reached_after <= 32
    assert 1.5 * whole.reached_after <= whole.updates <= 1.5 * whole.reached_after + 2


def test_evaluations_grow_apart(tmp_path):
    session.train(TrainConfig(**PLAIN, steps=60, evaluate_every=3, evaluate_growth=0.25, workdir=str(tmp_path)))
    at = [row.step for row in rows(tmp_path) if row.kind == HELD_OUT]
    # A quarter of the updates so far, and three at least; the ends of the epochs of 16 updates are none of them.
    assert at == [3, 6, 9, 12, 15, 18, 22, 27, 33, 41, 51, 60]


def test_a_batch_that_grows_reads_on_where_the_smaller_ones_ended(tmp_path, monkeypatch):
    from tests import own_problems

    asked = []
    monkeypatch.setattr(own_problems.Plain, "batch", lambda self, seed, step, size: asked.append((step, size)))
    ramp = {"schedule": "step", "step_epochs": "1,2", "step_factor": 2.0, "batch_ramp": 16}
    session.train(TrainConfig(**PLAIN | ramp, epochs=3, workdir=str(tmp_path)))
    starts = [step * size for step, size in asked]
    assert [size for _, size in asked] == [4] * 16 + [8] * 8 + [16] * 4
    assert starts == np.cumsum([0, *(size for _, size in asked[:-1])]).tolist()


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    with pytest.raises(NonFiniteLossError, match="the loss is nan at step 6"):
        train(tmp_path, problem="tests.own_problems:diverging")


OTHERS = {"model": "fcn", "dataset": "mnist", "norm": "none", "optimizer": "lars", "input": "streamed"}


@pytest.mark.parametrize("name", OF_DATA_AND_MODEL)
def test_what_a_problem_brings_itself_is_refused_beside_it(name):
    (field,) = (field for field in dataclasses.fields(TrainConfig) if field.name == name)
    among = field.metadata.get("among")
    if isinstance(field.default, bool):
        other = not field.default
    elif among:
        other = next(value for value in among if value != field.default)
    elif name in OTHERS:
        other = OTHERS[name]
    else:
        other = {"data_dir": "x", "coordinator_address": "localhost:1"}.get(
            name,
            0.5
            if name in ("norm_momentum", "momentum", "weight_decay", "label_smoothing", "base_learning_rate")
            else 2,
        )
    with pytest.raises(UsageError, match=rf"--{name} changes nothing with --problem=mine:problem"):
        TrainConfig(problem="mine:problem", **{name: other})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_accuracy": 0.9}, r"--target_accuracy is given, and --problem=.* evaluates its loss .* --target_loss"),
        (
            {"problem": "tests.own_problems:plain", "target_loss": 0.9},
            r"--target_loss is given, .* give --target_accuracy",
        ),
        (
            {"problem": "tests.own_problems:without_gradient", "noise_every": 3},
            "--noise_every measures .* no `gradient`",
        ),
        ({"problem": "tests.own_problems:without_gradient", "live": True}, "--live measures .* no `gradient`"),
        ({"problem": "tests.own_problems:State"}, r"--problem=tests.own_problems:State: the function raised TypeError"),
        ({"problem": "mine"}, "must have the form package.module:function"),
        ({"num_devices": 2}, "--num_devices=2, and the state of --problem=.* lies on 1; make its init"),
        ({"batch_size": 512}, "--batch_size=512 is larger than the training set of 256 examples"),
        ({"target_accuracy": 0.5, "target_loss": 0.5}, "exclude each other"),
        ({"past_target": 0.5}, "--past_target=0.5 changes nothing without a target"),
        ({"evaluate_growth": 0.5}, "--evaluate_growth=0.5 lets the distance of --evaluate_every grow"),
        (
            {"evaluate_growth": 0.5, "evaluate_every": 1, "batch_ramp": "auto"},
            "--batch_ramp=auto decides at the end of every epoch",
        ),
    ],
)
def test_what_a_problem_cannot_do_is_said(options, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        train(tmp_path / "run", **options)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_run_of_a_problem_has_a_page_and_no_data_set_to_evaluate(tmp_path):
    train(tmp_path, warmup_epochs=0)
    page = reporting.write_page(tmp_path).read_text()
    assert "tests.own_problems:quadratic, batch 8" in page and "Loss and learning rate against updates." in page
    for word in ("accuracy", "smoothed", "images", "None", "nan", "simple_cnn", "dataset"):
        assert word not in page.partition("<h1>")[2], word
    with pytest.raises(UsageError, match=r"holds a run of the problem tests.own_problems:quadratic, which has no data"):
        restore(tmp_path)


def test_runs_of_earlier_versions_are_found_again():
    """The name of a folder follows from the options that there were, unless a new one is used."""
    assert TrainConfig().default_workdir() == "runs/digits-simple_cnn-b64-3948d5f6"
    assert not set(LATER) & TrainConfig().identity().keys()
    used = TrainConfig(target_loss=0.5, past_target=0.1).identity()
    assert used["target_loss"] == 0.5 and used["past_target"] == 0.1


def test_a_stored_run_is_of_data_or_of_a_problem():
    with pytest.raises(ValueError, match="Expected one of `data` and `problem`"):
        StoredRun(config={})


def test_the_program_of_the_page_is_trained_to_its_target(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "experiments" / "problem.md").read_text()
    (tmp_path / "five_functions.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    options = {"problem": "five_functions:problem", "batch_size": 128, "learning_rate": 0.05, "target_loss": 0.03}
    summary = session.train(TrainConfig(**options, steps=200, evaluate_every=5, workdir=str(tmp_path / "run")))
    assert summary.reached_after is not None and summary.result.loss <= 0.03


def test_a_batch_size_is_recommended_for_a_problem(tmp_path):
    """From the command line to the page, on a problem whose best rate and least loss are known."""
    command = [
        sys.executable, "-m", "experiments.recommend", "--problem=tests.own_problems:quadratic", "--target_loss=0.02",
        "--budget_minutes=0.3", f"--workdir={tmp_path}", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["evidence"]["goal"] == "loss" and result["evidence"]["step_time"]
    found = {row.key: row for row in jobs.read(tmp_path / jobs.FILE)}
    assert all(row.summary.result.accuracy is None for row in found.values() if row.summary is not None)
    # How far a budget goes is the machine's matter.
    if result["advice"] is not None:
        config = TrainConfig(**result["advice"]["options"])
        assert config.problem == "tests.own_problems:quadratic" and config.target_loss == 0.02
    page = (tmp_path / "report.html").read_text()
    assert "Which batch size for tests.own_problems:quadratic?" in page
    for word in ("accuracy", "None", "simple_cnn"):
        assert word not in page.partition("<h1>")[2], word
    assert isinstance(reporting.recommendation_lines(_read(tmp_path)), list)


def _read(folder):
    from experiments import _files

    return _files.read_json(folder / "recommendation.json", Recommendation)


def test_a_problem_is_studied_by_batch_size(tmp_path, monkeypatch, capsys):
    flags = [
        "--problem=tests.own_problems:quadratic", "--target_loss=0.05", "--batch_sizes=8,32",
        "--learning_rates=0.05,0.2", "--seeds=0", "--max_epochs=6", f"--workdir={tmp_path}",
    ]  # fmt: skip
    assert programs.run(batch_size_study, flags, monkeypatch) in (None, 0), capsys.readouterr()
    page = (tmp_path / "report.html").read_text()
    assert "How many updates, epochs and seconds to a loss of 0.05?" in page
    assert {row.key.split("-")[0] for row in jobs.read(tmp_path / jobs.FILE)} == {"time", "tuned"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--parts=smoothness"], "--parts=smoothness cannot be asked of a --problem; what can: "),
        (["--preset=mnist"], "--preset=mnist is of a data set"),
        (["--norm=none"], "--norm changes nothing with --problem="),
        (["--target_accuracy=0.9"], "evaluates its loss"),
        (["--target_loss=9"], "--target_loss=9 is met before any update"),
        (["--max_epochs=9"], "--max_epochs is of runs to a target, and there are none without --target_loss"),
    ],
)
def test_what_cannot_be_asked_of_a_problem_is_refused(flags, said, tmp_path, monkeypatch, capsys):
    flags = ["--problem=tests.own_problems:quadratic", f"--workdir={tmp_path / 'study'}", *flags]
    assert programs.run(batch_size_study, flags, monkeypatch) == 2
    assert said in capsys.readouterr().err
