"""One norm layer's train step, forward and backward, in each library on the same arrays."""

# The peers are optional extras: the type checker also runs where they are not installed.
# pyright: reportMissingImports=false

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from batchnorm_jax.linen import BatchNorm

from ...records.benchmarks.norm import OURS
from .. import torch_peer

# The operations after the norm in the layer: none, a ReLU, or a ReLU of the sum with a residual.
FUSIONS = ("", "relu", "residual")


class Case(NamedTuple):
    """A layer to measure.

    Attributes:
      shape: the shape of the input, NHWC.
      dtype: the dtype of the input and the result; parameters and statistics are float32.
      fusion: the operations after the norm, one of `FUSIONS`.
    """

    shape: tuple[int, ...]
    dtype: str
    fusion: str = ""

    def __str__(self) -> str:
        return f"({','.join(map(str, self.shape))}) {self.dtype}" + (f" {self.fusion}" if self.fusion else "")


class Arrays(NamedTuple):
    """The arrays of a case: input, cotangent of the result, residual, all NHWC, in float32."""

    x: np.ndarray
    dy: np.ndarray
    residual: np.ndarray


def draw(case: Case) -> Arrays:
    """Draws the arrays of a case."""
    r = np.random.default_rng(0)
    return Arrays(*(r.normal(size=case.shape).astype(np.float32) for _ in range(3)))


def jax_program(name: str, case: Case) -> tuple[Callable, list[Any]]:
    """Returns a layer's train step in JAX and its arguments.

    Args:
      name: the name of a `JaxLayer` in `LAYERS`.
      case: the layer's case.

    Returns:
      A function (x, dy, residuals, parameters, state) -> (y, gradients of x, residuals and parameters, new statistics),
      and its arguments.
    """
    layer = LAYERS[name]
    if not isinstance(layer, JaxLayer):
        raise ValueError(f"jax_program: a layer of JAX is required; got {name!r}. torch_steps runs it.")
    init, apply = layer.make(case)
    x, dy, residual = (jnp.asarray(a, case.dtype) for a in draw(case))
    if layer.features_first:
        x, dy, residual = (jnp.moveaxis(a, -1, 1) for a in (x, dy, residual))
    params, state = init(x)

    # An unused residual is left out: its gradient would be zeros, which take time to write.
    residuals = [residual] if case.fusion == "residual" else []

    def step(x, dy, residuals, params, state):
        def forward(x, residuals, params):
            return apply(x, residuals[0] if residuals else None, params, state)

        y, pullback, state = jax.vjp(forward, x, residuals, params, has_aux=True)
        return y, pullback(dy.astype(y.dtype)), state

    return step, [x, dy, residuals, params, state]


class Steps(NamedTuple):
    """The train step of a layer.

    Attributes:
      run: a function that runs a number of steps.
      passes: the bytes that one step moves by XLA's count, as multiples of the input's; None: not known.
    """

    run: Callable[[int], None]
    passes: float | None


def steps(name: str, case: Case, threads: int) -> Steps:
    """Returns the compiled train step of a layer.

    Args:
      name: a key of `LAYERS`.
      case: the layer's case.
      threads: the number of threads that PyTorch may use.
    """
    layer = LAYERS[name]
    if isinstance(layer, TorchLayer):
        return Steps(torch_steps(case, threads, channels_last=layer.channels_last), None)
    step, arguments = jax_program(name, case)
    compiled = jax.jit(step).lower(*arguments).compile()
    analysis = compiled.cost_analysis() or {}

    def run(number: int) -> None:
        for _ in range(number):
            # One step at a time on a CPU: steps dispatched ahead would take memory that PyTorch does not take.
            result = compiled(*arguments)
            if jax.default_backend() == "cpu":
                jax.block_until_ready(result)
        jax.block_until_ready(result)

    return Steps(run, analysis.get("bytes accessed", float("nan")) / arguments[0].nbytes)


