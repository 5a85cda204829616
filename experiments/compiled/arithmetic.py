"""Counts the arithmetic of a traced program: the floating-point operations of its matrix products and convolutions."""

import math
from typing import Any

import jax


def flop(jaxpr: Any) -> int:
    """Returns the floating-point operations of the matrix products and convolutions of a program.

    A multiplication and an addition are two operations. Inside `shard_map` the shapes are those of one device, so the
    operations are too. The body of a `scan` counts once per iteration, that of a loop of unknown length once, and of a
    conditional the branch with most operations.

    Args:
      jaxpr: `traced.jaxpr`, where `traced` is the result of `jax.jit(f).trace(...)`.

    Example:
      >>> import jax.numpy as jnp
      >>> flop(jax.make_jaxpr(lambda a, b: jnp.tanh(a @ b))(jnp.ones((2, 3)), jnp.ones((3, 4))))
      48
    """
    return sum(_of_equation(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _of_equation(equation: Any) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, features = equation.invars[1].aval, parameters["dimension_numbers"].rhs_spec[0]
        products = equation.outvars[0].aval.size * kernel.size // kernel.shape[features]
        # The gradient of a strided convolution multiplies an input with zeros between its elements.
        return 2 * products // math.prod(parameters["lhs_dilation"])
    nested = [flop(inner) for inner in _nested(list(parameters.values()))]
    if name == "cond":
        return max(nested)
    return sum(nested) * (parameters["length"] if name == "scan" else 1)


def _nested(parameters: list[Any]) -> list[Any]:
    """Returns the programs among the parameters of an operation."""
    leaves = jax.tree.leaves(parameters, is_leaf=lambda leaf: hasattr(leaf, "eqns"))
    return [leaf for leaf in leaves if hasattr(leaf, "eqns")]
