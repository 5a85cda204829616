"""The gradient taken outside of what binds the axis: through jit, checkpoint, scan, cond, and Flax's own of these."""

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from allpairspy import AllPairs
from flax import nnx

import batchnorm_jax
import batchnorm_jax.linen
import batchnorm_jax.nnx
from batchnorm_jax import batch_norm
from tests import reference
from tests.parity import EPSILON, draw, mask_of
from tests.transforms import OUTSIDE, TRANSFORMS

DEVICES, BATCH = 4, 3
leaky = jax.nn.leaky_relu
# Options of batch_norm, the arrays it is given besides, and the same on one device.
VARIANTS = {
    "plain": ({}, ""),
    "mask": ({}, "mask"),
    "shift": ({}, "shift"),
    "all_gather": ({"collective": "all_gather"}, "mask"),
    "span": ({"span": BATCH}, ""),
    "span over devices": ({"span": 2 * BATCH}, ""),
    "relu, residual": ({"activation": jax.nn.relu}, "residual shift"),
    "tanh, residual": ({"activation": jnp.tanh}, "residual mask"),
    "kept output": ({"save_for_backward": "output", "activation": leaky}, "shift"),
}
BINDING = [name for name, transform in TRANSFORMS.items() if not transform.whole]
CASES = [tuple(c) for c in AllPairs([BINDING, list(OUTSIDE), list(VARIANTS)])]


def losses(variant, transform, outside):
    """The loss of (x, scale, bias) over the devices of a transform, seen from outside; and that on one device."""
    options, extra = VARIANTS[variant]
    shape = (DEVICES, BATCH, 2, 5)
    x, w, scale, bias = draw(1, shape, (5,), "float64")
    residual = draw(2, shape, (5,), "float64")[0]
    mask = jnp.asarray(mask_of("ragged", shape))
    shift = jnp.array([0.9, jnp.nan, 1e4, 1.2, 0.0])

    def local(axis_name, sharded, replicated):
        x, w, residual, mask = sharded
        arrays = {"residual": residual, "mask": mask}
        arrays = {name: array for name, array in arrays.items() if name in extra}
        arrays |= {"shift": shift} if "shift" in extra else {}
        y, moments = batch_norm(x, *replicated, axis_name=axis_name, epsilon=EPSILON, **options, **arrays)
        # The moments are differentiated too, and told by every device.
        return jnp.sin(y) * w, (jnp.exp(-moments.var) + jnp.cos(moments.mean)) * jnp.ones_like(x, shape=(5,))

    def over_devices(x, scale, bias):
        given = [x, w, residual, mask], [scale, bias]
        terms, of_moments = TRANSFORMS[transform].wrap(local, DEVICES)(*given)
        return jnp.sum(terms) + jnp.sum(of_moments) / DEVICES

    def on_one(x, scale, bias):
        flat = [a.reshape(-1, *a.shape[2:]) for a in (x, w, residual, mask)]
        terms, of_moments = local(None, flat, [scale, bias])
        return jnp.sum(terms) + jnp.sum(of_moments)

    return OUTSIDE[outside](over_devices), on_one, (x, scale, bias), w


@pytest.mark.parametrize(("transform", "outside", "variant"), CASES)
def test_the_gradient_is_that_of_one_device(transform, outside, variant, x64):
    got, want, arguments, _ = losses(variant, transform, outside)
    # Operation by operation would be hundreds of programs to compile.
    got, want = (jax.jit(jax.grad(loss, (0, 1, 2)))(*arguments) for loss in (got, want))
    for a, b in zip(got, want, strict=True):
        assert reference.normwise_error(a, b) < 1e-10


@pytest.mark.parametrize(
    ("variant", "outside"), list(zip(VARIANTS, itertools.cycle(["scan", "jit of checkpoint"]), strict=False))
)
def test_so_are_second_derivatives(outside, variant, x64):
    """Forward over reverse and reverse over reverse, with an axis of vmap; the two ways in turn over the variants."""
    got, want, (x, *parameters), w = losses(variant, "vmap", outside)

    @partial(jax.jit, static_argnums=0)
    def products(loss):
        gradient = jax.grad(lambda x: loss(x, *parameters))
        return jax.jvp(gradient, (x,), (w,))[1], jax.grad(lambda x: jnp.vdot(gradient(x), w))(x)

    for a, b in zip(products(got), products(want), strict=True):
        assert reference.normwise_error(a, b) < 1e-9


class Layer(nn.Module):
    """A dense layer and a norm over the axis."""

    norm: object

    @nn.compact
    def __call__(self, x, _=None):
        x = nn.Dense(5, use_bias=False)(x)
        return self.norm(use_running_average=False, momentum=0.9)(x), None


