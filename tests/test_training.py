"""The trainer end to end: on more devices, stopped and started, evaluated, and refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments import data, models
from experiments._errors import UsageError
from experiments.training import devices, evaluation, loop, metrics, optimizers, preflight, schedules, steps
from experiments.training.checkpoint_evaluation import evaluate_checkpoint
from experiments.training.checkpoints import Checkpoints
from experiments.training.config import TrainConfig

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def first_steps(config, dataset, number, num_devices):
    run = loop.prepare(config, dataset, jax.devices()[:num_devices])
    resident = evaluation.put(dataset.train, evaluation.pixel_statistics(dataset.train.images), run.mesh)
    order = data.epoch_order(
        len(dataset.train.labels), config.batch_size, seed=config.seed, epoch=0, drop_remainder=config.drop_remainder
    )
    order = jax.device_put(order, NamedSharding(run.mesh, PartitionSpec(None, devices.AXIS)))
    state, rows = run.state, []
    for _ in range(number):
        state, row = run.train_step(state, resident, *order)
        rows.append(jax.device_get(row))
    return state, rows


def test_the_trajectory_is_the_same_on_any_number_of_devices(digits, x64):
    """The default recipe at batch 512, in float64, where nothing but the pooling could make a difference."""
    losses = {n: first_losses_in_float64(digits, n) for n in (1, 2, 4, 8)}
    for n in (2, 4, 8):
        np.testing.assert_allclose(losses[n], losses[1], rtol=1e-6, err_msg=f"{n} devices")
    assert losses[1][-1] < 0.7 * losses[1][0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_trajectory_is_the_same_in_float32(digits, seed):
    """To 1e-4 is what is wanted; where it is more, the test says by how much, and shows as an expected failure.

    The last digit decides the sign of some ReLU's input, or the winner of some max-pool, among a million in a step.
    The gradients upstream, small sums of large terms, then differ by some 1e-3.
    """
    config = TrainConfig(batch_size=512, seed=seed)
    losses = {n: [row["loss"] for row in first_steps(config, digits, 20, n)[1]] for n in (1, 2, 4, 8)}
    apart = {n: np.abs(np.array(losses[n]) / losses[1] - 1) for n in (2, 4, 8)}
    worst = {n: f"{np.max(a):.1e}" for n, a in apart.items()}
    print(f"seed {seed}: largest relative difference from one device: {worst}")
    # Before any flip it is rounding alone.
    assert max(np.max(a[:2]) for a in apart.values()) <= 1e-6
    assert max(np.max(a) for a in apart.values()) <= 1e-2
    if max(np.max(a) for a in apart.values()) > 1e-4:
        pytest.xfail(f"1e-4 is not met in float32 for seed {seed}: {worst}")


def first_losses_in_float64(dataset, num_devices):
    config = TrainConfig(batch_size=512)
    mesh = devices.make_mesh(jax.devices()[:num_devices])
    plan = preflight.plan(config, len(dataset.train.labels))
    schedule = schedules.make(
        config.schedule, config.peak_learning_rate, warmup_steps=plan.warmup_steps, total_steps=plan.total_steps
    )
    optimizer = optimizers.make(config.optimizer, schedule, momentum=config.momentum, weight_decay=config.weight_decay)
    model = models.create("simple_cnn", num_classes=10, norm=steps.make_norm("batch", 0.9), dtype=jnp.dtype("float64"))
    state = steps.init_state(model, optimizer, (28, 28, 1), config.seed)
    state = jax.tree.map(lambda a: a.astype(jnp.float64) if a.ndim else a, state)
    state = jax.device_put(state, devices.replicated(mesh))
    resident = evaluation.put(dataset.train, evaluation.pixel_statistics(dataset.train.images), mesh)
    order = data.epoch_order(len(dataset.train.labels), config.batch_size, seed=0, epoch=0)
    order = jax.device_put(order, NamedSharding(mesh, PartitionSpec(None, devices.AXIS)))
    step = steps.train_step(model, optimizer, schedule, mesh, label_smoothing=config.label_smoothing)
    losses = []
    for _ in range(20):
        state, row = step(state, resident, *order)
        losses.append(float(row["loss"]))
    assert jax.tree.leaves(state.params)[0].dtype == jnp.float64
    return losses


def test_a_padded_last_batch_is_a_smaller_batch(digits):
    """One step on 24 examples padded to 32 is one step on 24, wherever the padding lies."""
    small = data.Dataset("digits", data.Examples(*(a[:24] for a in digits.train)), digits.test, 10)
    settings = {"warmup_epochs": 0, "learning_rate": 0.1, "norm_momentum": 0.9}
    whole, whole_rows = first_steps(TrainConfig(batch_size=24, **settings), small, 1, 8)
    # A batch of 32 is refused in a set of 24, so the run is made for a set of 40.
    more = data.Dataset("digits", data.Examples(*(a[:40] for a in digits.train)), digits.test, 10)
    config = TrainConfig(batch_size=32, drop_remainder=False, **settings)
    run = loop.prepare(config, more, jax.devices())
    statistics = evaluation.pixel_statistics(small.train.images)
    resident = evaluation.put(small.train, statistics, run.mesh)
    order = data.epoch_order(24, 24, seed=0, epoch=0)[0].ravel()
    padded = data.padded_batches(order, 32)
    padded = jax.device_put(padded, NamedSharding(run.mesh, PartitionSpec(None, devices.AXIS)))
    state, row = run.train_step(run.state, resident, *padded)
    assert row["loss"] == pytest.approx(whole_rows[0]["loss"], rel=1e-5)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_local_statistics_are_not_pooled_ones(digits):
    losses = {
        n: first_steps(TrainConfig(batch_size=64, norm=n), digits, 1, 8)[1][0]["loss"] for n in ("batch", "local")
    }
    assert abs(losses["batch"] - losses["local"]) > 1e-3


@pytest.mark.parametrize("num_devices", [1, 8])
def test_evaluation_counts_every_example_once(digits, num_devices):
    """On 1,003 examples, which no batch divides, against NumPy on the logits."""
    split = data.Examples(*(a[:1003] for a in digits.test["test"]))
    run = loop.prepare(TrainConfig(batch_size=64), digits, jax.devices()[:num_devices])
    statistics = evaluation.pixel_statistics(digits.train.images)
    result = evaluation.evaluate(run.eval_step, run.state, evaluation.put(split, statistics, run.mesh), run.mesh)
    model = models.create("simple_cnn", num_classes=10, norm=steps.make_norm("batch", 0.9))
    images = (split.images / np.float32(255) - statistics[0]) / statistics[1]
    variables = {"params": run.state.params, "batch_stats": run.state.batch_stats}
    logits = np.asarray(jax.jit(lambda x: model.apply(variables, x, train=False))(images), np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(1003), split.labels]
    assert result["examples"] == 1003
    assert result["accuracy"] == pytest.approx((logits.argmax(1) == split.labels).mean(), abs=1e-9)
    assert result["loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_pixel_statistics(digits):
    images = np.random.default_rng(0).integers(0, 256, (50, 7, 7, 3), dtype=np.uint8)
    mean, std = evaluation.pixel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-6)


SHORT = {"batch_size": 512, "steps": 6, "warmup_epochs": 0, "learning_rate": 0.05, "num_devices": 2}


def test_a_run_leaves_everything_it_is_said_to_leave(tmp_path):
    config = TrainConfig(**SHORT, workdir=str(tmp_path / "run"))
    summary = loop.train(config)
    assert set(summary["results"]) == {"test", "originals"}
    assert summary["results"]["test"]["examples"] == 10_000 and summary["results"]["originals"]["examples"] == 360
    assert {"input", "compile", "compute", "evaluate", "checkpoint"} <= set(summary["seconds"])
    rows = metrics.read(tmp_path / "run" / metrics.FILE)
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if row["kind"] == "test"] == [6]
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    # The checkpoint evaluates to what training reported; a complete run is not run again.
    step, results = evaluate_checkpoint(tmp_path / "run")
    assert step == 6
    for split, result in results.items():
        assert result == pytest.approx(summary["results"][split], rel=1e-5)
    assert loop.train(config) == summary


def test_a_workdir_of_another_configuration_is_refused(tmp_path):
    loop.write_config(tmp_path, TrainConfig(**SHORT), {})
    other = TrainConfig(**SHORT | {"learning_rate": 0.1}, workdir=str(tmp_path))
    with pytest.raises(UsageError, match=r"another configuration \(--learning_rate: 0.05 there, 0.1 here\)"):
        loop.train(other)


def test_local_statistics_make_the_number_of_devices_part_of_the_run():
    paths = {loop.resolve(TrainConfig(batch_size=64, norm="local", num_devices=n)).workdir for n in (2, 4, 4)}
    assert len(paths) == 2
    assert len({loop.resolve(TrainConfig(batch_size=64, num_devices=n)).workdir for n in (2, 4)}) == 1


def test_other_data_under_the_same_configuration_is_refused(tmp_path):
    config = TrainConfig(**SHORT)
    loop.write_config(tmp_path, config, {"examples": 10, "num_classes": 3})
    loop.write_config(tmp_path, config, {"examples": 10, "num_classes": 3})
    with pytest.raises(UsageError, match="a run on other data: its examples differ"):
        loop.write_config(tmp_path, config, {"examples": 11, "num_classes": 3})


def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    config = TrainConfig(**SHORT | {"learning_rate": 1e30, "norm": "none"}, checkpoint_every=1, workdir=str(tmp_path))
    with pytest.raises(loop.NonFiniteLossError, match=r"(the loss is|the parameters are) .* step \d"):
        loop.train(config)
    assert all(np.isfinite(row["loss"]) for row in metrics.read(tmp_path / metrics.FILE))
    run = loop.prepare(config, data.load("digits"), jax.devices()[:2])
    with Checkpoints(tmp_path) as checkpoints:
        kept = checkpoints.restore(run.state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))


def test_an_unreadable_newest_checkpoint_is_set_aside(tmp_path, digits, caplog):
    run = loop.prepare(TrainConfig(**SHORT), digits, jax.devices()[:2])
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(run.state._replace(step=run.state.step + step))
    for file in (tmp_path / "checkpoints" / "2").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[:50])
    with Checkpoints(tmp_path) as checkpoints:
        # Reading alone moves nothing; a run that goes on makes room for the step.
        assert int(checkpoints.restore(run.state).step) == 1
        assert (tmp_path / "checkpoints" / "2").exists()
        assert int(checkpoints.restore(run.state, set_aside=True).step) == 1
        # The step can be kept again.
        checkpoints.save(run.state._replace(step=run.state.step + 2))
        assert int(checkpoints.restore(run.state).step) == 2
    assert "checkpoints/2 cannot be read" in caplog.text and "checkpoints/2 is set aside" in caplog.text
    assert list((tmp_path / "unreadable_checkpoints").iterdir())


def test_metrics_that_were_cut_short_are_named_and_left_out(tmp_path, caplog):
    path = tmp_path / metrics.FILE
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "tra')
    assert metrics.read(path) == [{"kind": "train", "step": 1}]
    assert "line 2 is not a whole row" in caplog.text


def command(workdir, *flags):
    given = {"batch_size": 512, "steps": 40, "warmup_epochs": 0.1, "checkpoint_every": 1000, "workdir": workdir}
    return [sys.executable, "-m", "experiments.train", *(f"--{k}={v}" for k, v in given.items()), *flags]


def test_sigterm_saves_and_the_same_command_goes_on_bit_for_bit(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "NPROC"}
    run = {"cwd": ROOT, "env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    uninterrupted = subprocess.run(command(tmp_path / "whole"), **run)
    assert uninterrupted.returncode == 0, uninterrupted.stdout

    process = subprocess.Popen(command(tmp_path / "stopped"), **run)
    rows = tmp_path / "stopped" / metrics.FILE
    deadline = time.time() + 120
    while time.time() < deadline and not (rows.exists() and len(rows.read_text().splitlines()) >= 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    stopped_at = metrics.read(rows)[-1]["step"]
    assert 5 <= stopped_at < 40 and f"step {stopped_at} is saved" in output

    resumed = subprocess.run(command(tmp_path / "stopped"), **run)
    assert resumed.returncode == 0 and f"checkpoint of step {stopped_at}" in resumed.stdout, resumed.stdout
    assert metrics.read(rows) == metrics.read(tmp_path / "whole" / metrics.FILE)
    config = TrainConfig(**SHORT)
    like = loop.prepare(config, data.load("digits"), jax.devices()[:2]).state
    final = []
    for name in ("whole", "stopped"):
        with Checkpoints(tmp_path / name) as checkpoints:
            final.append(checkpoints.restore(like, 40))
    jax.tree.map(np.testing.assert_array_equal, *final)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimizer=lasr"], "error: unknown optimizer 'lasr'; there are: lars, nesterov, sgd. Did you mean 'lars'?"),
        (["--dataset=mnist", "--data_dir=nowhere"], "Looked in nowhere"),
        (["--batch_size=63", "--num_devices=2"], "nearest sizes that work: 62 and 64"),
        (["--norm=bacth"], "unknown norm 'bacth'; there are: batch, local, none. Did you mean 'batch'?"),
        (["--model=simplecnn"], "unknown model 'simplecnn'; there are: simple_cnn. Did you mean 'simple_cnn'?"),
    ],
)
def test_the_command_prints_errors_without_a_traceback(tmp_path, flags, message):
    result = subprocess.run(command(tmp_path / "run", *flags), cwd=ROOT, text=True, capture_output=True)
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "run").exists()


def test_results_are_json(tmp_path):
    assert json.loads(json.dumps(TrainConfig().identity())) == TrainConfig().identity()
