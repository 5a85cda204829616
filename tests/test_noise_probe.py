"""The gradient noise scale of a run, measured while it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchnorm_jax.batch_size import NoiseEstimate, init_noise, noise_from_shards, noise_scale, update_noise
from experiments._errors import UsageError
from experiments.training import loop, session
from experiments.training.config.options import TrainConfig
from experiments.training.noise.probe import noise_probe
from experiments.training.noise.sentence import larger_batch
from experiments.training.step.single import standardised
from experiments.training.storage import metrics
from tests import own, rig

OPTIONS = {
    "dataset": "tests.own:dataset",
    "model": "tests.own:model",
    "batch_size": 16,
    "warmup_epochs": 0,
    "log_every": 100,
}


@pytest.mark.parametrize("num_devices", [1, 4])
def test_it_is_that_of_the_shards_gradients(num_devices):
    """Against gradients of each shard by a loss that is written out, of a model whose norm sees the shard alone."""
    config = TrainConfig(**OPTIONS, span=8, seed=3)
    dataset = rig.tiny()
    run = rig.run_of(config, dataset, num_devices)
    state = run.state._replace(step=run.state.step + 5)
    estimate = noise_probe(config, run, dataset)(state)

    model = own.Model(dataset.num_classes, own.plain_norm)
    chosen = dataset.train.read(np.random.default_rng((3, 5)).choice(64, 64, replace=False))

    def loss(params, images, labels):
        logits = model.apply({"params": params}, standardised(images, run.recipe), train=True)
        targets = 0.9 * jax.nn.one_hot(labels, 3) + 0.1 / 3
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))

    params = jax.device_get(state.params)
    gradient = jax.jit(jax.grad(loss))
    gradients = [gradient(params, chosen.images[i : i + 8], chosen.labels[i : i + 8]) for i in range(0, 64, 8)]
    expected = noise_from_shards(jax.tree.map(lambda *g: jnp.stack(g), *gradients), shard_size=8)
    np.testing.assert_allclose(estimate, jax.device_get(expected), rtol=1e-4)


def test_it_changes_nothing_of_the_training_and_goes_on_with_it(tmp_path):
    config = {**OPTIONS, "steps": 8, "span": 16, "checkpoint_every": 3, "evaluate_every": 4}
    plain = session.train(TrainConfig(**config, workdir=str(tmp_path / "plain")))
    measured = session.train(TrainConfig(**config, noise_every=2, workdir=str(tmp_path / "measured")))
    assert measured.results == plain.results
    rows = [row for row in metrics.read(tmp_path / "measured" / metrics.FILE) if row.kind == "noise"]
    assert [row.step for row in rows] == [2, 4, 6, 8]
    assert all(np.isfinite(row.trace) and row.trace > 0 and np.isfinite(row.gradient_norm2) for row in rows)
    # An evaluation that was logged at a step is found again beside a measurement.
    log = metrics.MetricsLog(tmp_path / "measured", 8)
    with log:
        assert set(log.evaluations(8)) == {"test"}


def test_live_says_the_running_noise_scale_and_goes_on_with_it(tmp_path, capsys, monkeypatch):
    """A line with every evaluation, from the averages of the rows; of a run that was stopped the same ones."""
    config = {**OPTIONS, "epochs": 3, "span": 16, "live": True}

    def said():
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("noise ")]

    plain = session.train(TrainConfig(**{**config, "live": False}, workdir=str(tmp_path / "plain")))
    assert said() == []
    whole = session.train(TrainConfig(**config, workdir=str(tmp_path / "whole")))
    lines = said()
    assert whole.results == plain.results and len(lines) == 3
    state = init_noise()
    for row in metrics.read(tmp_path / "whole" / metrics.FILE):
        if row.kind == "noise":
            state = update_noise(state, NoiseEstimate(row.gradient_norm2, row.trace), loop.RUNNING_NOISE_DECAY)
    assert lines[-1].startswith("noise     ") and lines[-1].endswith(larger_batch(float(noise_scale(state)), 16))

    evaluate, calls = loop.Fit._evaluate_and_log, []

    def stopped(self, state, step):
        calls.append(step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(self, state, step)

    monkeypatch.setattr(loop.Fit, "_evaluate_and_log", stopped)
    with pytest.raises(KeyboardInterrupt):
        session.train(TrainConfig(**config, workdir=str(tmp_path / "stopped")))
    assert said() == lines[:2]
    session.train(TrainConfig(**config, workdir=str(tmp_path / "stopped")))
    assert said() == lines[2:]


def test_a_training_set_of_one_shard_is_refused():
    config = TrainConfig(**OPTIONS, noise_every=1)
    small = rig.tiny(examples=100)
    with pytest.raises(UsageError, match=r"two shards of 64 training examples .* there are 100 examples"):
        noise_probe(config, rig.run_of(config, small, 1), small)


def test_every_norm_and_kind_of_label_can_be_measured():
    for options in (
        {"norm": "none"},
        {"norm": "renorm"},
        {"norm": "group"},
        {"norm": "frozen"},
        {"model": "fcn", "augmentation": "flip"},
        {"accumulation_steps": 2},
    ):
        config = TrainConfig(**{**OPTIONS, **options})
        pixels = config.model == "fcn"
        dataset = rig.tiny(examples=128, size=16 if pixels else 8, pixels=pixels)
        estimate = noise_probe(config, (run := rig.run_of(config, dataset, 2)), dataset)(run.state)
        assert np.isfinite(estimate).all() and estimate.trace > 0, options