LIFTED = {
    "plain": Layer,
    "nn.remat": nn.remat(Layer),
    "nn.remat, inputs kept": nn.remat(Layer, policy=batchnorm_jax.save_norm_inputs),
    "nn.scan": nn.scan(Layer, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=2),
    "nn.scan of nn.remat": nn.scan(
        nn.remat(Layer, prevent_cse=False),
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=2,
    ),
}


@pytest.mark.parametrize("lifted", LIFTED)
def test_lifted_layers_of_linen(lifted):
    """Against Flax's layer, whose collectives are plain JAX too."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(12, 5)), jnp.float32)

    def gradient(kind):
        # Initialised without the axis, and used within it.
        variables = LIFTED[lifted](kind).init(jax.random.key(0), x)
        model = LIFTED[lifted](lambda **options: kind(axis_name="b", name="norm", **options))
        variables = jax.tree_util.tree_map(lambda a: a, _renamed(variables))

        def loss(params, x):
            def one(x):
                (y, _), _ = model.apply({**variables, "params": params}, x, mutable=["batch_stats"])
                return jnp.sin(y)

            return jnp.sum(jax.vmap(one, axis_name="b")(x) * jnp.arange(60.0).reshape(12, 5))

        return jax.grad(jax.jit(loss), (0, 1))(variables["params"], x)

    got, want = gradient(batchnorm_jax.linen.BatchNorm), gradient(nn.BatchNorm)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert reference.normwise_error(a, b) < 1e-4


def _renamed(variables):
    return {
        kind: {("norm" if name == "BatchNorm_0" else name): value for name, value in tree.items()}
        for kind, tree in variables.items()
    }


@pytest.mark.parametrize("around", ["nnx.jit", "nnx.remat", "nnx.jit of nnx.remat"])
def test_lifted_layers_of_nnx(around):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(12, 5)), jnp.float32)
    wrap = {"nnx.jit": nnx.jit, "nnx.remat": nnx.remat, "nnx.jit of nnx.remat": lambda f: nnx.jit(nnx.remat(f))}[around]

    def gradient(kind):
        norm = kind(5, rngs=nnx.Rngs(0), axis_name="b")

        @wrap
        def apply(norm, x):
            mapped = nnx.vmap(lambda norm, x: norm(x), in_axes=(None, 0), axis_name="b")
            return jnp.sum(jnp.sin(mapped(norm, x)) * jnp.arange(60.0).reshape(12, 5))

        return nnx.grad(apply, argnums=(0, 1))(norm, x)

    got, want = gradient(batchnorm_jax.nnx.BatchNorm), gradient(nnx.BatchNorm)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert reference.normwise_error(a, b) < 1e-4


@pytest.mark.parametrize("outside", ["plain", "jit"])
def test_statistics_of_each_call_alone(outside):
    """With no axis name, mapped by vmap, and with the mapped array or with another one differentiated."""
    r = np.random.default_rng(0)
    x, residual = (jnp.asarray(r.normal(size=(4, 6, 3)), jnp.float32) for _ in range(2))
    mask = jnp.asarray(r.random((4, 6, 1)) < 0.7)
    shift, scale = jnp.asarray(r.normal(size=(4, 3)), jnp.float32), jnp.arange(1.0, 4.0)

    # One example of each argument is mapped, and the others are not.
    for mapped in range(4):
        arguments = [x, residual, mask, shift]
        in_axes = [0 if i == mapped else None for i in range(4)]
        given = [a if i == mapped else a[0] for i, a in enumerate(arguments)]

        def one(x, residual, mask, shift, scale):
            return jnp.sin(batch_norm(x, scale, mask=mask, residual=residual, shift=shift, activation=jnp.tanh)[0])

        def loss(x, residual, scale, given=given, in_axes=in_axes):
            return jnp.sum(jax.vmap(one, (*in_axes, None))(x, residual, *given[2:], scale))

        def in_turn(x, residual, scale, mapped=mapped, given=given):
            total = 0.0
            for i in range(4):
                turn = [a[i] if j == mapped else a for j, a in enumerate([x, residual, *given[2:]])]
                total = total + jnp.sum(one(*turn, scale))
            return total

        got = jax.jit(jax.grad(OUTSIDE[outside](loss), (0, 1, 2)))(*given[:2], scale)
        want = jax.jit(jax.grad(in_turn, (0, 1, 2)))(*given[:2], scale)
        for a, b in zip(got, want, strict=True):
            assert reference.normwise_error(a, b) < 1e-5, mapped
