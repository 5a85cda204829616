"""Recurrent networks over devices: the carry that `nn.RNN` starts from counts as each device's own."""

import contextlib
from typing import Any

import jax
from flax import linen as nn
from jax import lax

from experiments.training.machine.devices import AXIS


def per_device() -> contextlib.AbstractContextManager:
    """Has every `nn.RNN` that is traced inside begin with a carry that counts as each device's own.

    Its cell makes one of zeros, the same on every device, and the scan over time asks for a type that stays: from the
    first input on the carry is each device's own. To be entered under `shard_map` over the devices.
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
    # Flax does not let a method be set; the cell stays the same object, by which its variables are found.
    object.__setattr__(cell, "initialize_carry", lambda *shape, **named: _varying(make(*shape, **named)))
    try:
        return next_function(*args, **kwargs)
    finally:
        object.__delattr__(cell, "initialize_carry")


def _varying(carry: Any) -> Any:
    def cast(a: jax.Array) -> jax.Array:
        return a if AXIS in jax.typeof(a).manual_axis_type.varying else lax.pcast(a, AXIS, to="varying")

    return jax.tree.map(cast, carry)
