"""Models of the user's own through the trainer: other signatures train, and wrong ones are refused in a sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import models
from experiments._errors import UsageError
from experiments.training.config.options import TrainConfig
from experiments.training.evaluation.population import population
from experiments.training.recipe import optimizers
from tests import rig, users

PLAIN = {"batch_size": 16, "learning_rate": 0.05, "warmup_epochs": 0, "epochs": 5}


@pytest.mark.parametrize("name", users.WORK)
def test_models_of_other_signatures_train_as_they_are(name):
    """On two devices, to a lower loss; their statistics are the batch's over both, and can be recalibrated."""
    config, dataset = TrainConfig(**PLAIN, model=f"tests.users:{name}"), rig.tiny()
    state, rows = rig.first_steps(config, dataset, 16, 2)
    assert np.mean([r["loss"] for r in rows[-4:]]) < 0.8 * rows[0]["loss"]
    own = users.WORK[name](dataset.num_classes)
    made = jax.eval_shape(
        lambda: own.init(
            {"params": jax.random.key(0), "dropout": jax.random.key(0)}, jnp.ones((1, 8, 8, 1)), **call(name)
        )
    )
    assert jax.tree.structure(state.params) == jax.tree.structure(jax.tree.map(lambda a: 0, nn_unboxed(made["params"])))
    if state.batch_stats:
        run = rig.run_of(config, dataset, 2)
        placed = jax.device_put(state, jax.tree.leaves(run.state)[0].sharding)
        exact = population(run.model, run.recipe, run.mesh, dataset.train, mode="pooled")(placed)
        assert jax.tree.structure(exact) == jax.tree.structure(state.batch_stats)
        (var,) = [a for path, a in jax.tree.leaves_with_path(state.batch_stats) if path[-1].key == "var"]
        (whole,) = [a for path, a in jax.tree.leaves_with_path(exact) if path[-1].key == "var"]
        # A norm that does not pool would have the mean of two devices' variances; with momentum it would lag.
        np.testing.assert_allclose(var, whole, rtol=0.5)


def call(name):
    return {"dropped": {"deterministic": True}, "listed": {"train": False}}.get(name, {})


def nn_unboxed(tree):
    return users.nn.meta.unbox(tree)


@pytest.mark.parametrize("name", ["flax", "ours", "Spectral", "Recurrent"])
def test_norms_of_a_models_own_are_pooled_over_the_devices(x64, name):
    """Steps on one device equal those on four."""
    config = TrainConfig(**PLAIN, model=f"tests.users:{name}")
    one, rows = rig.first_steps(config, rig.tiny(), 4, 1, jnp.float64)
    four, others = rig.first_steps(config, rig.tiny(), 4, 4, jnp.float64)
    np.testing.assert_allclose([r["loss"] for r in rows], [r["loss"] for r in others], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", users.REFUSED)
def test_a_wrong_model_is_refused_in_a_sentence_before_anything_is_compiled(name):
    with pytest.raises(UsageError, match=rf"(?s){users.REFUSED[name]}") as raised:
        rig.run_of(TrainConfig(**PLAIN, model=f"tests.users:{name}"), rig.tiny(), 2)
    said = str(raised.value).split("\n")
    assert len(said[0]) < 600 and (f"--model=tests.users:{name}" in said[0] or name == "copied_norm")
    assert all("experiments/" not in line and "site-packages" not in line for line in said[1:])


def test_what_goes_with_a_norm_of_its_own_alone_is_refused():
    with pytest.raises(UsageError, match=r"--norm=group does not reach the norms .* \(bn_init\)"):
        rig.run_of(TrainConfig(**PLAIN, model="tests.users:flax", norm="group"), rig.tiny(), 2)
    with pytest.raises(UsageError, match="a padded batch needs a model whose call takes mask"):
        rig.run_of(TrainConfig(**PLAIN, model="tests.users:flax", drop_remainder=False), rig.tiny(examples=66), 2)


def test_a_model_of_the_usual_signature_is_not_wrapped():
    made = models.create("tests.own:model", num_classes=3, norm=None, dtype=jnp.float32)
    assert type(made).__name__ == "Model"


def test_kernels_are_found_by_name_wherever_they_are():
    boxed = {"dense": {"kernel": users.nn.Partitioned(jnp.ones((2, 2)), (None, None)), "bias": jnp.ones(2)}}
    assert jax.tree.leaves(optimizers.kernels(boxed)) == [False, True]
    assert jax.tree.leaves(optimizers.kernels({"ws": [1.0, 2.0], "kernel": [3.0]})) == [True, False, False]
