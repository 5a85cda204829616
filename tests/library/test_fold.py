"""fold: a layer that does what its norm did, beside the two of them in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from batchnorm_jax import fold, normalize
from tests.reference import normwise_error

EPSILON = 1e-3


def draw(seed, features, *, complex_mean=False):
    """Mean, var, scale, beta of a norm."""
    r = np.random.default_rng(seed)
    mean = r.normal(size=features) + (1j * r.normal(size=features) if complex_mean else 0)
    return mean, r.uniform(0.1, 2, features), r.normal(size=features), r.normal(size=features)


def as_jax(dtype, *arrays):
    return [None if a is None else jnp.asarray(a, dtype) for a in arrays]


# Of the layer: bias; of the norm: scale and beta.
GIVEN = {
    "all": (True, True, True),
    "no bias": (False, True, True),
    "no scale": (True, False, True),
    "no beta": (True, True, False),
    "nothing": (False, False, False),
}


@pytest.mark.parametrize("shape", [(3, 4), (5, 3, 4), (3, 3, 2, 4), (2, 2, 2, 1, 4), (4,)])
@pytest.mark.parametrize("present", GIVEN)
def test_the_formula(present, shape):
    has_bias, has_scale, has_beta = GIVEN[present]
    kernel = np.random.default_rng(1).normal(size=shape)
    mean, var, scale, beta = draw(2, 4)
    bias = np.random.default_rng(3).normal(size=4) if has_bias else None
    scale, beta = (a if has else None for a, has in ((scale, has_scale), (beta, has_beta)))
    got = jax.jit(fold, static_argnames="epsilon")(
        *as_jax(jnp.float32, kernel, bias, mean, var, scale, beta), epsilon=EPSILON
    )
    gain = (1 if scale is None else scale) / np.sqrt(var + EPSILON)
    want = kernel * gain, ((0 if bias is None else bias) - mean) * gain + (0 if beta is None else beta)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.float32 and normwise_error(a, b) < 1e-6


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    groups=st.integers(1, 3),
    in_each=st.integers(1, 3),
    out_each=st.integers(1, 3),
    window=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
)
def test_a_convolution_of_any_shape(seed, groups, in_each, out_each, window, stride, dilation):
    r = np.random.default_rng(seed)
    features, rank = groups * out_each, len(window)
    x, kernel = r.normal(size=(2, *[6] * rank, groups * in_each)), r.normal(size=(*window, in_each, features))
    bias, (mean, var, scale, beta) = r.normal(size=features), draw(seed, features)

    def conv(x, kernel, bias):
        spec = (0, rank + 1, *range(1, rank + 1))
        y = lax.conv_general_dilated(
            x,
            kernel,
            (stride,) * rank,
            "SAME",
            rhs_dilation=(dilation,) * rank,
            dimension_numbers=lax.ConvDimensionNumbers(spec, (rank + 1, rank, *range(rank)), spec),
            feature_group_count=groups,
        )
        return y + bias.reshape((1,) * (rank + 1) + (-1,))

    with jax.enable_x64(True):
        y = np.asarray(conv(*as_jax(jnp.float64, x, kernel, bias)))
    want = (y - mean) / np.sqrt(var + EPSILON) * scale + beta
    x32, *arrays = as_jax(jnp.float32, x, kernel, bias, mean, var, scale, beta)
    assert normwise_error(conv(x32, *fold(*arrays, epsilon=EPSILON)), want) < 1e-5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_rounded_once(dtype):
    """Each number is the float64 one of the rounded kernel, rounded: half an ulp, and a hair for float32."""
    kernel, bias = as_jax(dtype, *(np.random.default_rng(1).normal(size=s) for s in ((3, 3, 8, 16), (16,))))
    statistics = as_jax(jnp.float32, *draw(2, 16))
    got = fold(kernel, bias, *statistics, epsilon=EPSILON)
    mean, var, scale, beta = (np.asarray(a, np.float64) for a in statistics)
    gain = scale / np.sqrt(var + EPSILON)
    want = np.asarray(kernel, np.float64) * gain, (np.asarray(bias, np.float64) - mean) * gain + beta
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        half_ulp = float(jnp.finfo(dtype).eps) / 2
        assert np.all(np.abs(np.asarray(a, np.float64) - b) <= np.abs(b) * half_ulp * 1.001 + 1e-6)


def test_float64_keeps_its_digits(x64):
    kernel, bias = (jnp.asarray(np.random.default_rng(1).normal(size=s)) for s in ((5, 4), (4,)))
    norm = [jnp.asarray(a) for a in draw(2, 4)]
    folded, new = fold(kernel, bias, *norm)
    assert folded.dtype == new.dtype == jnp.float64
    x = jnp.asarray(np.random.default_rng(3).normal(size=(6, 5)))
    assert normwise_error(x @ folded + new[None], normalize(x @ kernel + bias[None], *norm)) < 1e-14


@pytest.mark.parametrize("complex_kernel", [True, False])
def test_complex_numbers(complex_kernel):
    """As `normalize` has them: the mean is complex, the variance and the scale are real."""
    r = np.random.default_rng(1)
    kernel = jnp.asarray(r.normal(size=(5, 4)), jnp.float32)
    if complex_kernel:
        kernel = lax.complex(kernel, jnp.asarray(r.normal(size=(5, 4)), jnp.float32))
    mean, var, scale, beta = draw(2, 4, complex_mean=True)
    mean, (var, scale, beta) = jnp.asarray(mean, jnp.complex64), as_jax(jnp.float32, var, scale, beta)
    folded, new = fold(kernel, None, mean, var, scale, beta)
    assert folded.dtype == kernel.dtype and new.dtype == jnp.complex64
    x = jnp.asarray(r.normal(size=(6, 5)) + 1j * r.normal(size=(6, 5)), jnp.complex64)
    assert normwise_error(x @ folded + new[None], normalize(x @ kernel, mean, var, scale, beta)) < 1e-5


def test_a_bias_that_differs_between_positions():
    kernel, bias = as_jax(jnp.float32, *(np.random.default_rng(1).normal(size=s) for s in ((5, 4), (6, 4))))
    norm = as_jax(jnp.float32, *draw(2, 4))
    x = jnp.asarray(np.random.default_rng(3).normal(size=(6, 5)), jnp.float32)
    folded, new = fold(kernel, bias, *norm)
    assert new.shape == (6, 4)
    assert normwise_error(x @ folded + new, normalize(x @ kernel + bias, *norm)) < 1e-5


def test_under_vmap_and_grad():
    """Stacked layers, and the gradient of the scale through the folded ones."""
    r = np.random.default_rng(1)
    kernels = jnp.asarray(r.normal(size=(3, 5, 4)), jnp.float32)
    norms = [jnp.stack(a) for a in zip(*(as_jax(jnp.float32, *draw(i, 4)) for i in range(3)), strict=True)]
    folded, bias = jax.vmap(lambda k, *norm: fold(k, None, *norm))(kernels, *norms)
    for i in range(3):
        want = fold(kernels[i], None, *(a[i] for a in norms))
        assert normwise_error(folded[i], want[0]) < 1e-6 and normwise_error(bias[i], want[1]) < 1e-6
    x, (mean, var, scale, beta) = jnp.asarray(r.normal(size=(6, 5)), jnp.float32), [a[0] for a in norms]

    def folded_loss(scale):
        kernel, bias = fold(kernels[0], None, mean, var, scale, beta)
        return jnp.sum(jnp.sin(x @ kernel + bias[None]))

    def loss(scale):
        return jnp.sum(jnp.sin(normalize(x @ kernels[0], mean, var, scale, beta)))

    assert normwise_error(jax.grad(folded_loss)(scale), jax.grad(loss)(scale)) < 1e-5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mean": jnp.ones(3)}, r"fold: mean has shape \(3,\), but the kernel of shape \(5, 4\) has 4 output features"),
        ({"var": jnp.ones(5)}, r"fold: var has shape \(5,\).* give var the shape \(4,\)"),
        ({"scale": jnp.ones((1, 4))}, r"fold: scale has shape \(1, 4\)"),
        ({"beta": jnp.ones(())}, r"fold: beta has shape \(\)"),
        ({"bias": jnp.ones(5)}, r"fold: bias has shape \(5,\)"),
        ({"kernel": jnp.ones((5, 4), jnp.int8)}, r"fold: the kernel is int8 of shape .* Fold before quantizing"),
        ({"scale": jnp.ones(4, jnp.complex64)}, r"fold: scale is complex64"),
    ],
)
def test_errors_say_what_came_and_what_to_do(changed, message):
    given = {"kernel": jnp.ones((5, 4)), "bias": None} | {
        name: jnp.ones(4) for name in ("mean", "var", "scale", "beta")
    }
    with pytest.raises(ValueError, match=message):
        fold(**given | changed)
