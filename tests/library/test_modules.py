"""Every option of the two modules reaches the functions: one comparison over a register of options."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from batchnorm_jax import ConditioningWarning, batch_norm, linen, normalize, update_running
from batchnorm_jax import nnx as ours_nnx
from tests.reference import normwise_error

MOMENTUM = 0.5
NAN = jnp.zeros((2, 8, 3, 3)).at[0, 0, 0, 1].set(jnp.nan)
FAR = jnp.full((2, 8, 3, 3), 1e4)
GROUPS = [[0], [1]]
# Options of the module, arguments of the call, what is added to the input, and the same for `batch_norm`.
OPTIONS = {
    "defaults": ({}, (), 0.0, {}),
    "axis": ({"axis": 1}, (), 0.0, {"axis": 1}),
    "epsilon": ({"epsilon": 0.5}, (), 0.0, {"epsilon": 0.5}),
    "axis_name": ({"axis_name": "i"}, (), 0.0, {"axis_name": "i"}),
    "groups": ({"axis_name": "i", "axis_index_groups": GROUPS}, (), 0.0, {}),
    "span": ({"span": 2}, (), 0.0, {"span": 2}),
    "all_gather": ({"collective": "all_gather"}, (), FAR, {"collective": "all_gather"}),
    "stable variance": ({"use_fast_variance": False}, (), FAR, {"collective": "all_gather"}),
    "activation": ({"activation": jnp.tanh}, (), 0.0, {"activation": jnp.tanh}),
    "output": ({"save_for_backward": "output"}, (), 0.0, {"save_for_backward": "output"}),
    "nothing": ({"save_for_backward": "nothing"}, (), 0.0, {}),
    "unbiased": ({"unbiased_running_var": True}, (), 0.0, {}),
    "skip_nonfinite": ({"skip_nonfinite": True}, (), NAN, {}),
    "mask": ({}, ("mask",), 0.0, {}),
    "residual": ({}, ("residual",), 0.0, {}),
    "update_stats": ({"update_stats": False}, (), 0.0, {}),
    "update_stats in the call": ({}, ("update_stats",), 0.0, {}),
}
# How to train and evaluate one module: variables as (scale, bias, mean, var).
SCALE, BIAS = jnp.array([-1.5, 0.5, 2.0]), jnp.array([1.0, -1.0, 0.0])


def with_linen(options, x, training, **call):
    module = linen.BatchNorm(use_running_average=not training, momentum=MOMENTUM, **options)
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    variables = {"params": {"scale": SCALE, "bias": BIAS}, "batch_stats": stats}
    y, updates = module.apply(variables, x, **call, mutable=["batch_stats"])
    return y, updates["batch_stats"]["mean"], updates["batch_stats"]["var"]


def with_nnx(options, x, training, **call):
    module = ours_nnx.BatchNorm(3, use_running_average=not training, momentum=MOMENTUM, rngs=nnx.Rngs(0), **options)
    module.scale[...], module.bias[...] = SCALE, BIAS
    y = module(x, **call)
    return y, module.mean[...], module.var[...]


@pytest.mark.filterwarnings("ignore::batchnorm_jax.NegativeScaleWarning")
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("run", [with_linen, with_nnx])
def test_every_option_reaches_the_function(run, option):
    options, names, added, of_function = OPTIONS[option]
    r = np.random.default_rng(0)
    x, residual = (jnp.asarray(r.normal(size=(2, 8, 3, 3)), jnp.float32) for _ in range(2))
    x = x + added
    given = {"mask": jnp.asarray(r.random((2, 8, 1, 1)) < 0.6), "residual": residual}
    call = {name: given[name] for name in names if name != "update_stats"}
    still = {"update_stats": False} if "update_stats" in names else {}
    updates = "update_stats" not in names and options.get("update_stats", True)

    def expected(x, call):
        y, moments = batch_norm(x, SCALE, BIAS, shift=jnp.zeros(3), **of_function, **call)
        running = jnp.zeros(3), jnp.ones(3)
        if updates:
            unbiased, skip = (options.get(name, False) for name in ("unbiased_running_var", "skip_nonfinite"))
            running = update_running(*running, moments, momentum=MOMENTUM, unbiased=unbiased, skip_nonfinite=skip)
        return y, *running

    got = jax.vmap(lambda x, call: run(options, x, True, **call, **still), axis_name="i")(x, call)
    want = jax.vmap(expected, axis_name="i")(x, call)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)

    def expected_in_evaluation(x, call):
        scale = jnp.abs(SCALE) + 1e-5 if option == "output" else SCALE
        kept = {k: v for k, v in of_function.items() if k in ("axis", "epsilon", "activation")}
        kept |= {k: v for k, v in call.items() if k == "residual"}
        return normalize(x, jnp.zeros(3), jnp.ones(3), scale, BIAS, **kept)

    evaluated = jax.vmap(lambda x, call: run(options, x, False, **call)[0], axis_name="i")(x, call)
    if options.get("update_stats") is None:
        np.testing.assert_allclose(evaluated, jax.vmap(expected_in_evaluation)(x, call), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("run", [with_linen, with_nnx])
def test_the_conditioning_is_looked_at(run):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)) + 3000, jnp.float32)
    with pytest.warns(ConditioningWarning, match=r"the mean is \d+ standard deviations"):
        jax.block_until_ready(run({"check_conditioning": True}, x, True))
    # Nothing is lost where moments are gathered.
    jax.block_until_ready(run({"check_conditioning": True, "collective": "all_gather"}, x, True))


@pytest.mark.parametrize("run", [with_linen, with_nnx])
def test_a_complex_mean_is_kept(run):
    r = np.random.default_rng(0)
    x = jnp.asarray(r.normal(size=(64, 3)) + 1j * r.normal(size=(64, 3)) + 5j, jnp.complex64)
    _, mean, var = run({}, x, True)
    np.testing.assert_allclose(mean, MOMENTUM * np.asarray(x).mean(0), rtol=1e-5)
    assert var.dtype == jnp.float32


@pytest.mark.parametrize("family", ["linen", "nnx"])
def test_the_gradients_of_frozen_statistics_are_those_of_constants(family):
    """Against NumPy in float64, in training by running averages; no collective is made, whatever the axis."""
    r = np.random.default_rng(0)
    x, w = r.normal(2.0, 3.0, (2, 8, 3)), r.normal(size=(2, 8, 3))
    scale, bias, mean, var = r.normal(size=3), r.normal(size=3), r.normal(size=3), r.uniform(0.5, 2.0, 3)

    def y(x, scale, bias, frozen=True):
        options = {"use_running_average": frozen, "axis_name": "i"}
        if family == "linen":
            variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
            return linen.BatchNorm(**options).apply(variables, x, mutable=["batch_stats"])[0]
        module = ours_nnx.BatchNorm(3, rngs=nnx.Rngs(0), **options)
        module.scale[...], module.bias[...], module.mean[...], module.var[...] = scale, bias, mean, var
        return module(x)

    def gradients(x, scale, bias, w, frozen=True):
        return jax.grad(lambda *given: jnp.vdot(w, y(*given, frozen)), argnums=(0, 1, 2))(x, scale, bias)

    given = [jnp.asarray(a, jnp.float32) for a in (x, scale, bias, w)]
    mean, var = jnp.asarray(mean, jnp.float32), jnp.asarray(var, jnp.float32)
    dx, dscale, dbias = jax.jit(jax.vmap(gradients, (0, None, None, 0), axis_name="i"))(*given)
    one = [given[0][0], *given[1:3], given[3][0]]
    for frozen in (True, False):
        program = jax.make_jaxpr(partial(gradients, frozen=frozen), axis_env=[("i", 2)])(*one)
        assert ("psum" in str(program)) != frozen
    std = np.sqrt(np.asarray(var, np.float64) + 1e-5)
    assert normwise_error(dx, w * scale / std) < 1e-6
    assert normwise_error(dscale, (w * (x - np.asarray(mean, np.float64)) / std).sum(1)) < 1e-6
    assert normwise_error(dbias, w.sum(1)) < 1e-6


def test_the_width_must_be_that_of_the_module():
    with pytest.raises(ValueError, match=r"num_features=3, and the input of shape \(4, 5\) has \[5\] on axis -1"):
        ours_nnx.BatchNorm(3, rngs=nnx.Rngs(0))(jnp.ones((4, 5)))


def test_a_zero_scale_is_refused_under_jit_too():
    def init(key):
        options = {"save_for_backward": "output", "scale_init": nnx.initializers.zeros}
        return linen.BatchNorm(use_running_average=False, **options).init(key, jnp.ones((4, 3)))

    with pytest.raises(ValueError, match="divides by the scale"):
        jax.jit(init)(jax.random.key(0))


@pytest.mark.parametrize("kind", [linen.BatchNorm, linen.BatchRenorm])
def test_it_is_one_row_of_a_summary(kind):
    """And one call to interceptors, as Flax's layer is."""
    seen = []

    def record(next_function, args, kwargs, context):
        seen.append(context.method_name)
        return next_function(*args, **kwargs)

    x = jnp.ones((4, 3))
    layer = kind(use_running_average=False)
    variables = layer.init(jax.random.key(0), x)
    with nn.intercept_methods(record):
        layer.apply(variables, x, mutable=["batch_stats"])
    assert seen == ["__call__"]
    rows = nn.tabulate(layer, jax.random.key(0), show_repeated=True)(x).splitlines()
    assert sum(kind.__name__ in row for row in rows) == 1 + 1  # its title and itself
