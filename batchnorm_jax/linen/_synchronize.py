"""Runs the norms of an existing flax.linen model as ours."""

import contextlib
import dataclasses
import inspect
import threading
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Unpack

from flax import linen as nn

from batchnorm_jax._collectives import check_axis_name
from batchnorm_jax._synchronize import GivenOptions, SynchronizeOptions, check_synchronize, pooling_of, with_axes
from batchnorm_jax._warnings import warn_of_unchanged
from batchnorm_jax.linen._adapt import (
    OF_FLAX,
    Replace,
    called,
    check_replace,
    is_to_replace,
    looks_like_a_norm,
    name_lookalikes,
    plain_class,
    run_as_ours,
)
from batchnorm_jax.linen._module import BatchNorm, BatchRenorm
from batchnorm_jax.typing import AxisName

_NOT_THE_MODEL = (
    ". The model is not given: what is called inside the context is turned, with "
    "`with synchronize('batch'): model.apply(...)`. (batchnorm_jax.nnx.synchronize takes a model)"
)
_FLAX_CALL, _OUR_CALL = inspect.unwrap(nn.BatchNorm.__call__), inspect.unwrap(BatchNorm.__call__)


@contextlib.contextmanager
def synchronize(
    axis_name: AxisName | None,
    *,
    replace: Replace | None = None,
    require: bool = True,
    **options: Unpack[SynchronizeOptions],
) -> Iterator[list[str]]:
    """Runs every `flax.linen.BatchNorm` that is traced inside the context as `batchnorm_jax.linen.BatchNorm`.

    The model's code and variables stay as they are; its norms pool over `axis_name`, with our derivative rule and
    collectives. Norms that are ours already keep their own options, but one without an `axis_name` takes the axes,
    groups and span of the context. A norm of another class, such as a copy of Flax's in another package, is run as ours
    if `replace` has a rule for it.

    The context must enclose the tracing. A function that was jitted and called before is not affected, nor is a module
    under `nn.jit` that was; a function that was traced inside keeps the change. The surest way is to enter the context
    within the function that is jitted, around `model.apply`; the list that it yields shows what was traced. Leaving it
    where no norm was turned is an error that gives the reason. It acts on the thread that enters it, and the innermost
    of several contexts decides.

    Args:
      axis_name: the name or names of the axes to reduce over; None under `jit` with sharded arrays, where the
        statistics are those of the whole array. It replaces a norm's own.
      replace: the rule for each class of norms that is neither Flax's nor ours. `flax.linen.BatchNorm`: the class is a
        copy of Flax's, with Flax's names of options and arguments. A function: it takes the module and all arguments of
        its call, and returns a dict of options of `BatchNorm` (of `BatchRenorm`, if `r_max` or `d_max` is among them),
        and of its call, such as `mask`. None: the class stays as it is. The input must be the first argument of the
        call, the result one array, and the variables `mean` and `var` in "batch_stats", and, if used, `scale` and
        `bias` in "params".
      require: raise an error on leaving where no norm was turned. False suits a model that may have no norm.
      **options: options of `BatchNorm` in place of the norms' own: axis_index_groups, span, collective,
        use_fast_variance, unbiased_running_var, skip_nonfinite, check_conditioning, momentum. A norm's own groups
        belong to its own axis, and go with it.

    Yields:
      A list to which the path of each norm is added as it is traced, such as "block_0/BatchNorm_0".

    Raises:
      ValueError: an unknown option, or one that would change what the model computes; or, on leaving, no norm was
        turned: none was called, those called are of an unknown class, or they are ours and pool over other axes than
        `axis_name`, or nothing was traced. (There is no error where the same context turned norms before: a function
        that was jitted then keeps the change.)
      UnchangedNormWarning: some norms were turned, but a module that looks like a norm was not.

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

      A norm of your own, whose call takes `train`:

      >>> class OwnNorm(nn.Module):
      ...     decay: float = 0.9
      ...     @nn.compact
      ...     def __call__(self, x, train):
      ...         mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
      ...         var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
      ...         return (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)
      >>> def options(norm, x, train):
      ...     own = {"use_running_average": not train, "momentum": norm.decay}
      ...     return {**own, "use_scale": False, "use_bias": False}
      >>> variables = OwnNorm().init(jax.random.key(0), x[0], True)
      >>> def step(x):
      ...     with synchronize("batch", replace={OwnNorm: options}):
      ...         return OwnNorm().apply(variables, x, True, mutable=["batch_stats"])
      >>> y, updates = jax.vmap(step, axis_name="batch")(x)
      >>> bool(jnp.allclose(y.mean((0, 1)), 0, atol=1e-6))
      True
    """
    check_axis_name(axis_name, caller="synchronize", hint=_NOT_THE_MODEL)
    check_synchronize(options)
    rules = check_replace(replace, caller="synchronize")
    given = with_axes(axis_name, options)
    BatchNorm(**given)  # Conflicting options are refused here, not in the middle of a model.
    seen = _Seen()

    def interceptor(next_function, args, kwargs, context: nn.module.InterceptorContext):
        module = context.module
        # The innermost of several contexts decides.
        if _contexts.entered[-1] is not seen or module.scope is None:
            return next_function(*args, **kwargs)
        path = "/".join(module.path)
        if is_flax_call(context) or is_to_replace(context, rules):
            seen.replaced.append(path)
            seen.norms.add(path)
            for outer in _contexts.entered:
                outer.turned = True
            if is_flax_call(context):
                return as_ours(module, given)(*args, **kwargs)
            return run_as_ours(module, rules[plain_class(module)], args, kwargs, caller="synchronize", **given)
        ours: Any = contextlib.nullcontext()
        if is_our_call(context):
            seen.norms.add(path)
            seen.ours[path] = module.axis_name
            if axis_name is not None and module.axis_name is None:
                seen.replaced.append(path)
                for outer in _contexts.entered:
                    outer.turned = True
                ours = _with_options(module, pooling_of(given))
        with ours:
            result = next_function(*args, **kwargs)
        seen.called[plain_class(module).__name__] = None
        # Last, because the norm that a derived class calls within is recorded by then.
        kind = plain_class(module)
        if path not in seen.norms and kind not in (*rules, BatchNorm, BatchRenorm) and looks_like_a_norm(module):
            seen.lookalikes[path] = kind
        return result

    _contexts.entered.append(seen)
    try:
        with nn.intercept_methods(interceptor):
            yield seen.replaced
    finally:
        _contexts.entered.pop()
    seen.report(axis_name, repr(sorted(given.items())), require=require)


