"""Averages of weights, and optimizers that average: formulas, devices, resumption and checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import data
from experiments._errors import UsageError
from experiments.training.as_problem import as_problem
from experiments.training.config.options import TrainConfig
from experiments.training.evaluation.averaged import evaluated
from experiments.training.evaluation.checkpoint import evaluate_checkpoint, restore
from experiments.training.recipe import optimizers
from experiments.training.recipe.averaging import Momentum
from experiments.training.recipe.weight_average import averaged_params, averaging
from experiments.training.session import train
from experiments.training.step import single
from experiments.training.step.parts import make_model, make_optimizer
from tests import rig

TINY = {"model": "tests.own:model", "epochs": 9, "warmup_epochs": 0, "learning_rate": 0.05, "batch_size": 16}
FREE = {"optimizer": "schedule_free", "schedule": "constant", "momentum": 0.9}


@pytest.fixture
def tiny_data(monkeypatch):
    loaded = rig.tiny()
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: loaded)
    return loaded


def test_the_average_against_numpy():
    """At first over the last tenth of the updates, and then with a weight that halves every 20 updates."""
    optimizer = averaging(optax.sgd(lambda step: 0.1 + 0.01 * step, momentum=0.9), Momentum(0.5**0.05, 0.5**0.05))
    params, r = jnp.asarray([1.0, -2.0]), np.random.default_rng(0)
    state, step = optimizer.init(params), jax.jit(optimizer.update)
    want = None
    for number in range(400):
        updates, state = step(jnp.asarray(r.normal(size=2), jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        share = 1.0 if number == 0 else min(1, max(1 - 0.5**0.05, 10 / (10 + number)))
        now = np.asarray(params, np.float64)
        want = now if want is None else want + share * (now - want)
    assert np.abs(want - now).max() > 1
    np.testing.assert_allclose(averaged_params(state, params), want, rtol=1e-5)


def test_schedule_free_sgd_against_the_paper():
    """Defazio et al., arXiv 2405.15682, equations 3 to 5, with weights in proportion to the squared rate."""
    rate, b1, decay = [0.1, 0.2, 0.3, 0.3, 0.3], 0.8, 0.01
    warmup = lambda step: 0.3 * jnp.minimum((step + 1) / 3, 1)  # noqa: E731
    optimizer = optimizers.make("schedule_free", warmup, momentum=b1, weight_decay=decay)
    params = {"kernel": jnp.asarray([1.0, -2.0])}
    state, r = optimizer.init(params), np.random.default_rng(0)
    x = z = np.array([1.0, -2.0])
    total, highest = 0.0, 0.0
    for number in range(5):
        g = r.normal(size=2).astype(np.float32)
        y = (1 - b1) * z + b1 * x
        np.testing.assert_allclose(params["kernel"], y, rtol=1e-5)
        updates, state = optimizer.update({"kernel": jnp.asarray(g)}, state, params)
        params = optax.apply_updates(params, updates)
        z = z - rate[number] * (g + decay * y)
        # Optax weighs by the rate of the step after.
        highest = max(highest, rate[min(number + 1, 4)])
        total += highest**2
        x = x + highest**2 / total * (z - x)
        np.testing.assert_allclose(averaged_params(state, params)["kernel"], x, rtol=1e-4)


def test_muon_makes_the_step_of_a_kernel_orthogonal_and_leaves_the_rest_to_adam():
    """Liu et al., arXiv 2502.16982: singular values of about 0.2 times the square root of the longer side."""
    params, grads = drawn(0), drawn(1)
    constant = optax.constant_schedule(0.5)
    muon, adam = (optimizers.make(name, constant, momentum=0.9, weight_decay=0.0) for name in ("muon", "adamw"))
    updates, _ = muon.update(grads, muon.init(params), params)
    usual, _ = adam.update(grads, adam.init(params), params)
    for name in ("conv", "dense"):
        step, gradient = (as_matrix(tree[name]["kernel"]) for tree in (updates, grads))
        left, values, right = np.linalg.svd(step, full_matrices=False)
        values /= 0.5 * 0.2 * max(step.shape) ** 0.5
        assert 0.6 < values.min() <= values.max() < 1.3
        u, _, v = np.linalg.svd(gradient, full_matrices=False)
        assert np.sum((left @ right) * (u @ v)) / len(values) < -0.97
    # Adam with Nesterov's momentum there, whose first step has the same signs.
    np.testing.assert_array_equal(jnp.sign(updates["norm"]["scale"]), jnp.sign(usual["norm"]["scale"]))
    assert jnp.abs(updates["conv"]["bias"]).max() < 3 * jnp.abs(usual["conv"]["bias"]).max()


def drawn(seed):
    r = np.random.default_rng(seed)
    shapes = {"conv": {"kernel": (3, 3, 8, 40), "bias": (40,)}, "dense": {"kernel": (30, 10)}, "norm": {"scale": (40,)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(r.normal(size=shape), jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


def as_matrix(kernel):
    """Everything that an output sums over in rows, the outputs in columns."""
    return np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])


@pytest.mark.parametrize("options", [{"average_weights": 200}, FREE], ids=["average", "schedule-free"])
def test_the_average_is_the_same_on_any_number_of_devices(options):
    (one, _), (two, _) = (rig.first_steps(TrainConfig(**TINY | options), rig.tiny(), 12, n) for n in (1, 2))
    for a, b in zip(*(jax.tree.leaves(averaged_params(s.opt_state, s.params)) for s in (one, two)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)
    average = averaged_params(one.opt_state, one.params)
    away = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.params, average)
    assert max(jax.tree.leaves(away)) > 1e-3


@pytest.mark.parametrize("ways", [{"accumulation_steps": 2}, {"backwards_per_forward": 2}])
def test_the_average_counts_examples_however_an_update_is_made(ways):
    state, _ = rig.first_steps(TrainConfig(**TINY, average_weights=16, **ways), rig.tiny(), 12, 1)
    assert int(state.opt_state.updates) == int(state.step) == 12 * ways.get("backwards_per_forward", 1)
    plain, _ = rig.first_steps(TrainConfig(**TINY, **ways), rig.tiny(), 12, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.params, plain.params)


@pytest.mark.parametrize("options", [{"average_weights": 200}, FREE], ids=["average", "schedule-free"])
def test_norms_of_an_average_have_its_own_statistics(options):
    """Those of the training images with the averaged weights, and not the running ones, which other weights had."""
    config, dataset = TrainConfig(**TINY | options), rig.tiny()
    run = rig.run_of(config, dataset, 1)
    state, _ = rig.first_steps(config, dataset, 12, 1)
    state = jax.device_put(state, jax.tree.leaves(run.state)[0].sharding)
    shown = evaluated(config, run.model, run.recipe, run.mesh, dataset.train)(state)
    # A forward pass of training over all images, whose statistics replace the running ones.
    images = single.standardised(jnp.asarray(dataset.train.images), run.recipe)
    variables = {"params": averaged_params(state.opt_state, state.params), "batch_stats": state.batch_stats}
    model = make_model(config, dataset.num_classes)
    mapped = jax.shard_map(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])[1],
        mesh=run.mesh, in_specs=single.REPLICATED, out_specs=single.REPLICATED,
    )  # fmt: skip
    want = mapped(variables, images)["batch_stats"]
    for got, running, right in zip(*map(jax.tree.leaves, (shown.batch_stats, state.batch_stats, want)), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-4)
        assert np.abs(running - right).max() > 1e-2


@pytest.mark.parametrize("options", [{"average_weights": 200}, FREE], ids=["average", "schedule-free"])
def test_a_run_its_resumption_and_its_checkpoint_give_the_same_results(options, tmp_path, tiny_data):
    config = TINY | options | {"num_devices": 1}
    whole = train(TrainConfig(**config, workdir=str(tmp_path / "whole")), check_statistics=True)
    assert whole.recalibrated is None
    short = config | {"steps": 20, "schedule": "constant"}
    train(TrainConfig(**short, workdir=str(tmp_path / "short")))
    long = train(TrainConfig(**short | {"steps": 36}, workdir=str(tmp_path / "short")))
    direct = train(TrainConfig(**short | {"steps": 36}, workdir=str(tmp_path / "direct")))
    assert long.results == direct.results
    step, (row,) = evaluate_checkpoint(tmp_path / "whole", num_devices=1, model=TINY["model"])
    assert step == 36 and row.before.accuracy == whole.results["test"].accuracy
    assert row.before.loss == pytest.approx(whole.results["test"].loss, rel=1e-6)
    restored = restore(tmp_path / "whole", num_devices=1, model=TINY["model"])
    assert restored.state.params is not None and tiny_data.train.size == 64


def test_a_problem_made_of_a_configuration_evaluates_its_average(tiny_data):
    ways = [as_problem(TrainConfig(**TINY | {"num_devices": 1}, **more)) for more in ({}, {"average_weights": 10**6})]
    accuracies = []
    for problem in ways:
        state = problem.init(0)
        for number in range(3):
            state, _ = problem.update(state, problem.batch(0, number, 16), 0.05)
        accuracies.append([int(state.step), *(float(jnp.sum(p)) for p in jax.tree.leaves(state.params))])
        assert 0 <= problem.evaluate(state) <= 1
    assert accuracies[0] == pytest.approx(accuracies[1])


def test_the_decay_of_the_second_moment_follows_the_batch():
    assert TrainConfig(optimizer="adamw").second_moment_decay == 0.999
    for size, split, decay in ((1024, 1, 0.999**4), (64, 1, 0.999**0.25), (1024, 4, 0.999), (10**6, 1, 0.9)):
        auto = TrainConfig(optimizer="adamw", b2="auto", batch_size=size, backwards_per_forward=split)
        assert auto.second_moment_decay == pytest.approx(decay)


def test_the_length_of_adams_steps_stays_right_where_the_batch_changes():
    """With a constant gradient every step is as long as the rate, also of a smaller batch at the end of an epoch."""
    config = TrainConfig(optimizer="adamw", b2="auto", batch_size=4096, weight_decay=0.0)
    params, grads = {"w": jnp.zeros(3)}, {"w": jnp.full(3, 2.0)}
    state = make_optimizer(config, lambda step: 0.5).init(params)
    for size in (4096, 4096, 4096, 64, 4096):
        updates, state = make_optimizer(config, lambda step: 0.5, size).update(grads, state, params)
        np.testing.assert_allclose(updates["w"], -0.5, rtol=1e-5)


def test_norms_whose_statistics_cannot_be_computed_are_refused_before_training(tmp_path, tiny_data):
    own = TINY | {"model": "tests.own:own_norm", "num_devices": 1, "epochs": 1, "workdir": str(tmp_path / "run")}
    with pytest.raises(UsageError, match="the model keeps batch_stats of norms of its own"):
        train(TrainConfig(**own, average_weights=100))
    assert not (tmp_path / "run" / "metrics.jsonl").exists() and tiny_data.train.size == 64
    # Without an average it trains, and its statistics are not compared with others.
    own["workdir"] = str(tmp_path / "plain")
    assert train(TrainConfig(**own), check_statistics=True).recalibrated is None


def test_the_data_of_an_average_must_be_at_hand(tmp_path, tiny_data):
    workdir = str(tmp_path / "run")
    own = TINY | {"num_devices": 1, "dataset": "tests.own:dataset", "average_weights": 99}
    train(TrainConfig(**own, workdir=workdir))
    with pytest.raises(UsageError, match=r"made by the function tests\.own:dataset, which is not run on the word of"):
        restore(workdir, num_devices=1, model=TINY["model"], dataset="digits")
    assert restore(workdir, num_devices=1, model=TINY["model"], dataset="tests.own:dataset").data is tiny_data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "schedule_free"}, "does not take --schedule=cosine; give --schedule=constant"),
        (FREE | {"momentum": 0.0}, "--momentum, which must be above 0, not 0"),
        (FREE | {"batch_ramp": "auto"}, "would hardly count; leave out --batch_ramp=auto"),
        (FREE | {"average_weights": 100}, "averages its steps itself, and is evaluated there; leave out --average_w"),
        ({"optimizer": "lbfgs", "average_weights": 100}, "an average would undo; leave out --average_weights=100"),
        ({"b2": "most"}, "unknown b2 'most'"),
        ({"b2": 1.0}, "--b2 must be at least 0 and less than 1, not 1"),
        ({"average_weights": 0}, "--average_weights must be at least 1"),
        ({"problem": "tests.own_problems:line", "average_weights": 9}, "--average_weights changes nothing with --prob"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig(**options)
