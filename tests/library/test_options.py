"""Options that cannot be meant are refused where they are given; those of other libraries are answered with ours."""

import importlib.util
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import batchnorm_jax
from batchnorm_jax import Moments, NegativeScaleWarning, batch_norm, linen, pool, update_running
from batchnorm_jax import nnx as ours_nnx

MOMENTS = Moments(jnp.zeros(3), jnp.ones(3), jnp.asarray(8.0))
X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
PLACES = {
    "linen": lambda **given: linen.BatchNorm(**given),
    "linen, renormalized": lambda **given: linen.BatchRenorm(**given),
    "nnx": lambda **given: ours_nnx.BatchNorm(3, rngs=nnx.Rngs(0), **given),
    "nnx, renormalized": lambda **given: ours_nnx.BatchRenorm(3, rngs=nnx.Rngs(0), **given),
}
TAKING_MOMENTUM = {
    **PLACES,
    "function": lambda **given: update_running(jnp.zeros(3), jnp.ones(3), MOMENTS, **given),
    "synchronize": lambda **given: linen.synchronize(None, **given).__enter__(),
    "synchronize of nnx": lambda **given: ours_nnx.synchronize(
        nnx.BatchNorm(3, rngs=nnx.Rngs(0)), axis_name=None, **given
    ),
}


@pytest.mark.parametrize("momentum", [-0.1, 1.5, 2, float("nan"), float("inf"), "0.9", True])
@pytest.mark.parametrize("place", TAKING_MOMENTUM)
def test_a_momentum_is_a_share(place, momentum):
    with pytest.raises(ValueError, match=r"momentum=.* must be a number of 0 to 1.*PyTorch"):
        TAKING_MOMENTUM[place](momentum=momentum)


@pytest.mark.parametrize("place", TAKING_MOMENTUM)
def test_no_momentum_points_to_recalibrate(place):
    with pytest.raises(ValueError, match=r"momentum=None, .*recalibrate"):
        TAKING_MOMENTUM[place](momentum=None)


@pytest.mark.parametrize("momentum", [0, 1, 0.5, np.float32(0.9), jnp.float32(0.9)], ids=repr)
def test_what_is_a_share_is_taken(momentum):
    for place in PLACES.values():
        place(momentum=momentum)
    jax.jit(lambda m: update_running(jnp.zeros(3), jnp.ones(3), MOMENTS, momentum=m))(momentum)


TAKING_EPSILON = {
    **PLACES,
    "batch_norm": lambda **given: batch_norm(X, **given),
    "batch_renorm": lambda **given: batchnorm_jax.batch_renorm(X, jnp.zeros(3), jnp.ones(3), **given),
    "normalize": lambda **given: batchnorm_jax.normalize(X, jnp.zeros(3), jnp.ones(3), **given),
    "fold": lambda **given: batchnorm_jax.fold(jnp.ones((2, 3)), None, jnp.zeros(3), jnp.ones(3), **given),
}


@pytest.mark.parametrize("epsilon", [None, -1e-5, float("nan"), "1e-5", np.float32(-1), jnp.ones(2), 1j, True], ids=str)
@pytest.mark.parametrize("place", TAKING_EPSILON)
def test_an_epsilon_is_at_least_0(place, epsilon):
    with pytest.raises(ValueError, match=r"^\w+: epsilon=.* must be a number of at least 0"):
        TAKING_EPSILON[place](epsilon=epsilon)


@pytest.mark.parametrize("place", TAKING_EPSILON)
def test_an_epsilon_of_0_is_taken(place):
    TAKING_EPSILON[place](epsilon=0)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("eps", "here it is epsilon"),
        ("warmup_steps", "here it is r_max and d_max of BatchRenorm, which may be functions"),
        ("track_running_stats", "here it is use_running_average=False with update_stats=False"),
        ("virtual_batch_size", "here it is span"),
        ("momentun", "did you mean momentum"),
        ("zzz", "options are "),
    ],
)
@pytest.mark.parametrize("place", PLACES)
def test_a_peers_option_is_answered_with_ours(place, name, answer):
    with pytest.raises(TypeError, match=rf"Batch(Re)?[nN]orm: there is no option '{name}'; {answer}"):
        PLACES[place](**{name: 1})


