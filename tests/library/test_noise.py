"""The gradient noise scale: its estimates are those of known gradients and covariances, on one device and on eight."""

import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from batchnorm_jax import batch_norm, batch_size, normalize
from batchnorm_jax.batch_size import NoiseEstimate

DRAWS = 4_000


def assert_means(estimates, truth, errors=4.0):
    """The means over draws are within so many standard errors of the truth."""
    for values, right in zip(estimates, truth, strict=True):
        values = np.asarray(values, np.float64)
        assert abs(values.mean() - right) < errors * values.std(ddof=1) / np.sqrt(values.size), (values.mean(), right)


def quadratic_loss(params, z):
    """The loss of an example is |params - z|^2 / 2; its gradient is params - z."""
    return jnp.mean(jnp.sum((jnp.concatenate([params["a"], params["b"].ravel()])[None] - z) ** 2, axis=-1)) / 2


@pytest.mark.parametrize(("shards", "size"), [(2, 1), (2, 16), (8, 4), (32, 2)])
def test_estimates_are_unbiased(shards, size):
    """The problem is a quadratic whose examples have any covariance."""
    r = np.random.default_rng(shards)
    mean, factor = r.normal(size=7), r.normal(size=(7, 7))
    z = (mean + r.normal(size=(DRAWS, shards, size, 7)) @ factor.T).astype(np.float32)
    params = {"a": jnp.ones(3), "b": jnp.zeros((2, 2))}

    def of_batch(z):
        gradients = jax.vmap(jax.grad(quadratic_loss), in_axes=(None, 0))(params, z)
        return batch_size.noise_from_shards(gradients, size)

    gradient = np.array([1, 1, 1, 0, 0, 0, 0]) - mean
    assert_means(jax.jit(jax.vmap(of_batch))(z), (gradient @ gradient, np.trace(factor @ factor.T)))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([2, 3, 8]), st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_shards_and_norms_give_the_formula(shards, size, seed):
    r = np.random.default_rng(seed)
    tree = {"w": r.normal(1.0, 1.0, (shards, 4, 3)), "b": [r.normal(1.0, 1.0, (shards, 2))]}
    flat = np.concatenate([tree["w"].reshape(shards, -1), tree["b"][0]], axis=1)
    q, mean = np.mean(np.sum(flat**2, axis=1)), np.sum(flat.mean(0) ** 2)
    right = ((shards * mean - q) / (shards - 1), size * shards / (shards - 1) * (q - mean))
    given = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)
    scale = (q, size * q)
    for found in (batch_size.noise_from_shards(given, size), batch_size.noise_from_norms(q, mean, shards, size)):
        np.testing.assert_allclose(np.divide(found, scale), np.divide(right, scale), atol=1e-5)


def test_a_small_noise_keeps_its_digits():
    """Gradients of 100 that differ by 1e-2: |g|^2 is 10^8 times the spread, beyond float32."""
    r = np.random.default_rng(0)
    gradients = (100 + 1e-2 * r.normal(size=(4, 50))).astype(np.float32)
    right = 8 * np.sum(np.var(gradients.astype(np.float64), axis=0, ddof=1))
    np.testing.assert_allclose(batch_size.noise_from_shards(gradients, 8).trace, right, rtol=1e-3)
    half = batch_size.noise_from_shards(jnp.asarray([[1.0], [1.0 + 2**-7]], jnp.bfloat16), 1)
    assert half.trace.dtype == jnp.float32
    np.testing.assert_allclose(half.trace, 2**-15)


def linear_loss(w, batch):
    return jnp.mean((batch["x"] @ w - batch["y"]) ** 2) / 2


LINEAR_GRADIENT = jax.jit(jax.grad(linear_loss))


def linear_data(examples):
    r = np.random.default_rng(1)
    x, y = r.normal(size=(examples, 3)).astype(np.float32), r.normal(size=examples).astype(np.float32)
    w = np.array([1.0, -2.0, 0.5], np.float32)
    return w, {"x": x, "y": y}, (x @ w - y)[:, None].astype(np.float64) * x


