"""Sharpness: eigenvalues against known spectra and dense Hessians, the rise in a box against closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import eigsh

from batchnorm_jax import batch_norm, normalize
from experiments._errors import UsageError
from experiments.studies.sharpness import epsilon_sharpness, largest_eigenvalue
from tests.reference import normwise_error

KEY = jax.random.key(0)


def tree_of(flat):
    """Forty numbers as a tree."""
    return {"a": flat[:20].reshape(5, 4), "b": [flat[20:39], flat[39]]}


def quadratic(spectrum, dtype: type = np.float32):
    """The loss x H x / 2 + g x of a tree of 40 numbers, whose Hessian has this spectrum in random directions."""
    r = np.random.default_rng(0)
    vectors = np.linalg.qr(r.normal(size=(40, 40)))[0]
    hessian = jnp.asarray(vectors * spectrum @ vectors.T, dtype)
    slope = jnp.asarray(r.normal(size=40), dtype)

    def loss(params):
        x = ravel_pytree(params)[0]
        return x @ hessian @ x / 2 + slope @ x

    return loss, tree_of(jnp.asarray(r.normal(size=40), dtype))


SPECTRA = {
    "positive": np.geomspace(1e-3, 7.0, 40),
    "negative": -np.geomspace(0.5, 7.0, 40),
    "indefinite": np.linspace(-9.0, 4.0, 40),
    "one large": np.array([30.0] + [1.0] * 39),
    "of rank 2": np.array([5.0, -3.0] + [0.0] * 38),
    "nothing above 0": np.array([-5.0, -3.0] + [0.0] * 38),
    "all alike": np.full(40, -2.0),
    "none": np.zeros(40),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_the_spectrum_is_known(name):
    spectrum = SPECTRA[name]
    found = largest_eigenvalue(*quadratic(spectrum), key=KEY)
    rounding = 1e-5 * np.abs(spectrum).max()
    np.testing.assert_allclose(found.largest, spectrum.max(), rtol=1e-4, atol=rounding * (spectrum.max() == 0))
    assert spectrum.min() - rounding <= found.smallest <= found.largest
    assert found.residual <= max(2e-4 * abs(found.largest), rounding)
    different = len(np.unique(spectrum))
    if different <= 3:
        np.testing.assert_allclose(found.smallest, spectrum.min(), atol=rounding)
        assert found.iterations <= different


def test_in_float64_to_all_digits(x64):
    loss, params = quadratic(SPECTRA["indefinite"], np.float64)
    found = largest_eigenvalue(loss, params, key=KEY, tolerance=0.0)
    np.testing.assert_allclose([found.smallest, found.largest], [-9.0, 4.0], rtol=1e-12)
    assert found.iterations <= 40


def test_what_has_not_converged_says_so():
    """With a dense spectrum and few iterations an eigenvalue is within the residual, which is not small."""
    spectrum = np.linspace(1.0, 2.0, 40)
    found = largest_eigenvalue(*quadratic(spectrum), key=KEY, iterations=4)
    assert found.iterations == 4
    assert 1.0 < found.smallest < found.largest < 2.0
    assert found.residual > 0.01
    assert np.min(np.abs(spectrum - found.largest)) < found.residual


def test_one_parameter():
    found = largest_eigenvalue(lambda x: -3 * x**2, jnp.float32(2.0), key=KEY)
    assert found == (-6.0, -6.0, 0.0, 1)


def network(norm):
    """A tiny network with a norm, its parameters, and two batches."""

    def loss(params, batch):
        x, labels = batch
        hidden = jnp.tanh(norm(x @ params["w"], params["scale"], params["bias"]))
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(hidden @ params["out"]), labels[:, None], axis=1))

    r = np.random.default_rng(1)
    params = {"w": (4, 6), "scale": (6,), "bias": (6,), "out": (6, 3)}
    params = {name: jnp.asarray(r.normal(size=shape), jnp.float32) for name, shape in params.items()}
    batches = [(r.normal(size=(16, 4)).astype(np.float32), r.integers(0, 3, 16)) for _ in range(2)]
    return loss, params, batches


def in_training(x, scale, bias):
    return batch_norm(x, scale, bias)[0]


def in_evaluation(x, scale, bias):
    return normalize(x, jnp.full(6, 0.3), jnp.full(6, 2.0), scale, bias)


def test_a_network_has_the_eigenvalue_of_its_dense_hessian():
    """With either way to take statistics, which differ."""
    found = {}
    for norm in (in_training, in_evaluation):
        loss, params, batches = network(norm)
        flat, unravel = ravel_pytree(params)
        hessian = jax.jit(jax.hessian(lambda v, b, loss=loss, unravel=unravel: loss(unravel(v), b)))
        dense = np.mean([hessian(flat, batch) for batch in batches], axis=0)
        right = np.linalg.eigvalsh(dense.astype(np.float64))
        found[norm] = largest_eigenvalue(loss, params, iter(batches), key=KEY, iterations=54)
        np.testing.assert_allclose(found[norm].largest, right[-1], rtol=1e-4)
        arpack = eigsh(dense, k=1, which="LA", v0=np.ones(len(dense)), return_eigenvectors=False)
        np.testing.assert_allclose(found[norm].largest, arpack[0], rtol=1e-4)
        # To the end, the other end is right too.
        whole = largest_eigenvalue(loss, params, batches, key=KEY, iterations=54, tolerance=0.0)
        np.testing.assert_allclose(whole.smallest, right[0], atol=1e-4 * right[-1])
    assert abs(found[in_training].largest / found[in_evaluation].largest - 1) > 0.01


def box_of(params, epsilon):
    return jax.tree.map(lambda x: epsilon * (np.abs(np.asarray(x, np.float64)) + 1), params)


def assert_within(found, params, epsilon):
    for at, x, half in zip(*map(jax.tree.leaves, (found.at, params, box_of(params, epsilon))), strict=True):
        assert at.shape == x.shape and at.dtype == x.dtype
        rounding = 1e-6 * (np.abs(x) + 1)
        assert np.all(np.abs(np.asarray(at, np.float64) - x) <= half + rounding)


@pytest.mark.parametrize("epsilon", [1e-3, 5e-4, 0.1])
def test_a_linear_loss_rises_to_a_corner(epsilon):
    r = np.random.default_rng(2)
    slope, x = (r.normal(size=40).astype(np.float32) for _ in range(2))
    params = tree_of(jnp.asarray(x))
    offset = 3.0 - slope @ x
    found = epsilon_sharpness(lambda p: ravel_pytree(p)[0] @ slope + offset, params, epsilon=epsilon)
    rise = np.sum(np.abs(slope) * epsilon * (np.abs(x) + 1))
    np.testing.assert_allclose(found.start, 3.0, rtol=1e-5)
    np.testing.assert_allclose(found.maximum - found.start, rise, rtol=1e-3)
    np.testing.assert_allclose(found.sharpness, 100 * rise / 4, rtol=1e-3)
    assert_within(found, params, epsilon)


@pytest.mark.parametrize(
    ("at", "starts"), [(2.0, 1), (1e-7, 1), (0.0, 2)], ids=["on a slope", "trained well", "in the minimum"]
)
def test_a_separable_quadratic_rises_to_its_farthest_corner(at, starts):
    """Also where SciPy's tolerances would stop before the first iteration, and where the gradient is 0."""
    curvature = np.geomspace(0.01, 10.0, 12).astype(np.float32)
    x = np.full(12, at, np.float32)
    x[::2] *= -1
    found = epsilon_sharpness(lambda x: jnp.sum(curvature * x**2) / 2, jnp.asarray(x), starts=starts)
    right = np.sum(curvature * (np.abs(x) + 1e-3 * (np.abs(x) + 1)) ** 2) / 2
    start = np.sum(curvature * x.astype(np.float64) ** 2) / 2
    np.testing.assert_allclose(found.maximum - found.start, right - start, rtol=1e-3)
    np.testing.assert_allclose(found.sharpness, 100 * (right - start) / (1 + start), rtol=1e-3)


