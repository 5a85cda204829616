"""Training end to end: on several devices, stopped and resumed, evaluated, and refused."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from experiments import data, models
from experiments._errors import UsageError
from experiments.records.runs import DataFacts, NoiseRow
from experiments.training import loop, session
from experiments.training.config.options import TrainConfig
from experiments.training.evaluation import evaluator
from experiments.training.evaluation.checkpoint import evaluate_checkpoint
from experiments.training.progress import NonFiniteLossError
from experiments.training.recipe import norms, optimizers, schedules
from experiments.training.step import feeding
from experiments.training.step.run import prepare
from experiments.training.storage import metrics
from experiments.training.storage.checkpoints import Checkpoints
from tests import rig
from tests.rig import first_steps

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_the_trajectory_is_the_same_on_any_number_of_devices(digits, x64):
    """Trains with the default recipe at batch 512 in float64, in which only wrong pooling could make a difference."""
    results = {n: first_steps(TrainConfig(batch_size=512), digits, 20, n, jnp.float64) for n in (1, 2, 8)}
    losses = {n: [row["loss"] for row in rows] for n, (_, rows) in results.items()}
    assert jax.tree.leaves(results[1][0].params)[0].dtype == jnp.float64
    for n in (2, 8):
        np.testing.assert_allclose(losses[n], losses[1], rtol=1e-6, err_msg=f"{n} devices")
    assert losses[1][-1] < 0.7 * losses[1][0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_trajectory_is_the_same_on_any_number_of_devices_in_float32(digits, seed):
    """Losses should agree to 1e-4; a larger difference, up to 1e-2, is printed and is an expected failure.

    Among the million ReLU inputs and max-pools of a step, rounding decides the sign or the winner of a few. The
    gradients upstream, which are small sums of large terms, then differ by about 1e-3.
    """
    config = TrainConfig(batch_size=512, seed=seed)
    losses = {n: [row["loss"] for row in first_steps(config, digits, 20, n)[1]] for n in (1, 2, 4, 8)}
    apart = {n: np.abs(np.array(losses[n]) / losses[1] - 1) for n in (2, 4, 8)}
    worst = {n: f"{np.max(a):.1e}" for n, a in apart.items()}
    print(f"seed {seed}: largest relative difference from one device: {worst}")
    # In the first two steps no sign has flipped yet, so only rounding differs.
    assert max(np.max(a[:2]) for a in apart.values()) <= 1e-6
    assert max(np.max(a) for a in apart.values()) <= 1e-2
    if max(np.max(a) for a in apart.values()) > 1e-4:
        pytest.xfail(f"1e-4 is not met in float32 for seed {seed}: {worst}")


def test_a_smaller_last_batch_is_padded_to_the_number_of_devices(digits, x64):
    """The second batch of 30 examples in batches of 16 has 14; 8 devices add 2 masked examples, and 2 devices none."""
    small = digits._replace(train=digits.train.read(np.arange(30)))
    config = {"batch_size": 16, "drop_remainder": False, "warmup_epochs": 0, "learning_rate": 0.1, "epochs": 2}
    one, rows = first_steps(TrainConfig(**config), small, 4, 2, jnp.float64)
    other, others = first_steps(TrainConfig(**config), small, 4, 8, jnp.float64)
    np.testing.assert_allclose([r["loss"] for r in rows], [r["loss"] for r in others], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_local_statistics_differ_from_pooled_ones(digits):
    losses = {
        n: first_steps(TrainConfig(batch_size=64, norm=n), digits, 1, 8)[1][0]["loss"] for n in ("batch", "local")
    }
    assert abs(losses["batch"] - losses["local"]) > 1e-3


@pytest.mark.parametrize("num_devices", [1, 8])
def test_evaluation_counts_every_example_once(digits, num_devices):
    """Compares with NumPy on the logits of 1,003 examples, a number that the batch size does not divide."""
    split = data.Examples(*(a[:1003] for a in digits.test["test"]))
    statistics = evaluator.pixel_statistics(digits.train)
    run = prepare(TrainConfig(batch_size=64), digits, statistics, jax.devices()[:num_devices])
    result = evaluator.Evaluator(run.eval_step, {"some": split}, run.mesh)(run.state)["some"]
    model = models.create("simple_cnn", num_classes=10, norm=norms.make("batch", 0.9))
    images = (split.images / np.float32(255) - statistics[0]) / statistics[1]
    variables = {"params": run.state.params, "batch_stats": run.state.batch_stats}
    logits = np.asarray(jax.jit(lambda x: model.apply(variables, x, train=False))(images), np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(1003), split.labels]
    assert result.examples == 1003
    assert result.accuracy == pytest.approx((logits.argmax(1) == split.labels).mean(), abs=1e-9)
    assert result.loss == pytest.approx(losses.mean(), rel=1e-5)


def test_pixel_statistics_are_the_mean_and_standard_deviation_per_channel(digits):
    images = np.random.default_rng(0).integers(0, 256, (50, 7, 7, 3), dtype=np.uint8)
    mean, std = evaluator.pixel_statistics(data.Examples(images, np.zeros(50, np.int32)))
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-6)


def run_of(config, dataset):
    return prepare(config, dataset, evaluator.pixel_statistics(dataset.train), jax.devices()[:2])


@pytest.mark.parametrize(
    "options",
    [
        *({"schedule": schedule} for schedule in sorted(schedules.SCHEDULES.names)),
        {"optimizer": "lars"},
        {"optimizer": "adamw"},
        {"backwards_per_forward": 2},
    ],
    ids=str,
)
def test_another_learning_rate_uses_the_same_compiled_program(options):
    """A search over rates thus compiles once; the first step shows that the program uses the rate it is given."""
    # An earlier test may have turned the compilation cache on, and a program from the cache has a different text.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        same_program_at_two_rates(options)
    finally:
        jax.config.update("jax_enable_compilation_cache", True)


def same_program_at_two_rates(options):
    dataset = rig.tiny()
    texts, rates = set(), []
    for rate in (0.1, 0.3):
        config = TrainConfig(batch_size=32, model="tests.own:model", learning_rate=rate, epochs=6, **options)
        run = rig.run_of(config, dataset, 2)
        sources = next(feeding.Feed(config, dataset.train, run.mesh, resident=True).updates(run.plan.locate(0), 0))
        program = run.compile(run.state, sources, run.plan)
        texts.add(program.largest.as_text())
        rates.append(float(program.call(run.state, sources)[1]["learning_rate"]))
    assert len(texts) == 1
    assert rates[1] == pytest.approx(3 * rates[0])


FACTS = DataFacts(image_shape=(4, 4, 1), num_classes=3, pixel_mean=[0.5], pixel_std=[0.25], examples=10)
SHORT = {"batch_size": 512, "steps": 6, "warmup_epochs": 0, "learning_rate": 0.05, "num_devices": 2}


def test_a_run_leaves_summary_metrics_events_and_a_checkpoint_that_evaluates_the_same(tmp_path):
    config = TrainConfig(**SHORT, workdir=str(tmp_path / "run"))
    summary = session.train(config)
    assert set(summary.results) == {"test", "originals"}
    assert summary.results["test"].examples == 10_000 and summary.results["originals"].examples == 360
    assert {"input", "compile", "compute", "evaluate", "checkpoint"} <= set(summary.seconds)
    rows = metrics.read(tmp_path / "run" / metrics.FILE)
    assert [row.step for row in rows if row.kind == "train"] == [1, 2, 3, 4, 5, 6]
    assert [row.step for row in rows if row.kind == "test"] == [6]
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    # The checkpoint evaluates to the results that training reported, and a complete run is not run again.
    step, rows = evaluate_checkpoint(tmp_path / "run")
    assert step == 6 and [row.split for row in rows] == list(summary.results)
    for row in rows:
        before, result = (msgspec.structs.astuple(r)[:3] for r in (row.before, summary.results[row.split]))
        assert before == pytest.approx(result, rel=1e-5) and row.after is None
    assert session.train(config) == summary


def test_evaluations_within_an_epoch_do_not_change_the_run(tmp_path, monkeypatch):
    """Evaluates after every second update; a run that is stopped before an evaluation and resumes has the same rows."""
    often = {**SHORT, "steps": 5, "evaluate_every": 2, "checkpoint_every": 3}
    plain = session.train(TrainConfig(**{**often, "evaluate_every": 0}, workdir=str(tmp_path / "plain")))
    whole = session.train(TrainConfig(**often, workdir=str(tmp_path / "whole")))
    assert whole.results == plain.results

    def rows(name):
        return [row for row in metrics.read(tmp_path / name / metrics.FILE) if row.kind != "train"]

    assert [row.step for row in rows("whole")] == [2, 2, 4, 4, 5, 5] and rows("whole")[-2:] == rows("plain")

    class StoppedError(Exception):
        pass

    evaluate = loop.Fit._evaluate_and_log

    def stop(self, state, step):
        if step == 4:
            raise StoppedError
        return evaluate(self, state, step)

    config = TrainConfig(**often, workdir=str(tmp_path / "stopped"))
    monkeypatch.setattr(loop.Fit, "_evaluate_and_log", stop)
    with pytest.raises(StoppedError):
        session.train(config)
    monkeypatch.setattr(loop.Fit, "_evaluate_and_log", evaluate)
    assert session.train(config).results == whole.results
    assert rows("stopped") == rows("whole")


def test_a_run_stops_at_the_evaluation_that_reaches_the_target(tmp_path):
    config = TrainConfig(**{**SHORT, "evaluate_every": 1, "target_accuracy": 0.4}, workdir=str(tmp_path))
    summary = session.train(config)
    rows = [row for row in metrics.read(tmp_path / metrics.FILE) if row.kind == "test"]
    scores = [row.accuracy for row in rows]
    assert summary.target.reached_after_updates == summary.updates == rows[-1].step < 6
    assert scores[-1] >= 0.4 and all(score < 0.4 for score in scores[:-1])
    assert len(rows) > 1


def test_a_workdir_of_another_configuration_is_refused(tmp_path):
    session.write_config(tmp_path, TrainConfig(**SHORT), FACTS)
    other = TrainConfig(**SHORT | {"learning_rate": 0.1}, workdir=str(tmp_path))
    with pytest.raises(UsageError, match=r"another configuration \(--learning_rate: 0.05 there, 0.1 here\)"):
        session.train(other)


def test_local_statistics_make_the_number_of_devices_part_of_the_run():
    paths = {session.resolve(TrainConfig(batch_size=64, norm="local", num_devices=n)).workdir for n in (2, 4, 4)}
    assert len(paths) == 2
    assert len({session.resolve(TrainConfig(batch_size=64, num_devices=n)).workdir for n in (2, 4)}) == 1


def test_other_data_under_the_same_configuration_is_refused(tmp_path):
    config = TrainConfig(**SHORT)
    session.write_config(tmp_path, config, FACTS)
    session.write_config(tmp_path, config, FACTS)
    with pytest.raises(UsageError, match="a run on other data: its examples differ"):
        session.write_config(tmp_path, config, msgspec.structs.replace(FACTS, examples=11))


def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    config = TrainConfig(**SHORT | {"learning_rate": 1e18, "norm": "none"}, checkpoint_every=1, workdir=str(tmp_path))
    with pytest.raises(NonFiniteLossError, match=r"(the loss is|the parameters are) .* step \d"):
        session.train(config)
    assert all(np.isfinite(row.loss) for row in metrics.read(tmp_path / metrics.FILE))
    run = run_of(config, data.load("digits"))
    with Checkpoints(tmp_path) as checkpoints:
        kept = checkpoints.restore(run.state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))


def test_an_unreadable_newest_checkpoint_is_moved_away(tmp_path, digits, caplog):
    run = run_of(TrainConfig(**SHORT), digits)
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(run.state._replace(step=run.state.step + step))
    for file in (tmp_path / "checkpoints" / "2").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[:50])
    with Checkpoints(tmp_path) as checkpoints:
        # Only a run that resumes moves the checkpoint, so that it can save the step again.
        assert int(checkpoints.restore(run.state).step) == 1
        assert (tmp_path / "checkpoints" / "2").exists()
        assert int(checkpoints.restore(run.state, set_aside=True).step) == 1
        # The step can be saved again.
        checkpoints.save(run.state._replace(step=run.state.step + 2))
        assert int(checkpoints.restore(run.state).step) == 2
    assert "checkpoints/2 cannot be read" in caplog.text and "checkpoints/2 was moved" in caplog.text
    assert list((tmp_path / "unreadable_checkpoints").iterdir())


def test_a_truncated_row_of_metrics_is_reported_and_left_out(tmp_path, caplog):
    path = tmp_path / metrics.FILE
    row = {"kind": "noise", "step": 1, "gradient_norm2": 1.0, "trace": 2.0}
    path.write_text(json.dumps(row) + '\n{"kind": "tra')
    assert metrics.read(path) == [NoiseRow(version=0, **row)]
    assert "line 2 is not a whole row" in caplog.text


def command(workdir, *flags):
    given = {"batch_size": 512, "steps": 40, "warmup_epochs": 0.1, "checkpoint_every": 1000, "workdir": workdir}
    return [sys.executable, "-m", "experiments.train", *(f"--{k}={v}" for k, v in given.items()), *flags]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--optimizer=lasr"],
            f"'lasr'; there are: {', '.join(sorted(optimizers.OPTIMIZERS.names))}. Did you mean 'lars'?",
        ),
        (["--dataset=mnist", "--data_dir=nowhere"], "Looked in nowhere"),
        (["--batch_size=63", "--num_devices=2"], "nearest sizes that work: 62 and 64"),
        (
            ["--norm=bacth"],
            "unknown norm 'bacth'; there are: batch, frozen, group, local, none, renorm. Did you mean 'batch'?",
        ),
        (
            ["--model=simplecnn"],
            f"there are: {', '.join(sorted(models.MODELS.names))}. Did you mean 'simple_cnn'?",
        ),
    ],
)
def test_the_command_prints_errors_without_a_traceback(tmp_path, flags, message):
    result = subprocess.run(command(tmp_path / "run", *flags), cwd=ROOT, text=True, capture_output=True)
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "run").exists()


def test_the_identity_of_a_configuration_survives_json(tmp_path):
    assert json.loads(json.dumps(TrainConfig().identity())) == TrainConfig().identity()