def test_a_model_is_measured_on_batches():
    """Linear regression on 50 examples, drawn with replacement: their mean and covariance are the truth."""
    w, data, per_example = linear_data(50)
    picks = np.random.default_rng(2).integers(0, 50, (300, 12))
    batches = ({name: a[pick] for name, a in data.items()} for pick in picks)
    estimates = batch_size.measure_noise(LINEAR_GRADIENT, w, batches, shards=4)
    assert estimates.trace.shape == (300,)
    gradient = per_example.mean(0)
    assert_means(estimates, (gradient @ gradient, np.var(per_example, axis=0).sum()))


def test_without_replacement_the_gradient_is_short_of_a_share_of_the_noise():
    """Every order of 4 examples, taken as a batch."""
    w, data, per_example = linear_data(4)
    batches = [{name: a[list(order)] for name, a in data.items()} for order in itertools.permutations(range(4))]
    estimates = batch_size.measure_noise(LINEAR_GRADIENT, w, batches, shards=2)
    gradient, trace = per_example.mean(0), np.var(per_example, axis=0, ddof=1).sum()
    np.testing.assert_allclose(np.mean(estimates, axis=1), [gradient @ gradient - trace / 4, trace], rtol=1e-4)


@pytest.mark.parametrize("check_vma", [True, False])
def test_eight_devices_give_the_estimates_of_one(check_vma):
    w, data, _ = linear_data(8 * 4)
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))

    def of_device(w, batch):
        if check_vma:
            w = lax.pcast(w, "devices", to="varying")
        gradient = jax.grad(linear_loss)(w, batch)
        mean, q = lax.pmean((gradient, batch_size.squared_norm(gradient)), "devices")
        return batch_size.noise_from_norms(
            q, batch_size.squared_norm(mean), lax.axis_size("devices"), batch["y"].shape[0]
        )

    specs = (PartitionSpec(), PartitionSpec("devices"))
    mapped = jax.shard_map(of_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=check_vma)
    on_eight = jax.jit(mapped)(w, data)
    shards = jax.tree.map(lambda a: a.reshape(8, 4, *a.shape[1:]), data)
    on_one = batch_size.noise_from_shards(jax.vmap(jax.grad(linear_loss), in_axes=(None, 0))(w, shards), 4)
    np.testing.assert_allclose(on_eight, on_one, rtol=1e-5)
    measured = batch_size.measure_noise(LINEAR_GRADIENT, w, [data], shards=8)
    np.testing.assert_allclose(np.ravel(measured), on_one, rtol=1e-5)


# Of x ~ N(0, 1), normalised to y, the loss (w y + c)^2 / 2, whose gradient is (w y^2 + c y, w y + c).
W, C = 0.5, 2.0
NORMS = {
    "synchronised": lambda x: batch_norm(x, axis_name="shards", epsilon=0.0)[0],
    "span": lambda x: batch_norm(x, epsilon=0.0)[0],
    "frozen": lambda x: normalize(x, jnp.zeros(1), jnp.ones(1), epsilon=0.0),
}


def normed_estimates(norm, shards=4, size=8):
    def loss(params, x):
        return jnp.mean((params[0] * NORMS[norm](x) + params[1]) ** 2) / 2

    def of_batch(x):
        gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0), axis_name="shards")(jnp.array([W, C]), x)
        return batch_size.noise_from_shards(gradients, size), jnp.mean(gradients, axis=0)

    x = np.random.default_rng(3).normal(size=(DRAWS, shards, size, 1)).astype(np.float32)
    return jax.jit(jax.vmap(of_batch))(x)


def test_frozen_statistics_and_spans_inside_a_shard_leave_no_bias():
    estimates, _ = normed_estimates("frozen")
    assert_means(estimates, (W**2 + C**2, 3 * W**2 + C**2))
    # A span has mean 0 and variance 1 whatever is in it, so the gradient of every shard is (w, c).
    (norm2, trace), _ = normed_estimates("span")
    np.testing.assert_allclose(norm2, W**2 + C**2, rtol=1e-3)
    assert np.max(trace) < 1e-6


