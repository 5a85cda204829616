"""`jax_numpy_dtype_promotion="strict"`: with every dtype given, all that Flax's layers do there, and more, is done."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import batchnorm_jax.linen
import batchnorm_jax.nnx
from batchnorm_jax import Moments, batch_norm, batch_renorm, conditioning, fold, normalize, pool, update_running
from tests.compat import TypePromotionError

# Of the input, the parameters and the result.
DTYPES = [
    ("float32", "float32", "float32"),
    ("bfloat16", "bfloat16", "bfloat16"),
    ("bfloat16", "float32", "bfloat16"),
    ("float16", "float32", "float32"),
    ("float32", "float32", "bfloat16"),
]
OPTIONS = {
    "defaults": {},
    "mask": {"mask": jax.ShapeDtypeStruct((8, 1), bool)},
    "all_gather": {"collective": "all_gather"},
    "span": {"span": 4},
    "activation": {"activation": jax.nn.gelu},
    "residual": {"activation": jax.nn.relu, "residual": jax.ShapeDtypeStruct((8, 3), "float32")},
    "output": {"activation": jax.nn.leaky_relu, "save_for_backward": "output"},
}
IN_CALL = ("mask", "residual")


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def traced(function, *given, **named):
    """The shapes of the result, and of its gradient; what is mixed is refused in tracing, so nothing need be run."""

    def loss(*given, **named):
        y = function(*given, **named)
        return y.astype("float32").sum(), y

    return jax.eval_shape(jax.grad(loss, argnums=(0, 1, 2), has_aux=True), *given, **named)[1]


def split(options):
    return ({k: v for k, v in options.items() if (k in IN_CALL) == call} for call in (True, False))


# Every option in the most mixed of them, and every set of dtypes.
CASES = [*((option, ("bfloat16", "float32", "bfloat16")) for option in OPTIONS), *(("residual", d) for d in DTYPES)]


@pytest.mark.parametrize(("option", "dtypes"), CASES)
def test_the_functions_mix_no_dtypes(option, dtypes):
    of_x, of_params, dtype = dtypes
    call, fixed = split(OPTIONS[option])
    x, vector = jax.ShapeDtypeStruct((8, 3), of_x), jax.ShapeDtypeStruct((3,), of_params)
    mean, var = jnp.zeros(3), jnp.ones(3)

    def trained(x, scale, bias, **call):
        return batch_norm(x, scale, bias, shift=mean, dtype=dtype, **fixed, **call)[0]

    def renormed(x, scale, bias, **call):
        return batch_renorm(x, mean, var, scale, bias, dtype=dtype, **fixed, **call)[0]

    def evaluated(x, scale, bias, **call):
        call.pop("mask", None)
        kept = {name: value for name, value in fixed.items() if name == "activation"}
        return normalize(x, mean, var, scale, bias, dtype=dtype, **kept, **call)

    for function in (trained, renormed, evaluated):
        assert traced(function, x, vector, vector, **call).dtype == dtype


@pytest.mark.parametrize("dtypes", DTYPES[1:], ids="-".join)
@pytest.mark.parametrize(("norm", "training"), [("BatchNorm", False), ("BatchRenorm", True)])
def test_the_modules_mix_no_dtypes(norm, training, dtypes):
    of_x, of_params, dtype = dtypes
    options = {"use_running_average": not training, "dtype": dtype, "param_dtype": of_params}
    x, vector = jnp.ones((8, 3), of_x), jnp.ones(3, of_params)

    def with_linen(x, scale, bias):
        module = getattr(batchnorm_jax.linen, norm)(**options)
        variables = module.init(jax.random.key(0), x)
        variables = {**variables, "params": {"scale": scale, "bias": bias}}
        return module.apply(variables, x, mutable=["batch_stats"])[0]

    def with_nnx(x, scale, bias):
        module = getattr(batchnorm_jax.nnx, norm)(3, **options, rngs=nnx.Rngs(0))
        module.scale.set_value(scale)
        module.bias.set_value(bias)
        return module(x)

    for function in (with_linen, with_nnx):
        assert traced(function, x, vector, vector).dtype == dtype


def test_statistics_and_models_mix_no_dtypes():
    moments = Moments(jnp.zeros(3), jnp.ones(3), jnp.asarray(8.0))
    update_running(jnp.zeros(3, "bfloat16"), jnp.ones(3, "bfloat16"), moments, momentum=0.9, unbiased=True)
    pool(jax.tree.map(lambda a: jnp.stack([a, a]), moments))
    conditioning(moments, jnp.zeros(3, "bfloat16"))
    fold(jnp.ones((3, 3), "bfloat16"), None, jnp.zeros(3), jnp.ones(3))

    x = jnp.ones((8, 3), "bfloat16")
    norm = batchnorm_jax.linen.BatchNorm(use_running_average=True, dtype="bfloat16")
    model = nn.Sequential([nn.Dense(3, dtype="bfloat16"), norm])
    variables = model.init(jax.random.key(0), x)
    batchnorm_jax.linen.recalibrate(model, variables, [x, x])
    apply, folded = batchnorm_jax.linen.fold(model, variables, None, x)
    assert apply(folded, x).dtype == "bfloat16"

    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(3, 3, dtype="bfloat16", rngs=rngs), nnx.BatchNorm(3, dtype="bfloat16", rngs=rngs))
    batchnorm_jax.nnx.synchronize(model, axis_name=None)
    batchnorm_jax.nnx.recalibrate(model, [x, x])
    assert batchnorm_jax.nnx.fold(model)(x).dtype == "bfloat16"


def test_a_dtype_that_is_left_open_is_for_the_user_to_give():
    norm = batchnorm_jax.linen.BatchNorm(use_running_average=False)
    with pytest.raises(TypePromotionError, match="promotion"):
        norm.init(jax.random.key(0), jnp.ones((8, 3), "bfloat16"))
