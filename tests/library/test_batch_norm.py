"""batch_norm: derivatives, collectives, residuals, options. Its values: test_parity.py; its errors: test_errors.py."""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from batchnorm_jax import batch_norm
from experiments.compiled import hlo
from tests import reference
from tests.parity import EPSILON, draw, mask_of
from tests.transforms import AXIS, TRANSFORMS, make_mesh

leaky = jax.nn.leaky_relu
# Every way to call it whose derivatives are checked: the options, and whether there is a mask or a residual.
OPTIONS = {
    "plain": ({}, ""),
    "mask": ({}, "mask"),
    "all_gather": ({"collective": "all_gather"}, "mask"),
    "span": ({"span": 3}, ""),
    "span and mask": ({"span": 3}, "mask"),
    "relu": ({"activation": jax.nn.relu}, ""),
    "relu, residual": ({"activation": jax.nn.relu}, "residual mask"),
    "gelu, residual": ({"activation": jax.nn.gelu}, "residual"),
    "residual": ({}, "residual"),
    "kept output": ({"save_for_backward": "output"}, ""),
    "kept output, leaky_relu": ({"save_for_backward": "output", "activation": leaky}, "mask"),
    "kept output, elu": ({"save_for_backward": "output", "activation": jax.nn.elu}, ""),
    "kept output, slope 0.2": ({"save_for_backward": "output", "activation": partial(leaky, negative_slope=0.2)}, ""),
}


def call(variant, given, x, scale, bias, residual):
    options, extra = OPTIONS[variant]
    mask = mask_of("ragged", (1, *x.shape))[0] if "mask" in extra else None
    residual = residual if "residual" in extra else None
    return batch_norm(x, scale, bias, mask=mask, residual=residual, **options, **given)


@pytest.mark.parametrize("variant", OPTIONS)
def test_derivatives_of_every_order_and_mode(variant, x64):
    """Forward and reverse, twice, against finite differences; the moments' derivatives too."""
    r = np.random.default_rng(6)
    x, scale, bias, residual = (
        r.normal(size=(6, 2, 3)),
        r.uniform(0.5, 1.5, 3),
        r.normal(size=3),
        r.normal(size=(6, 2, 3)),
    )

    @jax.jit  # Operation by operation would be hundreds of programs to compile.
    def function(x, scale, bias, residual):
        y, moments = call(variant, {"epsilon": EPSILON}, x, scale, bias, residual)
        return y, moments.mean, moments.var

    check_grads(function, (x, scale, bias, residual), order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5, eps=1e-6)


@pytest.mark.parametrize("variant", OPTIONS)
def test_jit_and_the_plain_formula_agree(variant, x64):
    """The value and gradients of the formula written down plainly, left to JAX to differentiate."""
    x, w, scale, bias = draw(8, (6, 2, 3), (3,), "float64")
    residual = draw(9, (6, 2, 3), (3,), "float64")[0]
    options, extra = OPTIONS[variant]
    m = jnp.asarray(mask_of("ragged", (1, *x.shape))[0] if "mask" in extra else np.ones((6, 1, 1), bool))
    spans = 6 // options.get("span", 6)

    def plain(x, scale, bias, residual):
        cut = lambda a: jnp.broadcast_to(a, x.shape).reshape(spans, -1, 3)  # noqa: E731
        mean = jnp.mean(cut(x), 1, keepdims=True, where=cut(m))
        var = jnp.mean((cut(x) - mean) ** 2, 1, keepdims=True, where=cut(m))
        x_hat = ((cut(x) - mean) / jnp.sqrt(var + EPSILON)).reshape(x.shape)
        y = x_hat * scale[None, None] + bias[None, None] + (residual if "residual" in extra else 0)
        return jnp.sum(w * options.get("activation", lambda y: y)(y))

    def ours(x, scale, bias, residual):
        floor = 1e-5 if "save_for_backward" in options else 0
        return jnp.sum(w * call(variant, {"epsilon": EPSILON}, x, scale - floor, bias, residual)[0])

    arguments = (x, scale, bias, residual)
    want, got = (jax.value_and_grad(f, (0, 1, 2, 3))(*arguments) for f in (plain, jax.jit(ours)))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert reference.normwise_error(a, b) < 1e-9 or np.max(np.abs(b)) == 0


