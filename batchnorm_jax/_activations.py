"""Activations that are fused into the norm: recognises those of `jax.nn`, and inverts those that can be inverted."""

import functools
import weakref
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from batchnorm_jax.typing import Activation

_PLAIN = (jax.nn.relu, jax.nn.leaky_relu, jax.nn.elu)
# The activations that have an option, and the option's name.
_OPTIONS = {jax.nn.leaky_relu: "negative_slope", jax.nn.elu: "alpha"}
# Calls that compute exactly what the program inside them does, with the same arguments in the same order.
_CALLS = {"jit", "pjit", "remat", "remat2", "checkpoint", "closed_call", "core_call"}
# The result of `recognised` for an activation that is no function of `jax.nn` in disguise.
_ITSELF = object()
# The result per activation, with 64-bit numbers and without: tracing one takes a few milliseconds.
_found: weakref.WeakKeyDictionary[Any, dict[bool, Any]] = weakref.WeakKeyDictionary()


def recognised(activation: Activation | None) -> Activation | None:
    """Returns the function of `jax.nn` that an activation is in disguise; any other activation as it is.

    A disguise is a deep copy, such as `copy.deepcopy` of a model makes, a partial, a lambda around the function, or a
    jitted or named one. The programs of its value and its derivative decide, not its identity. The known functions are
    the identity, which is None, `jax.nn.relu`, `jax.nn.leaky_relu` and `jax.nn.elu`, the last two as a partial where
    they have an option.

    Example:
      >>> import copy, jax
      >>> recognised(jax.jit(copy.deepcopy(jax.nn.relu))) is jax.nn.relu
      True
    """
    if activation is None or any(activation is known for known in _PLAIN):
        return activation
    wide = _wide()
    try:
        found = _found.setdefault(activation, {})
    except TypeError:  # It has no hash, or no weak reference to it can be made.
        found = {}
    if wide not in found:
        found[wide] = _traced(activation)
    return activation if found[wide] is _ITSELF else found[wide]


def static(activation: Activation | None) -> Activation | None:
    """Returns the activation as a static argument: recognised, and wrapped in a function where it has no hash."""
    activation = recognised(activation)
    if activation is None:
        return None
    function = activation
    try:
        hash(function)
    except TypeError:
        return lambda x: function(x)
    return function


def activated(activation: Activation, x: jax.Array) -> jax.Array:
    """Applies an activation.

    Raises:
      ValueError: its result is not an array of the shape of `x`.
    """
    y: Any = activation(x)
    if jnp.shape(y) != x.shape or not hasattr(y, "dtype"):
        given = f"an array of shape {y.shape}" if hasattr(y, "dtype") else f"{y!r}"
        raise ValueError(
            f"activation {getattr(activation, '__name__', activation)} gives {given} for an array of shape {x.shape}; "
            "it must be elementwise, as jax.nn.relu is"
        )
    return y


def is_relu(activation: Activation | None) -> bool:
    """Returns whether the sign of the activation's result gives its derivative."""
    return activation is jax.nn.relu


def inverse(activation: Activation | None) -> Activation | None:
    """Returns the inverse of the identity (None), `jax.nn.leaky_relu` or `jax.nn.elu`, or a partial of these.

    It is None where no inverse is known.

    Example:
      >>> from functools import partial
      >>> import jax, jax.numpy as jnp
      >>> undo = inverse(partial(jax.nn.leaky_relu, negative_slope=0.5))
      >>> undo(jnp.array([2.0, -1.0]))
      Array([ 2., -2.], dtype=float32)
    """
    if activation is None:
        return lambda y: y
    function, options = activation, {}
    if isinstance(activation, partial) and not activation.args:
        function, options = activation.func, activation.keywords
    if function is jax.nn.leaky_relu:
        slope = options.get("negative_slope", 1e-2)
        return (lambda y: jnp.where(y >= 0, y, y / slope)) if _positive(slope) else None
    if function is jax.nn.elu:
        alpha = options.get("alpha", 1.0)
        # Where rounding took the result to -alpha itself, the input is lost: a finite value stands in for it.
        return (
            (lambda y: jnp.where(y >= 0, y, jnp.log1p(jnp.maximum(y / alpha, -1 + 1e-6)))) if _positive(alpha) else None
        )
    return None


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def undo(activation: Activation | None, y: jax.Array) -> jax.Array:
    """Returns the input of an activation whose result is `y`."""
    function = inverse(activation)
    if function is None:
        raise ValueError(f"no inverse of {activation} is known")
    return function(y)


def _wide() -> bool:
    """Returns whether JAX computes in 64 bits."""
    return jnp.result_type(float) == jnp.float64


class _Program(NamedTuple):
    """The program of a function's value and derivative.

    Attributes:
      text: its lines, with calls inlined.
      numbers: the numbers in it.
    """

    text: tuple[str, ...]
    numbers: tuple[float, ...]


def _traced(activation: Activation) -> Any:
    """Returns the function of `jax.nn` that has the activation's program; `_ITSELF` where there is none."""
    try:
        program = _program(activation)
    except Exception:  # It fails, or takes no array of this shape: it will raise its own error where it is applied.
        return _ITSELF
    if program == _program(lambda x: x):
        return None
    if program == _program(jax.nn.relu):
        return jax.nn.relu
    for function, name in _OPTIONS.items():
        if program == _program(function):
            return function
        for value in program.numbers:
            if program == _program(partial(function, **{name: value})):
                return _with_option(function, name, value)
    return _ITSELF


@functools.cache
def _with_option(function: Any, name: str, value: float) -> Activation:
    """Returns the function with its option; the same option gives the same object, and so the same static argument."""
    return partial(function, **{name: value})


def _dtype(atom: Any) -> Any:
    return atom.aval.dtype


def _program(function: Any) -> _Program:
    """Traces a function and its derivative, and writes the program in a form that can be compared."""
    x = jax.ShapeDtypeStruct((2, 3), jnp.float64 if _wide() else jnp.float32)
    closed = jax.make_jaxpr(lambda x, dx: jax.jvp(function, (x,), (dx,)))(x, x)
    lines: list[str] = []
    numbers: dict[float, None] = {}

    def number(value, dtype) -> str:
        value = np.asarray(value)
        if value.size == 1 and value.dtype.kind == "f":
            numbers[value.item()] = None
        return str(value.astype(dtype).tolist())

    def inline(jaxpr, consts: list[str], arguments: list[str]) -> list[str]:
        names = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

        def read(atom) -> str:
            return number(atom.val, _dtype(atom)) if isinstance(atom, core.Literal) else names[atom]

        for equation in jaxpr.eqns:
            primitive, inputs = equation.primitive.name, [read(atom) for atom in equation.invars]
            inner = equation.params.get("jaxpr")
            if primitive in _CALLS and inner is not None:
                body = getattr(inner, "jaxpr", inner)
                results = inline(body, [number(c, c.dtype) for c in getattr(inner, "consts", ())], inputs)
            elif primitive == "convert_element_type" and _dtype(equation.invars[0]) == equation.params["new_dtype"]:
                results = inputs  # A number without a dtype of its own gets one.
            else:
                results = [f"v{len(lines)}.{i}" for i in range(len(equation.outvars))]
                lines.append(f"{primitive} {sorted(equation.params.items())} {inputs}")
            names.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    results = inline(closed.jaxpr, [number(c, c.dtype) for c in closed.consts], ["x", "dx"])
    return _Program((*lines, str(results)), tuple(numbers))