def test_synchronised_statistics_bias_it():
    """The gradient of every batch is (w, c), without noise; the estimates see noise, and count it against |G|^2."""
    estimates, gradients = normed_estimates("synchronised")
    np.testing.assert_allclose(gradients, np.broadcast_to([W, C], gradients.shape), rtol=1e-3)
    norm2, trace = (np.asarray(values, np.float64) for values in estimates)
    assert trace.mean() > 1
    # Shards have covariance C = -Sigma / (b (K - 1)), so that tr C = -tr of the estimate / (b K).
    np.testing.assert_allclose(norm2, W**2 + C**2 - trace / 32, rtol=1e-3)
    assert norm2.mean() < W**2 + C**2 - 10 * norm2.std() / np.sqrt(DRAWS)


def test_running_averages_are_weighted_means():
    r = np.random.default_rng(4)
    values = r.normal(1.0, 1.0, (2, 30)).astype(np.float32)
    decay = 0.9

    def step(state, measured):
        state = batch_size.update_noise(state, measured, decay)
        return state, (state.average, batch_size.noise_scale(state))

    _, (averages, scales) = lax.scan(step, batch_size.init_noise(), NoiseEstimate(*values))
    for n in (1, 2, 30):
        weights = decay ** np.arange(n - 1, -1, -1)
        right = values[:, :n].astype(np.float64) @ weights / weights.sum()
        np.testing.assert_allclose([a[n - 1] for a in averages], right, rtol=1e-4)
        if right[0] > 0:
            np.testing.assert_allclose(scales[n - 1], right[1] / right[0], rtol=1e-4)
    assert np.mean(values[0]) > 0


def test_running_averages_stay_as_they_are_where_there_is_no_estimate():
    values = np.random.default_rng(5).normal(1.0, 1.0, (2, 30)).astype(np.float32)
    when = np.arange(30) % 3 == 0
    missing = NoiseEstimate(*np.where(when, values, np.nan))

    def step(state, given):
        estimate, when = given
        return batch_size.update_noise(state, estimate, when=when), None

    sparing, _ = lax.scan(step, batch_size.init_noise(), (missing, when))
    state = batch_size.init_noise()
    for estimate in zip(*values[:, when], strict=True):
        state = batch_size.update_noise(state, NoiseEstimate(*estimate), when=True)
        state = batch_size.update_noise(state, NoiseEstimate(np.nan, np.nan), when=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), sparing, state)
    assert int(sparing.ema.count) == 10


@pytest.mark.parametrize(
    ("norm2", "trace", "scale"),
    [
        (2.0, 10.0, 5.0),
        (-1.0, 10.0, np.inf),
        (0.0, 1.0, np.inf),
        (2.0, 0.0, 0.0),
        (0.0, 0.0, np.nan),
        (np.nan, 1.0, np.nan),
        (-1.0, np.nan, np.nan),
        (1.0, np.nan, np.nan),
    ],
)
def test_a_scale_that_is_not_resolved_says_so(norm2, trace, scale):
    assert np.isnan(batch_size.noise_scale(batch_size.init_noise()))
    state = batch_size.update_noise(batch_size.init_noise(), NoiseEstimate(norm2, trace), 0.5)
    np.testing.assert_equal(float(batch_size.noise_scale(state)), scale)


def coverage(draw, truth, confidence, repeats=200, **options):
    held = []
    for seed in range(repeats):
        low, high = batch_size.noise_scale_interval(draw(np.random.default_rng(seed)), confidence, seed, **options)
        held.append(low <= truth <= high)
    return np.mean(held)


def batches_of_normals(r, steps=120, shards=4, size=2):
    """G = (1, 1), Sigma = 40 in each of two coordinates: the noise scale is 40, and |G|^2 is often negative."""
    gradients = 1 + np.sqrt(40 / size) * r.normal(size=(steps, shards, 2))
    mean = gradients.mean(1)
    spread = np.sum((gradients - mean[:, None]) ** 2, axis=(1, 2)) / (shards - 1)
    return NoiseEstimate(np.sum(mean**2, axis=1) - spread / shards, size * spread)


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_an_interval_holds_the_truth_as_often_as_it_says(confidence):
    """Coverage of 200 intervals: within 4 standard errors, and 0.04 for the bootstrap's own approximation."""
    margin = 4 * np.sqrt(confidence * (1 - confidence) / 200) + 0.04
    assert abs(coverage(batches_of_normals, 40.0, confidence) - confidence) < margin


