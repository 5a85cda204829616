"""`--batch_ramp=auto`: a batch that follows the gradient noise scale."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments._errors import UsageError
from experiments.records.runs import StepMemory
from experiments.training import session
from experiments.training.config import plan
from experiments.training.config.options import TrainConfig
from experiments.training.noise import ramp
from experiments.training.storage import metrics

OPTIONS = {
    "dataset": "tests.own:larger", "model": "tests.own:model", "num_devices": 2, "warmup_epochs": 0,
    "schedule": "constant", "learning_rate": 0.05, "batch_size": 4, "batch_ramp": "auto",
}  # fmt: skip
EXAMPLES = 256


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Rows and summary of a run of six epochs."""
    workdir = tmp_path_factory.mktemp("ramp") / "run"
    summary = session.train(TrainConfig(**OPTIONS, epochs=6, workdir=str(workdir)))
    return metrics.read(workdir / metrics.FILE), summary


def test_the_batch_doubles_where_the_noise_of_the_rows_says_so(run):
    rows, summary = run
    doubled = {row.step: row.batch_size for row in rows if row.kind == "ramp"}
    average, weight, batch_size, step = np.zeros(2), 0.0, 4, 0
    decisions = []
    for epoch in range(6):
        first, step = step, step + EXAMPLES // batch_size
        for row in rows:
            if row.kind == "noise" and first < row.step <= step:
                estimate = np.array([row.gradient_norm2, row.trace])
                average, weight = 0.8 * average + 0.2 * estimate, 0.8 * weight + 0.2
        scale = average[1] / average[0] if average[0] > 0 else math.inf
        # Of 256 examples an epoch has at least 8 updates; after the last one nothing grows.
        grows = weight > 0 and 2 * batch_size <= min(scale, 32) and epoch < 5
        assert (step in doubled) == grows, (epoch, scale, batch_size, doubled)
        decisions.append(grows)
        if grows:
            batch_size *= 2
            assert doubled[step] == batch_size
    # In the last epoch there is nothing to decide.
    assert True in decisions and False in decisions[:-1]
    assert summary.updates == step and summary.epochs == 6
    assert {row.learning_rate for row in rows if row.kind == "train"} == {np.float32(0.05)}


def test_up_to_the_first_change_it_is_a_run_without_a_ramp(run, tmp_path):
    rows, _ = run
    first = next(row.step for row in rows if row.kind == "ramp")
    session.train(TrainConfig(**{**OPTIONS, "batch_ramp": None}, steps=first, workdir=str(tmp_path)))
    before = [row for row in rows if row.kind in ("train", "test") and row.step <= first]
    assert before == metrics.read(tmp_path / metrics.FILE)


def test_where_the_target_is_reached_no_other_batch_begins(run, tmp_path):
    rows, _ = run
    first = next(row.step for row in rows if row.kind == "ramp")
    there = next(row.accuracy for row in rows if row.kind == "test" and row.step == first)
    before = [row.accuracy for row in rows if row.kind == "test" and row.step < first]
    assert all(accuracy < there for accuracy in before)
    summary = session.train(TrainConfig(**OPTIONS, epochs=6, target_accuracy=there, workdir=str(tmp_path)))
    assert summary.target.reached_after_updates == first
    assert not any(row.kind == "ramp" for row in metrics.read(tmp_path / metrics.FILE))


def test_it_is_said(tmp_path, capsys):
    session.train(TrainConfig(**OPTIONS, epochs=2, workdir=str(tmp_path)))
    said = capsys.readouterr().out
    assert "up to 32, at the end of an epoch" in said
    assert "ramp      batch 8 from here on: the noise scale is" in said
    assert "fewer updates" in said and "it pays if an update takes less than" in said


def test_it_follows_a_share_of_the_noise_scale(run, tmp_path, capsys):
    """With so small a share that no batch is below it, and with half of it as by hand."""
    rows, _ = run
    first = next(row for row in rows if row.kind == "ramp")
    share = 2 * 4 / first.noise_scale
    options = {**OPTIONS, "epochs": 2, "live": True}
    session.train(TrainConfig(**options, critical_share=0.99 * share, workdir=str(tmp_path / "below")))
    assert "from here on" not in capsys.readouterr().out
    session.train(TrainConfig(**options, critical_share=1.01 * share, workdir=str(tmp_path / "above")))
    said = capsys.readouterr().out
    assert f"up to 32, at the end of an epoch as soon as {1.01 * share:g} of the running" in said
    assert "batch 8 from here on: the noise scale is" in said and ", the critical batch size 8.08; expect" in said
    (line, *_) = [line for line in said.splitlines() if line.startswith("noise")]
    assert ", the critical batch size 8.08, about the batch of" in line
    assert "noise     " in said


