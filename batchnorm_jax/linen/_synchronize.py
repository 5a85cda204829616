"""The norms of an existing flax.linen model run as ours."""

import contextlib
import dataclasses
import inspect
import threading
from collections.abc import Iterator
from typing import Any

from flax import linen as nn

from batchnorm_jax._collectives import AxisName
from batchnorm_jax._options import check_synchronize
from batchnorm_jax.linen._module import BatchNorm

_FLAX_CALL, _OUR_CALL = inspect.unwrap(nn.BatchNorm.__call__), inspect.unwrap(BatchNorm.__call__)


@contextlib.contextmanager
def synchronize(axis_name: AxisName | None, **options: Any) -> Iterator[list[str]]:
    """Runs every `flax.linen.BatchNorm` that is traced inside the context as `batchnorm_jax.linen.BatchNorm`.

    The model's code and variables stay as they are; its norms pool over `axis_name`, with our derivative rule and
    collectives. Norms that are ours already keep their own options.

    It must enclose the tracing: a function that was jitted and called before is not affected, nor a module under
    `nn.jit` that was, and one that was traced inside keeps the change. The surest way is to enter it within the
    function that is jitted, around `model.apply`; the list that it gives shows what was traced. It acts on the
    thread that enters it, and of several contexts the innermost decides.

    Args:
      axis_name: the name or names of the axes over which to pool; None under `jit` with sharded arrays, where the
        statistics are those of the whole array. It replaces a norm's own.
      **options: of `BatchNorm`, in place of the norms' own: axis_index_groups, span, collective, use_fast_variance,
        unbiased_running_var, skip_nonfinite, check_conditioning, momentum. A norm's own groups are those of its own
        axis, and go with it.

    Yields:
      A list to which the path of each norm is added as it is traced, such as "block_0/BatchNorm_0".

    Raises:
      ValueError: an option that is not known, or that would change what the model computes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from batchnorm_jax.linen import synchronize
      >>> model = nn.Sequential([nn.Dense(2), nn.BatchNorm(use_running_average=False)])
      >>> x = jnp.arange(8.0).reshape(4, 2, 1)  # four devices with two examples each
      >>> variables = model.init(jax.random.key(0), x[0])
      >>> def step(x):
      ...     with synchronize("batch"):
      ...         return model.apply(variables, x, mutable=["batch_stats"])
      >>> y, updates = jax.vmap(step, axis_name="batch")(x)
      >>> bool(jnp.allclose(y.mean((0, 1)), 0, atol=1e-6))
      True
    """
    check_synchronize(options)
    options = {"axis_name": axis_name, "axis_index_groups": None, **options}
    BatchNorm(**options)  # What conflicts is refused here, not in the midst of a model.
    replaced: list[str] = []

    def interceptor(next_function, args, kwargs, context: nn.module.InterceptorContext):
        # Of several contexts the innermost decides.
        if not is_flax_call(context) or _contexts.entered[-1] is not replaced:
            return next_function(*args, **kwargs)
        replaced.append("/".join(context.module.path))
        return as_ours(context.module, **options)(*args, **kwargs)

    _contexts.entered.append(replaced)
    try:
        with nn.intercept_methods(interceptor):
            yield replaced
    finally:
        _contexts.entered.pop()


class _Contexts(threading.local):
    """The contexts that a thread is in; Flax keeps its interceptors likewise."""

    def __init__(self):
        self.entered: list[list[str]] = []


_contexts = _Contexts()


def is_flax_call(context: nn.module.InterceptorContext) -> bool:
    """Whether what is called is the method of Flax's own norm, maybe by a subclass of it."""
    return _called(context) is _FLAX_CALL


def is_our_call(context: nn.module.InterceptorContext) -> bool:
    """Whether what is called is the method of our norm, maybe by a subclass of it."""
    return _called(context) is _OUR_CALL


def _called(context: nn.module.InterceptorContext) -> Any:
    # Flax hands out the function with its module bound to it.
    return getattr(context.orig_method, "func", None)


def as_ours(norm: Any, **options: Any) -> BatchNorm:
    """Our norm on the variables of Flax's, with its options but for those that are given."""
    names = [field.name for field in dataclasses.fields(nn.BatchNorm) if field.name not in ("parent", "name")]
    own = {name: getattr(norm, name) for name in names}
    # The scope for a parent: the variables are found where the other norm has them.
    return BatchNorm(**own | options, parent=norm.scope)