def test_blocks_allow_for_steps_that_are_alike():
    """Estimates that keep 0.8 of the step before."""

    def draw(r):
        level = np.zeros(400)
        for i, shock in enumerate(r.normal(size=400)):
            level[i] = 0.8 * level[i - 1] + shock
        return [NoiseEstimate(20 + x, 100.0) for x in level]

    assert coverage(draw, 5.0, 0.95, repeats=60, block=20) > 0.8
    assert coverage(draw, 5.0, 0.95, repeats=60, block=1) < 0.7


def test_an_interval_is_open_where_there_is_no_bound():
    r = np.random.default_rng(5)
    low, high = batch_size.noise_scale_interval(NoiseEstimate(r.normal(0.1, 1, 60), np.full(60, 10.0)))
    assert 0 < low < high == np.inf
    assert batch_size.noise_scale_interval(NoiseEstimate(r.normal(-5, 1, 60), np.full(60, 10.0))) == (np.inf, np.inf)
    assert batch_size.noise_scale_interval(NoiseEstimate(np.full(60, 2.0), np.full(60, 10.0))) == (5.0, 5.0)
    drawn = batches_of_normals(r)
    assert batch_size.noise_scale_interval(drawn, seed=1) == batch_size.noise_scale_interval(drawn, seed=1)


TEN = np.ones(10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: batch_size.noise_from_shards({"w": jnp.ones((1, 3))}, 4), "at least 2 shards .* there are 1 of 4"),
        (lambda: batch_size.noise_from_shards({"w": jnp.ones((2, 3))}, 0), "there are 2 of 0"),
        (lambda: batch_size.noise_from_shards([jnp.ones((2, 3)), jnp.ones(3)], 4), r"shapes are \[\(2, 3\), \(3,\)\]"),
        (lambda: batch_size.noise_from_shards([jnp.ones(())], 4), r"shapes are \[\(\)\]"),
        (lambda: batch_size.noise_from_shards({}, 4), r"shapes are \[\]"),
        (lambda: batch_size.noise_from_norms(1.0, 1.0, 1, 4), "noise_from_norms: .* there are 1 of 4"),
        (
            lambda: batch_size.measure_noise(LINEAR_GRADIENT, 0.0, [np.ones(6)], 4),
            r"shards=4 must .* divide .* \[\(6,\)\]",
        ),
        (lambda: batch_size.measure_noise(LINEAR_GRADIENT, 0.0, [np.ones(6)], 1), "shards=1 must be at least 2"),
        (lambda: batch_size.measure_noise(LINEAR_GRADIENT, 0.0, [(TEN, np.ones(6))], 2), "same size in every leaf"),
        (lambda: batch_size.measure_noise(LINEAR_GRADIENT, 0.0, [np.ones(0)], 2), "divide the first axis"),
        (lambda: batch_size.measure_noise(LINEAR_GRADIENT, 0.0, [], 2), "there are no batches"),
        (lambda: batch_size.update_noise(batch_size.init_noise(), NoiseEstimate(1.0, 1.0), 1.0), "decay=1.0 must be"),
        (
            lambda: batch_size.update_noise(batch_size.init_noise(), NoiseEstimate(1.0, 1.0), when=jnp.arange(2) < 1),
            r"update_noise: when must be .* it is of bool and shape \(2,\)",
        ),
        (lambda: batch_size.noise_scale_interval([]), "at least 8 blocks; .* 0 steps"),
        (lambda: batch_size.noise_scale_interval(NoiseEstimate(TEN, TEN), block=2), "10 steps in blocks of 2"),
        (lambda: batch_size.noise_scale_interval(NoiseEstimate(TEN, TEN), 95), "confidence=95"),
        (
            lambda: batch_size.noise_scale_interval(NoiseEstimate(TEN * np.nan, TEN), block=1),
            "10 numbers are not finite",
        ),
        (lambda: batch_size.noise_scale_interval(NoiseEstimate(TEN, -TEN), block=1), "greatest tr Sigma is -1.0"),
    ],
)
def test_what_cannot_be_estimated_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
