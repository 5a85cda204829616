"""The norms that a model can be given."""

from collections.abc import Callable
from typing import Any

from batchnorm_jax.linen import BatchNorm
from experiments._errors import unknown_name
from experiments.training.devices import AXIS

NAMES = ("batch", "local", "none")


def make(name: str, momentum: float, span: int | None = None) -> Callable[..., Any] | None:
    """The norm that a model is given: a factory of modules, or None.

    Args:
      name: 'batch' (statistics over the global batch), 'local' (each device's own) or 'none'.
      momentum: of the running statistics.
      span: of 'batch': examples normalised together; None: all.

    Returns:
      A factory: options of `batchnorm_jax.linen.BatchNorm`, such as `axis`, `activation` and `scale_init`, to a module.

    Raises:
      UsageError: there is no such norm.
    """
    if name not in NAMES:
        raise unknown_name("norm", name, NAMES)
    if name == "none":
        return None
    axis_name = AXIS if name == "batch" else None
    return lambda **options: BatchNorm(momentum=momentum, axis_name=axis_name, span=span, **options)
