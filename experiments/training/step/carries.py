"""Device-varying initial carries, without which `nn.RNN` cannot be traced under `shard_map`."""

import contextlib
from typing import Any

import jax
from flax import linen as nn
from jax import lax

from ..machine.devices import AXIS


def per_device() -> contextlib.AbstractContextManager:
    """Returns a context in which every `nn.RNN` starts from a carry that is marked as varying over the devices.

    An RNN cell starts from a carry of zeros, which JAX marks as replicated. From the first input on the carry varies
    over the devices, and `lax.scan` requires a carry whose type does not change. Enter the context inside `shard_map`
    over the devices.
    """
    return nn.intercept_methods(_begin)


def _begin(next_function, args, kwargs, context: nn.module.InterceptorContext):
    module: Any = context.module
    if not isinstance(module, nn.RNN) or context.method_name != "__call__":
        return next_function(*args, **kwargs)
    if kwargs.get("initial_carry") is not None:
        return next_function(*args, **kwargs | {"initial_carry": _varying(kwargs["initial_carry"])})
    cell = module.cell
    make = cell.initialize_carry
    # Flax forbids assignments to a module, and a copy of the cell would not find the variables of the original.
    object.__setattr__(cell, "initialize_carry", lambda *shape, **named: _varying(make(*shape, **named)))
    try:
        return next_function(*args, **kwargs)
    finally:
        object.__delattr__(cell, "initialize_carry")


def _varying(carry: Any) -> Any:
    def cast(a: jax.Array) -> jax.Array:
        return a if AXIS in jax.typeof(a).manual_axis_type.varying else lax.pcast(a, AXIS, to="varying")

    return jax.tree.map(cast, carry)