def torch_steps(case: Case, threads: int, *, channels_last: bool) -> Callable[[int], None]:
    """Returns a function that runs steps of PyTorch's layer, which does not fuse the ReLU and the sum with the norm."""
    torch_peer.available()
    import torch

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    norm = torch.nn.BatchNorm2d(case.shape[-1]).to(device).train()

    def put(array):
        tensor = torch.from_numpy(np.moveaxis(array, -1, 1).copy()).to(device, getattr(torch, case.dtype))
        return tensor.contiguous(memory_format=layout)

    x, dy, residual = (put(a) for a in draw(case))
    leaves = [x.requires_grad_(), *norm.parameters()] + (
        [residual.requires_grad_()] if case.fusion == "residual" else []
    )

    def run(number: int) -> None:
        for _ in range(number):
            for leaf in leaves:
                leaf.grad = None
            y = norm(x)
            if case.fusion == "residual":
                y = y + residual
            if case.fusion:
                y = torch.relu(y)
            y.backward(dy)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def available(name: str) -> bool:
    """Returns whether the library of a layer is installed."""
    return importlib.util.find_spec(LAYERS[name].module) is not None


def _after(case: Case, y, residual):
    if case.fusion == "residual":
        y = y + residual
    return jax.nn.relu(y) if case.fusion else y


def _ours(case: Case):
    norm = BatchNorm(
        use_running_average=False, dtype=jnp.dtype(case.dtype), activation=jax.nn.relu if case.fusion else None
    )

    def apply(x, residual, params, state):
        y, updates = norm.apply(
            {"params": params, "batch_stats": state},
            x,
            residual=residual,
            mutable=["batch_stats"],
        )
        return y, updates["batch_stats"]

    return partial(_init_linen, norm), apply


def _flax(case: Case, *, use_fast_variance: bool = True):
    norm = nn.BatchNorm(use_running_average=False, dtype=jnp.dtype(case.dtype), use_fast_variance=use_fast_variance)

    def apply(x, residual, params, state):
        y, updates = norm.apply({"params": params, "batch_stats": state}, x, mutable=["batch_stats"])
        return _after(case, y, residual), updates["batch_stats"]

    return partial(_init_linen, norm), apply


def _init_linen(norm: nn.Module, x: jax.Array) -> tuple[Any, Any]:
    variables = norm.init(jax.random.key(0), x)
    return variables["params"], variables["batch_stats"]


def _haiku(case: Case):
    import haiku as hk

    norm = hk.transform_with_state(
        lambda x: hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.99)(x, is_training=True)
    )

    def apply(x, residual, params, state):
        y, state = norm.apply(params, state, None, x)
        return _after(case, y.astype(x.dtype), residual), state

    return lambda x: norm.init(jax.random.key(0), x), apply


def _equinox(case: Case):
    import equinox as eqx

    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(case.shape[-1], "examples", momentum=0.99, mode="batch")
    params, rest = eqx.partition(norm, eqx.is_inexact_array)

    def apply(x, residual, params, state):
        norm = eqx.combine(params, rest)
        y, state = jax.vmap(norm, axis_name="examples", in_axes=(0, None), out_axes=(0, None))(x, state)
        return _after(case, y.astype(x.dtype), residual), state

    return lambda x: (params, state), apply


class JaxLayer(NamedTuple):
    """A layer of a JAX library.

    Attributes:
      module: the module that must be installed.
      make: a function from a case to two functions, which initialise and apply the layer.
      features_first: whether the features are the first axis of an example in the library's convention.
    """

    module: str
    make: Callable[[Case], tuple[Callable, Callable]]
    features_first: bool = False


class TorchLayer(NamedTuple):
    """PyTorch's layer.

    Attributes:
      channels_last: whether arrays are stored in the layout NHWC; otherwise NCHW.
      module: the module that must be installed.
    """

    channels_last: bool
    module: str = "torch"


LAYERS: dict[str, JaxLayer | TorchLayer] = {
    OURS: JaxLayer("batchnorm_jax", _ours),
    "torch": TorchLayer(channels_last=True),
    "torch_nchw": TorchLayer(channels_last=False),
    "flax": JaxLayer("flax", _flax),
    "flax_stable": JaxLayer("flax", partial(_flax, use_fast_variance=False)),
    "haiku": JaxLayer("haiku", _haiku),
    "equinox": JaxLayer("equinox", _equinox, features_first=True),
}
PEERS = tuple(name for name in LAYERS if name != OURS)