@pytest.mark.parametrize("variant", OPTIONS)
def test_hessian_vector_products_agree(variant, x64):
    x, w, scale, bias = draw(8, (6, 4), (4,), "float64")
    residual = draw(9, (6, 4), (4,), "float64")[0]

    def loss(x):
        return jnp.sum(jnp.sin(call(variant, {}, x, scale, bias, residual)[0]) * w)

    @jax.jit
    def products(x):
        forward_over_reverse = jax.jvp(jax.grad(loss), (x,), (w,))[1]
        reverse_over_reverse = jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), w))(x)
        reverse_over_forward = jax.grad(lambda x: jax.jvp(loss, (x,), (w,))[1])(x)
        return forward_over_reverse, reverse_over_reverse, reverse_over_forward

    forward_over_reverse, reverse_over_reverse, reverse_over_forward = products(x)
    assert reference.normwise_error(forward_over_reverse, reverse_over_reverse) < 1e-8
    assert reference.normwise_error(forward_over_reverse, reverse_over_forward) < 1e-8


@pytest.mark.parametrize("variant", OPTIONS)
@pytest.mark.parametrize("x", [np.ones((6, 3)), np.full((3, 3), 2.0), np.zeros((6, 3))], ids=["ones", "twos", "zeros"])
def test_finite_gradients_at_zero_variance(variant, x):
    x = jnp.asarray(x, jnp.float32)
    grads = jax.jit(jax.grad(lambda x, s: jnp.sum(call(variant, {}, x, s, s, x)[0] ** 2), (0, 1)))(x, jnp.ones(3))
    assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("collective", ["psum", "all_gather"])
def test_one_example_a_device_is_finite(transform, collective):
    def local(axis_name, sharded, replicated):
        def loss(x, scale):
            return jnp.sum(batch_norm(x, scale, axis_name=axis_name, collective=collective)[0] ** 2)

        value, (dx, dscale) = jax.value_and_grad(loss, (0, 1))(*sharded, *replicated)
        return dx, (value, dscale)

    dx, (value, dscale) = TRANSFORMS[transform].run(local, [jnp.full((8, 1, 3), 5.0)], [jnp.ones(3)])
    assert np.isfinite(dx).all() and np.isfinite(value).all() and np.isfinite(dscale).all()


def test_masked_positions_may_hold_nan():
    x = jnp.array([[1.0], [3.0], [jnp.nan]])
    mask = jnp.array([[True], [True], [False]])
    for collective in ("psum", "all_gather"):
        _, moments = batch_norm(x, mask=mask, collective=collective)
        assert moments.mean.item() == 2.0 and moments.var.item() == 1.0 and moments.count.item() == 2.0


