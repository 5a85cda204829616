"""The arrays that a checkpointed part of a network keeps for its backward pass, under the policy of the library."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from batchnorm_jax import batch_norm, save_norm_inputs
from batchnorm_jax.linen import BatchNorm
from experiments.models.resnet import ResNet, plain
from tests.rig import UNOPTIMISED

SHAPE = (16, 5)


def stage(save_for_backward):
    """Two dense layers, each with a norm and a ReLU; of the second norm `save_for_backward` is given."""

    def apply(kernels, x):
        for kernel, save in zip(kernels, ("input", save_for_backward), strict=True):
            x = jax.nn.relu(batch_norm(x @ kernel, save_for_backward=save)[0])
        return x

    return apply


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    kernels = jnp.asarray(rng.normal(size=(2, 5, 5)), jnp.float32)
    return kernels, jnp.asarray(rng.normal(size=SHAPE), jnp.float32)


def kept(function, *arguments, capsys):
    """How many arrays of the shape of a layer's output the backward pass is given, without the arguments."""
    print_saved_residuals(lambda *a: jnp.sum(function(*a)), *arguments)
    lines = capsys.readouterr().out.splitlines()
    return sum(bool(re.match(r"f32\[16,5\]", line)) and "from the argument" not in line for line in lines)


def test_a_norm_that_saves_nothing_keeps_nothing_under_the_policy(arrays, capsys):
    counts = {
        save: kept(jax.checkpoint(stage(save), policy=save_norm_inputs), *arrays, capsys=capsys)
        for save in ("input", "nothing")
    }
    assert counts == {"input": 2, "nothing": 1}


def test_a_norm_that_saves_nothing_has_the_same_result_and_gradient(arrays):
    def loss(apply):
        return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(apply(*a))), (0, 1)))(*arrays)

    want = loss(stage("input"))
    for apply in (stage("nothing"), jax.checkpoint(stage("nothing"), policy=save_norm_inputs)):
        got = loss(apply)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_last_norms_and_shortcuts_of_a_residual_network_in_parts_save_nothing(capsys):
    """Two parts, with seven norms and the one of a shortcut: three of the eight need not keep their input."""
    model = ResNet((2, 1), False, 2, plain(BatchNorm), width=4, part_policy=save_norm_inputs)
    images = jnp.ones((2, 8, 8, 3))
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), variables)

    def loss(params):
        return jnp.sum(model.apply({**zeros, "params": params}, images, train=True, mutable=["batch_stats"])[0])

    print_saved_residuals(loss, zeros["params"])
    inputs = r"f32\[\d+,\d+,\d+,\d+\] output of jitted function 'normalize_by_batch'"
    assert len(re.findall(inputs, capsys.readouterr().out)) == 5


def test_a_residual_network_in_parts_has_the_same_parameters_and_gradient():
    """In parts of a stem and two blocks, and of one block with a shortcut of its own."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
    sizes = {"stage_sizes": (2, 1), "bottleneck": False, "num_classes": 2, "width": 4, "zero_last_scale": False}

    def outcome(**options):
        model = ResNet(**sizes, norm=plain(BatchNorm), **options)
        variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)

        def loss(params):
            logits, updates = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(logits)), updates

        return variables, *jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=UNOPTIMISED)(
            variables["params"]
        )

    got, want = outcome(part_policy=save_norm_inputs), outcome()
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