def test_pooled_counts_do_not_overflow():
    moments = Moments(jnp.zeros((3, 2)), jnp.ones((3, 2)), jnp.full(3, 2**31 - 1, jnp.int32))
    np.testing.assert_allclose(pool(moments).count, 3 * 2.0**31, rtol=1e-6)


@pytest.mark.parametrize("evaluating", [True, False])
def test_a_negative_scale_of_a_layer_that_keeps_its_output_is_told_of(evaluating):
    options = {"use_running_average": evaluating, "save_for_backward": "output"}
    module = linen.BatchNorm(**options)
    variables = module.init(jax.random.key(0), X)
    variables["params"]["scale"] = jnp.array([1.2, -0.8, 0.5])
    with pytest.warns(NegativeScaleWarning, match=r"applies \|scale\|.*1 of 3 scales are negative.*evaluate and train"):
        module.apply(variables, X, mutable=["batch_stats"])
    norm = ours_nnx.BatchNorm(3, rngs=nnx.Rngs(0), **options)
    norm.scale.set_value(variables["params"]["scale"])
    with pytest.warns(NegativeScaleWarning, match="1 of 3"):
        norm(X)
    model = nn.Sequential([nn.Dense(3), module])
    of_model = model.init(jax.random.key(0), X)
    of_model["params"]["layers_1"] = variables["params"]
    if evaluating:
        with pytest.warns(NegativeScaleWarning, match="1 of 3"):
            linen.fold(model, of_model, None, X)


@pytest.mark.parametrize("recalibrate", ["linen", "nnx"])
def test_pairs_in_place_of_batches_are_told_of(recalibrate):
    batches = [(X, jnp.zeros(8, int))]
    model, norm = nn.BatchNorm(use_running_average=True), nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    call = {
        "linen": lambda: linen.recalibrate(model, model.init(jax.random.key(0), X), batches),
        "nnx": lambda: ours_nnx.recalibrate(norm, batches),
    }[recalibrate]
    with pytest.raises(ValueError, match=r"this one is a tuple of 2, .*\[images for images, _ in batches\]"):
        call()


def test_an_axis_that_is_not_bound_is_told_beside_those_that_are():
    with pytest.raises(ValueError, match=r"axis_name='bacth' is not bound here \(bound here: 'batch'\)"):
        jax.vmap(lambda x: batch_norm(x, axis_name="bacth")[0], axis_name="batch")(X[None])


def test_the_packages_are_imported_when_asked_for():
    program = (
        "import sys, batchnorm_jax; assert not any(n.split('.')[0] == 'flax' for n in sys.modules); "
        "batchnorm_jax.linen.BatchNorm, batchnorm_jax.nnx.BatchNorm, batchnorm_jax.torch_interop.from_torch"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    with pytest.raises(AttributeError, match=r"take batchnorm_jax.linen.BatchNorm or"):
        batchnorm_jax.BatchNorm  # noqa: B018
    assert {"linen", "nnx", "batch_norm"} <= set(dir(batchnorm_jax))


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("batch_size", "scipy", "batch-size"), ("linen", "flax", "flax"), ("nnx", "flax", "flax")],
)
def test_a_missing_package_is_told_with_its_extra(monkeypatch, module, package, extra):
    name = f"batchnorm_jax.{module}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(batchnorm_jax, module, raising=False)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == package else found(asked))
    says = f"{name} needs {package}, which is not installed: pip install 'batchnorm_jax[{extra}]'"
    with pytest.raises(ModuleNotFoundError, match=re.escape(says)) as caught:
        importlib.import_module(name)
    assert caught.value.name == package