@pytest.mark.parametrize("activation", [None, jax.nn.relu, jax.nn.gelu, jax.nn.silu, jax.nn.elu, jnp.tanh])
def test_nor_do_gradients_see_a_masked_nan(activation):
    """As long as the loss does not."""
    x, mask = jnp.array([[1.0], [3.0], [4.0], [jnp.nan]]), jnp.array([[True], [True], [True], [False]])

    def loss(x, scale, mask=None):
        y, _ = batch_norm(x, scale, mask=mask, activation=activation)
        return jnp.sum((y if mask is None else jnp.where(mask, y, 0)) ** 3)

    got = jax.grad(loss, (0, 1))(x, jnp.ones(1), mask)
    want = jax.grad(loss, (0, 1))(x[:3], jnp.ones(1))
    np.testing.assert_allclose(got[0], np.append(want[0], [[0.0]], axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5)
    assert jnp.abs(want[0]).max() > 0.1


def test_a_nan_in_one_group_stays_there():
    """Where grouped sums are built from an ungrouped one, too."""
    x = jnp.ones((8, 2, 3)).at[0, 0, 0].set(jnp.nan)
    for name, transform in TRANSFORMS.items():
        if not transform.has_groups:
            continue

        def local(axis_name, sharded, replicated):
            y, moments = batch_norm(sharded[0], axis_name=axis_name, axis_index_groups=[[0, 1, 2, 3], [4, 5, 6, 7]])
            return y, moments.mean

        y, mean = transform.run(local, [x], [])
        assert np.isnan(mean[:4, 0]).all(), name
        assert np.isfinite(mean[4:]).all() and np.isfinite(y[4:]).all(), name


# One layer's train step: how many numbers each collective moves, forward and backward, for 16 features on 8 devices.
C = 16
ONE_EACH = [("all-reduce", 2 * C, False), ("all-reduce", 2 * C, True)]
MASKED = [("all-reduce", 2 * C + 1, False), ("all-reduce", 2 * C, True)]
GROUPS = {"axis_index_groups": [[0, 1, 2, 3], [4, 5, 6, 7]]}
# About a shift, and about 0.
SHIFTED = [("all-reduce", 4 * C, False), ("all-reduce", 2 * C, True)]
SHIFTED_AND_MASKED = [("all-reduce", 4 * C + 1, False), ("all-reduce", 2 * C, True)]
MAPPED = ("pmap", "shard_map", "shard_map_unchecked", "shard_map_two_axes", "jit", "jit_explicit")
# A row for each of the two groups, and one for the parameters' gradients.
ROWS = [("all-reduce", 2 * 2 * C, False), ("all-reduce", 3 * 2 * C, True)]
COMPILED = {
    **{(t, "plain"): ({}, ONE_EACH) for t in MAPPED},
    **{(t, "mask"): ({}, MASKED) for t in MAPPED},
    **{(t, "shift"): ({}, SHIFTED) for t in MAPPED},
    **{(t, "shift, mask"): ({}, SHIFTED_AND_MASKED) for t in MAPPED},
    **{(t, "varying parameters"): ({}, SHIFTED) for t in ("shard_map", "shard_map_unchecked", "shard_map_two_axes")},
    ("shard_map", "relu, residual"): ({"activation": jax.nn.relu}, ONE_EACH),
    ("vmap", "plain"): ({}, []),
    ("one_device", "plain"): ({}, []),
    ("pmap", "groups"): (GROUPS, ONE_EACH),
    ("shard_map_unchecked", "groups"): (GROUPS, ONE_EACH),
    ("shard_map", "groups"): (GROUPS, ROWS),
    ("pmap", "all_gather"): ({"collective": "all_gather"}, [("all-gather", 8 * 3 * C, False), ONE_EACH[1]]),
    ("shard_map", "all_gather"): ({"collective": "all_gather"}, [("all-gather", 8 * 3 * C, False), ONE_EACH[1]]),
    ("jit", "all_gather"): (
        {"collective": "all_gather"},
        [("all-reduce", C, False), ("all-reduce", 2 * C, False), ONE_EACH[1]],
    ),
    ("pmap", "span inside"): ({"span": 2}, []),
    ("shard_map", "span inside"): ({"span": 2}, [("all-reduce", 2 * C, True)]),
    ("shard_map", "span over all"): ({"span": 32}, ONE_EACH),
    ("shard_map_unchecked", "span over devices"): ({"span": 8}, ONE_EACH),
}


@pytest.mark.parametrize(("transform", "variant"), COMPILED)
def test_collectives_of_a_train_step(transform, variant):
    """Counted in compiled HLO, the gradients of x, scale and bias included, with their payloads."""
    options, want = COMPILED[transform, variant]
    x, w, scale, bias = draw(9, (8, 4, 3, 3, C), (C,), "float32")
    sharded = [x, w] + ([jnp.asarray(mask_of("ragged", x.shape))] if "mask" in variant else [])
    one = TRANSFORMS[transform]

    def local(axis_name, sharded, replicated):
        x, w, *mask = sharded
        scale, bias, shift = replicated
        arrays = {"residual": w} if "residual" in variant else {}
        if "shift" in variant or "varying" in variant:
            arrays["shift"] = shift
        if "varying" in variant:
            # As a trainer does that reduces gradients itself, later and all at once.
            scale, bias = (a + 0 * w.ravel()[0] for a in (scale, bias))

        def loss(x, scale, bias):
            y, _ = batch_norm(x, scale, bias, axis_name=axis_name, mask=mask[0] if mask else None, **options, **arrays)
            return jnp.sum(jnp.tanh(y) * w)

        dx, dscale, dbias = jax.grad(loss, (0, 1, 2))(x, scale, bias)
        return dx, (dscale, dbias)

    arguments = [a.reshape(-1, *a.shape[2:]) for a in sharded] if one.whole else sharded
    found = hlo.collectives(one.wrap(local, 8).lower(arguments, [scale, bias, bias]).compile())
    assert sorted(map(msgspec.structs.astuple, found)) == sorted(want)


def kept_for_backward(function, *arguments):
    """The arrays that `jax.vjp` keeps."""
    return jax.tree.leaves(jax.vjp(function, *arguments)[1])


RESIDUALS = {
    "plain": ({}, False, 2),
    "all_gather": ({"collective": "all_gather"}, False, 2),
    "relu": ({"activation": jax.nn.relu}, False, 2),
    "gelu": ({"activation": jax.nn.gelu}, False, 2),
    # y is what the next layer keeps anyway.
    "relu, residual": ({"activation": jax.nn.relu}, True, 4),
    "gelu, residual": ({"activation": jax.nn.gelu}, True, 4),
    "residual": ({}, True, 2),
    "kept output": ({"save_for_backward": "output"}, False, 2),
    "kept output, leaky_relu": ({"save_for_backward": "output", "activation": leaky}, False, 2),
}


@pytest.mark.parametrize("variant", RESIDUALS)
def test_what_the_backward_pass_keeps(variant):
    """Bytes per element for a bfloat16 input, and vectors of one number per feature."""
    options, has_residual, allowed = RESIDUALS[variant]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 8, 8, 16)), jnp.bfloat16)
    scale, bias = jnp.ones(16), jnp.zeros(16)

    def function(x, s, b, r):
        return batch_norm(x, s, b, residual=r if has_residual else None, dtype=jnp.bfloat16, **options)[0]

    kept = kept_for_backward(function, x, scale, bias, x + 1)
    assert sum(leaf.nbytes for leaf in kept) <= allowed * x.size + 12 * 4 * 16
    if "output" in variant:
        (large,) = (leaf for leaf in kept if leaf.size == x.size)
        np.testing.assert_array_equal(large, function(x, scale, bias, x))