def test_a_maximum_inside_the_box_is_found():
    """The function is 1 - |x - m|^2, with m in the box in half of the coordinates and beyond it in the others."""
    middle = np.array([0.5, -0.5, 0.5, -0.5], np.float32)
    target = middle + np.array([0.01, -0.02, 0.5, 0.5], np.float32)
    found = epsilon_sharpness(lambda x: 1 - jnp.sum((x - target) ** 2), jnp.asarray(middle), epsilon=0.1)
    np.testing.assert_allclose(found.at, [0.51, -0.52, 0.65, -0.35], atol=1e-3)


def test_a_coupled_quadratic_is_no_worse_than_most_corners():
    """A lower bound of the greatest corner, and not far from it."""
    r = np.random.default_rng(3)
    root = r.normal(size=(8, 8)).astype(np.float32)
    x = (0.001 * r.normal(size=8)).astype(np.float32)
    found = epsilon_sharpness(lambda x: jnp.sum((root @ x) ** 2) / 2, jnp.asarray(x), epsilon=0.1, starts=8)
    half = 0.1 * (np.abs(x.astype(np.float64)) + 1)
    corners = [np.sum((root @ (x + half * signs)) ** 2) / 2 for signs in itertools.product([-1, 1], repeat=8)]
    assert 0.9 * max(corners) < found.maximum < max(corners) * (1 + 1e-5)
    assert 0 < found.iterations <= 80


