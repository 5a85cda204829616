"""Operations with one implementation per platform, chosen when a program is lowered for a platform."""

import enum
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax


class Operation:
    """One operation and its implementations, each declared for a platform.

    The choice is made when the program is lowered, for the platform that it is lowered for: the default backend of the
    machine that traces it may be another one (an export, or compilation ahead of time). An operation with a single
    implementation leaves no trace in the program.

    Attributes:
      implementations: one function per platform of `jax.lax.platform_dependent` ("cpu", "cuda", "rocm", "tpu"), and
        "default" for every other platform. All of them take the same arguments and return the same shapes and dtypes.
    """

    def __init__(self, default: Callable[..., Any], **by_platform: Callable[..., Any]):
        self.implementations: dict[str, Callable[..., Any]] = {**by_platform, "default": default}

    def __call__(self, *arrays: Any, **static: Any) -> Any:
        """Runs the implementation for the platform.

        Args:
          *arrays: arrays, None, and nested tuples of these.
          **static: arguments that are known when the program is traced.
        """
        chosen = {platform: partial(function, **static) for platform, function in self.implementations.items()}
        if len(chosen) == 1:
            return chosen["default"](*arrays)
        return lax.platform_dependent(*arrays, **chosen)


class Reader(enum.IntEnum):
    """The parts of a norm's program that read x, each in a pass of its own on a CPU."""

    FIRST_SUM = 1
    SECOND_SUM = 2
    TANGENT_SUMS = 3
    AFFINE_TANGENT = 4
    ACTIVATION_TANGENT = 5


# XLA's CPU compiler would make one array of x - K for several sums and results that use it, of the size of x, write it
# and read it again. The other compilers fuse these into one pass over x, and must see that they share it.
KEEP_APART = Operation(lambda array: array, cpu=lax.optimization_barrier)


def apart(value: Any, times: int = 1) -> Any:
    """Returns the same arrays, in a form that XLA's CPU compiler does not recognise as the same; None stays None.

    Args:
      value: arrays and Nones.
      times: the number of barriers. Two readers that are to look different need different numbers, those of `Reader`.
    """
    for _ in range(times):
        # One by one: a barrier around several arrays would count all of them as varying where one of them varies.
        value = jax.tree.map(KEEP_APART, value)
    return value