def test_an_inverted_output_gives_the_gradients_of_a_kept_input():
    x, w, scale, bias = draw(3, (64, 4, 4, 8), (8,), "float32")
    for activation in (None, leaky, jax.nn.elu):

        def gradients(save, activation=activation):
            def loss(x, scale, bias):
                return jnp.sum(w * batch_norm(x, scale, bias, activation=activation, save_for_backward=save)[0])

            return jax.grad(loss, (0, 1, 2))(x, scale, bias)

        for got, want in zip(gradients("output"), gradients("input"), strict=True):
            assert reference.normwise_error(got, want) < 1e-4


@pytest.mark.filterwarnings("ignore::batchnorm_jax.NegativeScaleWarning")
def test_the_sign_of_a_negative_scale_is_dropped_where_the_output_is_kept():
    x, _, scale, bias = draw(4, (16, 3), (3,), "float32")
    kept = {"save_for_backward": "output"}
    np.testing.assert_array_equal(batch_norm(x, -scale, bias, **kept)[0], batch_norm(x, scale, bias, **kept)[0])


def test_a_replicated_input_under_a_varying_mask():
    mesh = make_mesh(8)
    x, mask = draw(11, (4, 3), (3,), "float32")[0], np.random.default_rng(0).random((32, 1)) < 0.7

    def loss(x, mask):
        return lax.psum(jnp.sum(jnp.sin(batch_norm(x, mask=mask, axis_name=AXIS)[0])), AXIS)

    split = jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P())(x, mask)
    whole = jax.grad(lambda x: jnp.sum(jnp.sin(batch_norm(jnp.tile(x, (8, 1)), mask=mask)[0])))(x)
    assert reference.normwise_error(split, whole) < 1e-5


def test_sharded_features_on_an_explicit_mesh():
    """With two feature axes, one of them cut over the mesh."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    x, w, scale, bias = draw(12, (8, 6, 4), (6, 4), "float32")

    def gradients(x, scale, bias):
        return jax.grad(lambda *a: jnp.sum(w * jnp.sin(batch_norm(*a, axis=(1, 2))[0])), (0, 1, 2))(x, scale, bias)

    want = jax.jit(gradients)(x, scale, bias)
    with jax.set_mesh(mesh):
        cut = [jax.device_put(a, P(None, "model")) for a in (scale, bias)]
        got = jax.jit(gradients)(jax.device_put(x, P("data", None, "model")), *cut)
    for a, b in zip(got, want, strict=True):
        assert reference.normwise_error(a, b) < 1e-5


@pytest.mark.parametrize("options", [{}, {"activation": jax.nn.relu}, {"collective": "all_gather"}])
def test_what_differs_by_platform_is_chosen_when_the_program_is_lowered(options):
    """Here, where the default backend is the CPU: a program for a TPU has nothing of the CPU's in it."""
    x, w, scale, bias = draw(2, (8, 3), (3,), "float32")

    def gradient(x, scale, bias):
        return jax.grad(lambda *a: jnp.sum(w * batch_norm(*a, shift=jnp.ones(3), **options)[0]), (0, 1, 2))(
            x, scale, bias
        )

    exported = {p: jax.export.export(jax.jit(gradient), platforms=[p])(x, scale, bias) for p in ("cpu", "tpu", "cuda")}
    barriers = {platform: program.mlir_module().count("optimization_barrier") for platform, program in exported.items()}
    assert barriers["cpu"] > 0 and barriers["tpu"] == barriers["cuda"] == 0
    both = jax.export.export(jax.jit(gradient), platforms=["cpu", "tpu"])(x, scale, bias)
    for got, want in zip(both.call(x, scale, bias), gradient(x, scale, bias), strict=True):
        assert reference.normwise_error(got, want) < 1e-5