@contextlib.contextmanager
def _with_options(norm: nn.Module, options: Mapping[str, Any]) -> Iterator[None]:
    """Gives a norm of ours other options while it is called. It stays the same object, which others may refer to."""
    before = {name: getattr(norm, name) for name in options}
    for name, value in options.items():
        object.__setattr__(norm, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(norm, name, value)


@dataclasses.dataclass
class _Seen:
    """Record of the norms that were called within a context.

    Attributes:
      replaced: the path of each norm that was turned, once per call.
      norms: the paths of norms of a known class, ours included.
      ours: the axes of each norm that was ours already, by its path.
      lookalikes: the class of each module that looks like a norm but is of no known class, by its path.
      called: the names of the classes of all modules, in the order of their calls.
      turned: this context, or one within it, turned a norm.
    """

    replaced: list[str] = dataclasses.field(default_factory=list)
    norms: set[str] = dataclasses.field(default_factory=set)
    ours: dict[str, AxisName | None] = dataclasses.field(default_factory=dict)
    lookalikes: dict[str, type] = dataclasses.field(default_factory=dict)
    called: dict[str, None] = dataclasses.field(default_factory=dict)
    turned: bool = False

    def report(self, axis_name: AxisName | None, key: str, *, require: bool) -> None:
        """Reports, on leaving, the norms that were not turned, where that may not be what was meant.

        Args:
          axis_name: the axes of the context.
          key: the options of the context, by which it is known when it is entered again.
          require: raise an error where no norm was turned.
        """
        if self.turned:
            _contexts.that_turned.add(key)
            if self.lookalikes:
                warn_of_unchanged(f"synchronize: {name_lookalikes(self.lookalikes)}", stacklevel=4)
        elif require and (reason := self._reason(axis_name, key)):
            raise ValueError(f"synchronize: no norm was turned: {reason}")

    def _reason(self, axis_name: AxisName | None, key: str) -> str:
        """Returns the reason why no norm was turned; "" where that is as it should be."""
        if self.lookalikes:
            return name_lookalikes(self.lookalikes)
        if self.ours:
            path, own = next(iter(self.ours.items()))
            return (
                ""
                if _names(axis_name) <= _names(own)
                else f"{path or 'the model'} is batchnorm_jax's already and keeps its axis_name={own!r}; make it with "
                f"axis_name={axis_name!r}"
            )
        if self.called:
            names = ", ".join(list(self.called)[:8])
            return f"the modules called ({names}) have no batch normalization; with require=False that is fine"
        if key in _contexts.that_turned:
            return ""
        return (
            "no flax.linen module was called inside. A function that was jitted and called before is not traced again: "
            "enter synchronize within it, around model.apply. Models of other libraries (flax.nnx, Keras, Equinox, "
            "haiku) are not reached; for flax.nnx there is batchnorm_jax.nnx.synchronize"
        )


def _names(axis_name: AxisName | None) -> set[Hashable]:
    """Returns the names of axes as a set."""
    if axis_name is None:
        return set()
    return set(axis_name) if isinstance(axis_name, tuple | list) else {axis_name}


class _Contexts(threading.local):
    """The contexts that a thread is in, outermost first, and the options of those that turned norms.

    They belong to a thread because Flax's interceptors do.
    """

    def __init__(self):
        self.entered: list[_Seen] = []
        self.that_turned: set[str] = set()


_contexts = _Contexts()


def is_flax_call(context: nn.module.InterceptorContext) -> bool:
    """Returns whether the call is that of Flax's own norm, or of a subclass which inherits it."""
    return called(context) is _FLAX_CALL


def is_our_call(context: nn.module.InterceptorContext) -> bool:
    """Returns whether the call is that of our norm, or of a subclass which inherits it."""
    return called(context) is _OUR_CALL


def as_ours(norm: Any, options: GivenOptions | None = None) -> BatchNorm:
    """Returns our norm on the variables of Flax's, with the options of Flax's except those that are given."""
    own = {name: getattr(norm, name) for name in OF_FLAX}
    # The scope is the parent, so that the variables are found where the other norm has them.
    return BatchNorm(**{**own, **(options or {})}, parent=norm.scope)
