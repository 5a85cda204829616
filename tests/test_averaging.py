"""Running statistics in training: averages of batches, in which what they are initialised with has no part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from batchnorm_jax.linen import BatchNorm, BatchRenorm, synchronize
from experiments.training import session
from experiments.training.config.options import TrainConfig
from experiments.training.evaluation import population
from experiments.training.machine import devices
from experiments.training.recipe.averaging import WINDOW_DIVISOR, Momentum, averaged
from experiments.training.step import feeding
from tests import made, rig

PLAIN = {"model": "tests.own:model", "batch_size": 16, "learning_rate": 0.05, "warmup_epochs": 0}
UPDATES = {
    "plain": {},
    "spans": {"span": 4},
    "local": {"norm": "local"},
    "renorm": {"norm": "renorm"},
    "accumulation": {"accumulation_steps": 2},
    "several backwards": {"backwards_per_forward": 2, "norm_momentum": 0.99},
    "full batch": {"optimizer": "lbfgs", "batch_size": 64},
}


@pytest.mark.parametrize("name", UPDATES)
def test_nothing_of_the_initial_statistics_is_left_after_an_update(name):
    """Statistics far from any batch's, in place of 0 and 1, change nothing of those after one update or two."""
    config, dataset = TrainConfig(**PLAIN | UPDATES[name]), rig.tiny()
    run = rig.run_of(config, dataset, 2)
    updates = feeding.Feed(config, dataset.train, run.mesh, resident=True).updates(run.plan.locate(0), 0)
    two = [next(updates) for _ in range(1 if name == "full batch" else 2)]
    program = run.compile(run.state, two[0], run.plan)
    replicated = devices.replicated(run.mesh)
    near = jax.tree.map(np.asarray, run.state)
    moved = {
        k: near.batch_stats[k] | {"mean": v["mean"] + 30, "var": v["var"] * 1e4} for k, v in near.batch_stats.items()
    }
    far = near._replace(batch_stats=moved)
    for sources in two:
        near, row = program.call(jax.device_put(near, replicated), sources)
        far, other = program.call(jax.device_put(far, replicated), sources)
        for a, b in zip(*map(jax.tree.leaves, (near.batch_stats, far.batch_stats)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(row["loss"], other["loss"], rtol=1e-4)


def test_the_first_updates_are_averaged_and_then_momentum_rules():
    """Weights of the batches by the recursion: they add up to 1, rise with time, and end as those of the momentum."""
    momentum = Momentum(full=0.9, own=0.9)
    weights = np.zeros(0)
    for updates in range(200):
        m = float(momentum.after(jnp.int32(updates)))
        weights = np.append(m * weights, 1 - m)
        assert weights.sum() == pytest.approx(1, abs=1e-5) and (np.diff(weights) > -1e-6).all()
        assert 1 - m == pytest.approx(
            1 if updates == 0 else max(0.1, WINDOW_DIVISOR / (WINDOW_DIVISOR + updates)), rel=1e-5
        )
    np.testing.assert_allclose(weights[-50:], 0.1 * 0.9 ** np.arange(49, -1, -1), rtol=1e-4)


def test_a_smaller_batch_counts_less_from_the_first_update_on():
    small = Momentum(full=0.9 ** (64 / 256), own=0.9 ** (1 / 256))
    share = 1 - float(small.after(jnp.int32(1)))
    assert share == pytest.approx(WINDOW_DIVISOR / (WINDOW_DIVISOR + 1) / 64, rel=0.02)
    assert float(small.after(jnp.int32(0))) == 0
    assert float(Momentum(0.0, 0.0).after(jnp.int32(3))) == 0


class Model(nn.Module):
    """Norms of several kinds with momenta of their own, one of which is called twice; and a variable of no norm."""

    @nn.compact
    def __call__(self, x):
        shared = BatchNorm(use_running_average=False, name="shared")
        x = shared(shared(x) + 1)
        x = nn.BatchNorm(use_running_average=False, momentum=0.5, name="flax")(x)
        x = BatchRenorm(use_running_average=False, momentum=0.7, name="renorm")(2 * x + 3)
        x = BatchNorm(use_running_average=True, name="frozen")(x)
        count = self.variable("batch_stats", "count", jnp.zeros, ())
        count.value += 1
        return x


def test_every_norm_is_averaged_by_the_momentum_that_is_given():
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (8, 2)), jnp.float32)
    variables = Model().init(jax.random.key(0), x)

    @jax.jit
    def step(momentum):
        with synchronize(None), averaged(momentum):
            return Model().apply(variables, x, mutable=["batch_stats"])[1]["batch_stats"]

    stats, moved = step(jnp.float32(0.0)), step(jnp.float32(0.8))
    np.testing.assert_allclose(stats["flax"]["mean"], 0, atol=1e-5)
    np.testing.assert_allclose(stats["flax"]["var"], 1, rtol=1e-3)
    np.testing.assert_allclose(stats["renorm"]["mean"], 3, rtol=1e-3)
    np.testing.assert_allclose(moved["renorm"]["mean"], 0.2 * 3, rtol=1e-3)
    np.testing.assert_allclose(moved["renorm"]["var"], 0.8 + 0.2 * 4, rtol=1e-3)
    # Both calls: the input's mean, and then 1.
    np.testing.assert_allclose(moved["shared"]["mean"], 0.8 * 0.2 * x.mean(0) + 0.2, rtol=1e-3)
    assert stats["renorm"]["steps"] == 1 and moved["count"] == 2
    for name in ("mean", "var"):
        np.testing.assert_array_equal(moved["frozen"][name], variables["batch_stats"]["frozen"][name])


def test_the_summary_says_both_accuracies_where_the_statistics_decide(tmp_path):
    """Statistics that follow the last batch alone, of two examples, against those of the training set."""
    options = {**PLAIN, "dataset": "tests.own:larger", "steps": 200, "num_devices": 1, "batch_size": 2}
    options |= {"norm_momentum": 0.0, "learning_rate": 0.003}
    summary = session.train(TrainConfig(**options, workdir=str(tmp_path)), check_statistics=True)
    before, after = summary.results["test"], summary.recalibrated["test"]
    assert after.accuracy - before.accuracy > 0.12 and after.examples == before.examples == 64


@pytest.mark.parametrize(
    ("before", "after", "examples", "differ"),
    [(0.37, 1.0, 400, True), (0.945, 0.957, 10_000, True), (0.945, 0.947, 10_000, False), (1.0, 0.98, 50, False)],
)
def test_a_difference_within_the_sampling_error_is_not_said(before, after, examples, differ):
    results = [made.result(accuracy, examples=examples) for accuracy in (before, after)]
    assert population._differ(*results) == differ
