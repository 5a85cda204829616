"""The register of local sums: every implementation of every platform, and a kernel put beneath the derivative rule."""

from functools import partial
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import linear_call

import batchnorm_jax
from batchnorm_jax import batch_norm
from batchnorm_jax._reductions import OPERATIONS, Kept
from tests.parity import draw
from tests.reference import normwise_error

R = np.random.default_rng(0)
X = jnp.asarray(R.normal(1.0, 2.0, (6, 4, 3)), jnp.float32)
MASK = jnp.asarray(R.random((6, 4, 1)) < 0.7)
VECTORS = [jnp.asarray(R.normal(size=3), jnp.float32) for _ in range(3)]
COUNT = jnp.asarray(24.0)
LAST = {"features": (2,)}
# The arguments of each operation: arrays, and what is known when the program is traced.
ARGUMENTS = {
    "sums_about": ((X, MASK, VECTORS[0]), LAST),
    "sums_about_guess_and_zero": ((X, None, VECTORS[0], COUNT), LAST | {"local": True}),
    "tangent_sums": ((Kept(X, (VECTORS[0],)), MASK, X + 1), LAST | {"undo": None}),
    "affine_tangent": ((X, VECTORS[0], X + 1, *VECTORS[1:]), LAST),
}


def test_every_operation_is_tried():
    assert set(ARGUMENTS) == set(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_implementations_agree(name):
    arrays, static = ARGUMENTS[name]
    implementations = OPERATIONS[name].implementations
    want = jax.tree.leaves(implementations["default"](*arrays, **static))
    for platform, function in implementations.items():
        got = jax.tree.leaves(jax.jit(partial(function, **static))(*arrays))
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype and normwise_error(a, b) < 1e-5, platform


# Kernels for the test: right, and not the default's program.
def _sums_by_einsum(x, mask, reference, *, features):
    assert features == (2,) and mask is None
    d = x if reference is None else x - reference[None, None]
    return [jnp.einsum("abc->c", d), jnp.einsum("abc,abc->c", d, d)]


def _tangent_sums_by_einsum(kept, mask, dx, *, features, undo):
    assert features == (2,) and mask is None and undo is None
    u = kept.array - kept.vectors[0][None, None]
    return [jnp.einsum("abc->c", dx), jnp.einsum("abc,abc->c", u, dx)]


def _affine_by_einsum(u, gain, dx, dgain, dconstant, *, features):
    """With a transpose of its own, as a kernel that JAX cannot transpose has it."""
    assert features == (2,)

    def forward(known, tangents):
        (u, gain), (dx, dgain, dconstant) = known, tangents
        return gain[None, None] * dx + u * dgain[None, None] + dconstant[None, None]

    def backward(known, v):
        u, gain = known
        return gain[None, None] * v, jnp.einsum("abc,abc->c", u, v), jnp.einsum("abc->c", v)

    return linear_call(forward, backward, (u, gain), (dx, dgain, dconstant))


KERNELS = {
    "sums_about": _sums_by_einsum,
    "tangent_sums": _tangent_sums_by_einsum,
    "affine_tangent": _affine_by_einsum,
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_of_one_platform_goes_beneath_the_derivative_rule(name, monkeypatch):
    """It is in the program of its platform, forward or backward, and in no other; the gradients stay right."""
    x, w, scale, bias = draw(2, (6, 4, 3), (3,), "float32")

    def gradients(x, scale, bias):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(batch_norm(*a)[0]) * w), (0, 1, 2))(x, scale, bias)

    def programs():
        jax.clear_caches()
        exported = {p: jax.export.export(jax.jit(gradients), platforms=[p])(x, scale, bias) for p in ("cpu", "tpu")}
        return {p: program.mlir_module().count("dot_general") for p, program in exported.items()}

    want = jax.jit(gradients)(x, scale, bias)
    assert programs() == {"cpu": 0, "tpu": 0}
    monkeypatch.setitem(OPERATIONS[name].implementations, "cpu", KERNELS[name])
    found = programs()
    assert found["tpu"] == 0
    if name != "tangent_sums":  # It is transposed, to what has no sum.
        assert found["cpu"] > 0
    for a, b in zip(jax.jit(gradients)(x, scale, bias), want, strict=True):
        assert normwise_error(a, b) < 1e-5
    jax.clear_caches()


def test_nothing_in_the_library_asks_for_the_default_backend():
    for path in Path(batchnorm_jax.__file__).parent.rglob("*.py"):
        text = path.read_text()
        assert "default_backend" not in text and "jax.devices(" not in text and "local_devices(" not in text, path
