"""Batch renormalization: against a NumPy reference on many devices, and as a module."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnorm_jax import batch_norm, batch_renorm, linen, nnx
from tests import parity
from tests.reference import forward_and_gradients, normwise_error
from tests.transforms import TRANSFORMS

MEAN, VAR = np.linspace(-1, 3, 5), np.linspace(0.2, 9, 5)
LIMITS = {
    "no limit that binds": (1e3, 1e3),
    "batch norm": (1.0, 0.0),
}


def expected(x, w, scale, bias, mask, r_max, d_max, sets=None):
    """The reference's numbers with r and d, computed here from each set's moments."""
    plain = partial(forward_and_gradients, x, w, axis=-1, epsilon=parity.EPSILON, averaged=True)
    per_set = [list(range(x.shape[0] * x.shape[1]))] if sets is None else sets
    y, dx = np.zeros(x.shape), np.zeros(x.shape)
    dscale, dbias = np.zeros(5), np.zeros(5)
    flat = x.reshape(-1, *x.shape[2:])
    counts = np.ones(flat.shape, bool)
    if mask is not None:
        counts = np.broadcast_to(mask.reshape(-1, *mask.shape[2:]), flat.shape)
    for chosen in per_set:
        inside = np.zeros(flat.shape[0], bool)
        inside[chosen] = True
        m = counts[inside]
        values = np.where(m, np.asarray(flat[inside], np.float64), np.nan).reshape(-1, 5)
        mu, s = np.nanmean(values, 0), np.sqrt(np.nanvar(values, 0) + parity.EPSILON)
        known = np.sqrt(VAR + parity.EPSILON)
        r, d = np.clip(s / known, 1 / r_max, r_max), np.clip((mu - MEAN) / known, -d_max, d_max)
        one = plain(scale=scale * r, bias=bias + scale * d, mask=mask, sets=[chosen])
        rows = inside.reshape(x.shape[:2])
        y[rows], dx[rows] = one["y"][rows], one["dx"][rows]
        dscale, dbias = dscale + r * one["dscale"] + d * one["dbias"], dbias + one["dbias"]
    return {"y": y, "dx": dx, "dscale": dscale, "dbias": dbias}


@pytest.mark.parametrize(
    ("transform", "limits"), [(t, "some bind") for t in TRANSFORMS] + [("shard_map", limits) for limits in LIMITS]
)
def test_parity(transform, limits):
    x, w, scale, bias = parity.draw(0, (8, 4, 4, 6, 5), (5,), "float32")
    mask = parity.mask_of("ragged", x.shape)
    r_max, d_max = LIMITS.get(limits, (1.5, 0.5))
    norm = partial(batch_renorm, mean=jnp.float32(MEAN), var=jnp.float32(VAR), r_max=r_max, d_max=d_max)
    got = parity.run(transform, x, w, scale, bias, mask, norm=lambda x, *p, **o: norm(x, scale=p[0], bias=p[1], **o))
    want = expected(np.asarray(x), np.asarray(w), np.asarray(scale), np.asarray(bias), mask, r_max, d_max)
    parity.assert_parity({name: got[name] for name in want}, want, 1e-5)


@pytest.mark.parametrize("pool", ["span inside a device", "span over devices"])
def test_with_spans(pool):
    x, w, scale, bias = parity.draw(1, (8, 4, 4, 6, 5), (5,), "float32")
    options, sets = parity.POOLS[pool]
    norm = partial(batch_renorm, mean=jnp.float32(MEAN), var=jnp.float32(VAR), r_max=1.5, d_max=0.5, **options)
    got = parity.run("shard_map", x, w, scale, bias, norm=lambda x, *p, **o: norm(x, scale=p[0], bias=p[1], **o))
    want = expected(np.asarray(x), np.asarray(w), np.asarray(scale), np.asarray(bias), None, 1.5, 0.5, sets)
    parity.assert_parity({name: got[name] for name in want}, want, 1e-5)


@pytest.mark.parametrize("transform", ["pmap", "shard_map", "shard_map_unchecked"])
def test_one_all_reduce_each_way(transform):
    x, w, scale, bias = parity.draw(0, (8, 4, 6, 5), (5,), "float32")

    def step(axis_name, sharded, replicated):
        def loss(x, scale, bias):
            known = (jnp.zeros(5), jnp.ones(5))
            y, _ = batch_renorm(x, *known, scale, bias, r_max=2.0, d_max=1.0, axis_name=axis_name)
            return jnp.sum(jnp.sin(sharded[1] * y))

        return jax.grad(loss, (0, 1, 2))(sharded[0], *replicated)

    compiled = TRANSFORMS[transform].wrap(step, 8)
    text = compiled.lower([x, w], [scale, bias]).compile().as_text()
    assert text.count(" all-reduce(") + text.count(" all-reduce-start(") == 2


@pytest.mark.parametrize("save_for_backward", ["input", "output"])
def test_forward_mode_and_second_order(save_for_backward):
    """Against a plain formula that JAX differentiates by itself."""
    x, w, scale, bias = parity.draw(3, (16, 5), (5,), "float32")

    def plain(x, scale, bias):
        mean, var = jnp.mean(x, 0, keepdims=True), jnp.var(x, 0, keepdims=True)
        s, known = jnp.sqrt(var + 1e-5), jnp.sqrt(jnp.float32(VAR)[None] + 1e-5)
        r = jax.lax.stop_gradient(jnp.clip(s / known, 1 / 1.5, 1.5))
        d = jax.lax.stop_gradient(jnp.clip((mean - jnp.float32(MEAN)[None]) / known, -0.5, 0.5))
        floor = 1e-5 if save_for_backward == "output" else 0.0
        return jnp.sum(jnp.sin(w * ((r * (x - mean) / s + d) * (scale + floor)[None] + bias[None])))

    def ours(x, scale, bias):
        options = {"r_max": 1.5, "d_max": 0.5, "save_for_backward": save_for_backward}
        y, _ = batch_renorm(x, jnp.float32(MEAN), jnp.float32(VAR), scale, bias, **options)
        return jnp.sum(jnp.sin(w * y))

    at = (x, scale, bias)
    tangents = tuple(jnp.cos(a * 3) for a in at)
    for way in (
        lambda f: jax.grad(f, (0, 1, 2))(*at),
        lambda f: jax.jvp(f, at, tangents)[1],
        lambda f: jax.jvp(jax.grad(f, (0, 1, 2)), at, tangents)[1],
    ):
        for got, want in zip(jax.tree.leaves(way(ours)), jax.tree.leaves(way(plain)), strict=True):
            assert normwise_error(got, want) < 1e-4


@settings(deadline=None, max_examples=25)
@given(st.floats(1, 5), st.floats(0, 5), st.integers(0, 1000))
def test_r_and_d_are_within_the_limits(r_max, d_max, seed):
    x = np.random.default_rng(seed).normal(size=(8, 3)).astype(np.float32) * 3 + 1
    y, moments = batch_renorm(jnp.asarray(x), jnp.zeros(3), jnp.full(3, 0.5), r_max=r_max, d_max=d_max, epsilon=0.0)
    plain, _ = batch_norm(jnp.asarray(x), epsilon=0.0)
    d = np.mean(y, 0)
    r = np.std(y, 0) / np.std(plain, 0)
    assert np.all(np.abs(d) <= d_max + 1e-4)
    assert np.all(r <= r_max * (1 + 1e-4)) and np.all(r >= 1 / r_max * (1 - 1e-4))
    if d_max > 0:
        np.testing.assert_allclose(d, np.clip(moments.mean / np.sqrt(0.5), -d_max, d_max), atol=1e-4)


def wrong():
    x, mean, var = jnp.ones((4, 3)), jnp.zeros(3), jnp.ones(3)
    return {
        "r_max=0.5 must be at least 1": lambda: batch_renorm(x, mean, var, r_max=0.5),
        "d_max=-1 must be at least 0": lambda: batch_renorm(x, mean, var, d_max=-1),
        r"r_max must be one number, and has the shape \(3,\)": lambda: batch_renorm(x, mean, var, r_max=jnp.ones(3)),
        r"mean has shape \(3,\) and var \(1,\)": lambda: batch_renorm(x, mean, jnp.ones(1)),
        r"mean has shape \(2,\)": lambda: batch_renorm(x, jnp.ones(2), jnp.ones(2)),
        "must be real": lambda: batch_renorm(x.astype(jnp.complex64), mean, var),
        "batch_renorm: the input must have": lambda: batch_renorm(x.astype(int), mean, var),
    }


@pytest.mark.parametrize("message", wrong())
def test_bad_input(message):
    with pytest.raises(ValueError, match=message):
        wrong()[message]()


def test_limits_out_of_range_fail_at_construction():
    with pytest.raises(ValueError, match=r"BatchRenorm: r_max=0.5 must be at least 1"):
        linen.BatchRenorm(r_max=0.5)
    with pytest.raises(ValueError, match=r"BatchRenorm: d_max=-1 must be at least 0"):
        nnx.BatchRenorm(3, d_max=-1, rngs=flax_nnx.Rngs(0))


def test_an_option_that_is_not_known():
    with pytest.raises(TypeError, match="unknown option spam"):
        batch_renorm(jnp.ones((4, 3)), jnp.zeros(3), jnp.ones(3), spam=1)


SCHEDULES = {"r_max": lambda step: 1.0 + step, "d_max": lambda step: 1.0 * step}


def test_linen_follows_the_schedule():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32) * 2 + 1
    norm = linen.BatchRenorm(use_running_average=False, momentum=0.5, **SCHEDULES)
    variables = norm.init(jax.random.key(0), x)
    assert variables["batch_stats"]["steps"] == 0
    for step in range(3):
        stats = variables["batch_stats"]
        want, _ = batch_renorm(x, stats["mean"], stats["var"], r_max=1.0 + step, d_max=1.0 * step)
        y, updates = norm.apply(variables, x, mutable=["batch_stats"])
        np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-6)
        assert updates["batch_stats"]["steps"] == step + 1
        variables = {**variables, **updates}
    y = norm.clone(use_running_average=True).apply(variables, x)
    stats = variables["batch_stats"]
    np.testing.assert_allclose(y, (x - stats["mean"][None]) / np.sqrt(stats["var"] + 1e-5)[None], rtol=1e-5, atol=1e-6)


def test_nnx_is_linen():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32) * 2 + 1
    ours = nnx.BatchRenorm(3, momentum=0.5, rngs=flax_nnx.Rngs(0), **SCHEDULES)
    norm = linen.BatchRenorm(use_running_average=False, momentum=0.5, **SCHEDULES)
    variables = norm.init(jax.random.key(0), x)
    for _ in range(3):
        want, updates = norm.apply(variables, x, mutable=["batch_stats"])
        variables = {**variables, **updates}
        np.testing.assert_allclose(ours(x), want, rtol=1e-6, atol=1e-6)
    for name in ("mean", "var", "steps"):
        np.testing.assert_allclose(getattr(ours, name)[...], variables["batch_stats"][name], rtol=1e-6)
    ours.eval()
    before = ours.steps[...]
    ours(x)
    assert ours.steps[...] == before


def test_the_schedule_of_the_paper_is_the_default():
    """At first it is batch normalization, and steps that do not update do not count."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32) * 2 + 1
    norm = linen.BatchRenorm(use_running_average=False)
    variables = norm.init(jax.random.key(0), x)
    y, updates = norm.apply(variables, x, update_stats=False, mutable=["batch_stats"])
    assert updates["batch_stats"]["steps"] == 0
    np.testing.assert_allclose(y, batch_norm(x)[0], rtol=1e-6, atol=1e-6)
    late = {**variables, "batch_stats": {**variables["batch_stats"], "steps": jnp.asarray(100_000, jnp.int32)}}
    y, _ = norm.apply(late, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-5, atol=1e-6)