def test_a_share_without_anything_that_reads_it_is_refused():
    with pytest.raises(UsageError, match="changes nothing without them"):
        TrainConfig(critical_share=0.3)
    assert "critical_share" not in TrainConfig(live=True).identity()


@settings(deadline=None)
@given(st.integers(200, 5_000), st.integers(1, 6), st.lists(st.booleans(), min_size=1, max_size=8), st.booleans())
def test_an_epoch_reads_every_example_once_whatever_grows(examples, share, decisions, drop_remainder):
    config = TrainConfig(
        batch_size=2 * share, epochs=len(decisions), schedule="constant", batch_ramp="auto", warmup_epochs=0,
        drop_remainder=drop_remainder,
    )  # fmt: skip
    sizes = plan.make(config, examples, 2)
    step = 0
    for epoch, grows in enumerate(decisions):
        position = sizes.locate(step)
        size = sizes.batch_size
        updates = examples // size if drop_remainder else -(-examples // size)
        assert (position.epoch, position.first_step, position.last_step) == (epoch, step, step + updates)
        assert position.phase.batch_size == size
        step += updates
        assert sizes.epochs_at(step) == epoch + 1
        sizes = ramp.grown(sizes, step, math.inf if grows else size)
        last = epoch == len(decisions) - 1
        allowed = not last and 2 * size * plan.MIN_UPDATES_PER_EPOCH <= examples
        assert sizes.batch_size == (2 * size if grows and allowed else size)
    assert sizes.total_steps == step and sizes.epochs == len(decisions)
    assert ramp.restored(plan.make(config, examples, 2), ramp.notes(sizes)) == sizes


def test_neither_in_the_warmup_nor_by_a_scale_that_is_not_known():
    config = TrainConfig(batch_size=16, epochs=4, schedule="constant", batch_ramp="auto", warmup_epochs=2)
    sizes = plan.make(config, 1_600, 1)
    assert ramp.grown(sizes, 100, math.inf) == sizes
    assert ramp.grown(sizes, 200, math.nan) == sizes
    assert ramp.grown(sizes, 200, 31.9) == sizes
    assert ramp.grown(sizes, 200, 32).batch_size == 32
    without = TrainConfig(batch_size=16, epochs=4, schedule="constant", warmup_epochs=2)
    fixed = plan.make(without, 1_600, 1)
    assert ramp.grown(fixed, 200, math.inf) == fixed


def test_it_stops_before_the_memory_does():
    config = TrainConfig(batch_size=16, schedule="constant", batch_ramp="auto")
    sizes = plan.make(config, 1_600, 1)
    assert ramp.within_memory(sizes, StepMemory(needed=400, limit=1_000)) == sizes
    assert ramp.within_memory(sizes, StepMemory(needed=None, limit=1_000)) == sizes
    full = ramp.within_memory(sizes, StepMemory(needed=501, limit=1_000))
    assert ramp.grown(full, 300, math.inf).batch_size == 16
    assert ramp.restored(sizes, ramp.notes(full)) == full


def test_of_a_span_only_whole_ones_count():
    """Spans of three shares of two examples: of four examples a share has no whole number of them, nor has one six."""
    config = TrainConfig(batch_size=12, span=6, schedule="constant", batch_ramp="auto")
    with pytest.raises(UsageError, match="whole spans of 6"):
        plan.make(config, 10_000, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_ramp": "auto"}, "takes --schedule=constant, not cosine"),
        ({"batch_ramp": "outo"}, "Did you mean 'auto'"),
        ({"batch_ramp": "auto", "schedule": "constant", "norm": "renorm"}, "--norm=renorm widens its limits"),
        ({"batch_ramp": 0}, "batch_ramp must be at least 1, not 0"),
        ({"batch_ramp": 128, "schedule": "constant"}, "--batch_ramp=auto, with --schedule=constant"),
        (
            {"batch_ramp": "auto", "schedule": "constant", "backwards_per_forward": 2},
            "takes --backwards_per_forward=1",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig(**options)


def test_a_batch_without_room_to_grow_is_refused(tmp_path):
    with pytest.raises(UsageError, match="at least 8 updates per epoch, and 64 of 256 examples"):
        session.train(TrainConfig(**{**OPTIONS, "batch_size": 32}, workdir=str(tmp_path)))
    with pytest.raises(UsageError, match="--batch_ramp=auto needs at least two shards of 64"):
        session.train(TrainConfig(**{**OPTIONS, "dataset": "tests.own:dataset"}, workdir=str(tmp_path)))