def test_a_networks_rise_is_that_of_a_point_in_the_box():
    """Over two batches; norms' scales and biases move too; and no random point is higher."""
    loss, params, batches = network(in_training)
    mean = jax.jit(lambda params: (loss(params, batches[0]) + loss(params, batches[1])) / 2)
    found = epsilon_sharpness(loss, params, iter(batches), epsilon=0.02)
    assert_within(found, params, 0.02)
    np.testing.assert_allclose([found.start, found.maximum], [mean(params), mean(found.at)], rtol=1e-5)
    np.testing.assert_allclose(found.sharpness, 100 * (found.maximum - found.start) / (1 + found.start))
    half, r = box_of(params, 0.02), np.random.default_rng(4)
    for _ in range(100):
        corner = jax.tree.map(lambda x, h: x + jnp.float32(h * r.choice([-1, 1], x.shape)), params, half)
        assert mean(corner) < found.maximum
    for name in ("scale", "bias"):
        assert normwise_error(found.at[name], params[name]) > 0.01
    again = epsilon_sharpness(loss, params, batches, epsilon=0.02)
    assert again.maximum == found.maximum
    assert epsilon_sharpness(loss, params, batches, epsilon=0.01).sharpness < found.sharpness


ONES = jnp.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: largest_eigenvalue(jnp.sum, ONES, key=KEY, iterations=0), "iterations=0 must be at least 1"),
        (lambda: largest_eigenvalue(jnp.sum, {}, key=KEY), "they are 0 of no dtype"),
        (lambda: largest_eigenvalue(jnp.sum, ONES.astype(jnp.bfloat16), key=KEY), "they are 3 of bfloat16. Cast"),
        (lambda: largest_eigenvalue(jnp.sum, ONES, [], key=KEY), "largest_eigenvalue: there are no batches"),
        (lambda: largest_eigenvalue(lambda x: jnp.sum(x**0.5), 0 * ONES, key=KEY), "product is not finite"),
        (lambda: epsilon_sharpness(jnp.sum, ONES, epsilon=0.0), "epsilon=0.0, .* must be positive"),
        (lambda: epsilon_sharpness(jnp.sum, ONES, epsilon=float("nan")), "epsilon=nan"),
        (lambda: epsilon_sharpness(jnp.sum, ONES, iterations=0), "iterations=0"),
        (lambda: epsilon_sharpness(jnp.sum, ONES, starts=0), "starts=0"),
        (lambda: epsilon_sharpness(jnp.sum, jnp.ones(3, int)), "they are 3 of int32"),
        (lambda: epsilon_sharpness(jnp.sum, ONES, []), "epsilon_sharpness: there are no batches"),
        (lambda: epsilon_sharpness(jnp.sum, -ONES), "must be greater than -1, and is -3.0"),
        (lambda: epsilon_sharpness(lambda x: jnp.sum(x) / 0, ONES), "loss is inf at the parameters"),
        (lambda: epsilon_sharpness(lambda x: -jnp.sum(jnp.log(x)), 5e-4 * ONES), "in the box of epsilon=0.001"),
    ],
)
def test_what_cannot_be_found_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()
