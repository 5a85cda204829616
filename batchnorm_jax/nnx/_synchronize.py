"""Turns the norms of an existing flax.nnx model into ours, and back."""

import inspect
from collections.abc import Iterator
from typing import Any, Unpack

from flax import linen as nn
from flax import nnx

from batchnorm_jax._synchronize import SynchronizeOptions, check_synchronize, pooling_of, with_axes
from batchnorm_jax._warnings import warn_of_unchanged
from batchnorm_jax.nnx._module import BatchNorm
from batchnorm_jax.typing import AxisName

_PARAMETERS = inspect.signature(BatchNorm.__init__).parameters
_OF_FLAX = inspect.signature(nnx.BatchNorm.__init__).parameters
# The options that our norm has and Flax's lacks, with their defaults.
_OURS = {
    name: parameter.default
    for name, parameter in _PARAMETERS.items()
    if name not in _OF_FLAX and parameter.kind is inspect.Parameter.KEYWORD_ONLY
}


def synchronize(model: nnx.Module, *, axis_name: AxisName | None, **options: Unpack[SynchronizeOptions]) -> list[str]:
    """Turns every `flax.nnx.BatchNorm` of a model into `batchnorm_jax.nnx.BatchNorm`, in place.

    The modules stay the same objects, with the same variables: shared modules stay shared, and references to a module,
    such as an optimizer's, stay valid. The modules are no longer instances of Flax's class. Norms that are ours already
    keep their own options, but one without an `axis_name` takes the axes, groups and span that are given. A function
    that was jitted by `nnx.jit` and called before is traced anew, because the model is another; one made by
    `nnx.cached_partial` is not.

    Args:
      model: the model, which may be a norm itself.
      axis_name: the name or names of the axes to reduce over; None under `jit` with sharded arrays, where the
        statistics are those of the whole array. It replaces a norm's own.
      **options: options of `BatchNorm` in place of the norms' own: axis_index_groups, span, collective,
        use_fast_variance, unbiased_running_var, skip_nonfinite, check_conditioning, momentum. A norm's own groups
        belong to its own axis, and go with it.

    Returns:
      The path of each norm that was turned, such as "blocks/0/norm".

    Raises:
      ValueError: an unknown option, or one that would change what the model computes; the model has no batch
        normalization; or a norm is of a class derived from Flax's. No norm has been turned then.
      UnchangedNormWarning: a module looks like a norm but is of an unknown class.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from batchnorm_jax.nnx import synchronize
      >>> model = nnx.Sequential(nnx.Linear(1, 2, rngs=nnx.Rngs(0)), nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
      >>> synchronize(model, axis_name="batch")
      ['layers/1']
      >>> x = jnp.arange(8.0).reshape(4, 2, 1)  # four devices with two examples each
      >>> y = nnx.vmap(lambda model, x: model(x), in_axes=(None, 0), axis_name="batch")(nnx.clone(model), x)
    """
    check_synchronize(options)
    given = with_axes(axis_name, options)
    # Conflicting options are refused here, and lists become tuples.
    example = BatchNorm(1, rngs=nnx.Rngs(0), **given)
    found = list(norms(model))
    if not found:
        raise no_norms(model, caller="synchronize")
    turned: list[tuple[str, Any]] = [
        (path, norm)
        for path, norm in found
        if not isinstance(norm, BatchNorm) or (axis_name is not None and norm.axis_name is None)
    ]
    for path, norm in turned:
        if not isinstance(norm, BatchNorm) and type(norm) is not nnx.BatchNorm:
            raise ValueError(
                f"synchronize: {path} is of the class {type(norm).__name__}, which may do more than the "
                "flax.nnx.BatchNorm that it is derived from; derive it from batchnorm_jax.nnx.BatchNorm"
            )
    if left := lookalikes(model):
        warn_of_unchanged(f"synchronize: {name_lookalikes(left)}", stacklevel=2)
    for _, norm in turned:
        was_ours = isinstance(norm, BatchNorm)
        names = list(pooling_of(given) if was_ours else given)
        kept = tuple((name, _frozen(getattr(norm, name))) for name in names if hasattr(norm, name))
        before = getattr(norm, "before_synchronize", None) or (type(norm), kept)
        if not was_ours:
            become_ours(norm)
        norm.before_synchronize = before
        for name in names:
            setattr(norm, name, getattr(example, name))
    return [path for path, _ in turned]


def unsynchronize(model: nnx.Module) -> list[str]:
    """Turns norms that `synchronize` turned back into what they were, with the options that they had, in place.

    They become `flax.nnx.BatchNorm`, or ours without an axis. The variables, and so the current running statistics,
    stay as they are.

    Args:
      model: the model, which may be a norm itself.

    Returns:
      The path of each norm that was turned back.

    Raises:
      ValueError: `synchronize` turned none of its norms.

    Example:
      >>> from flax import nnx
      >>> from batchnorm_jax.nnx import synchronize, unsynchronize
      >>> model = nnx.Sequential(nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
      >>> synchronize(model, axis_name="batch") == unsynchronize(model)
      True
      >>> type(model.layers[0]) is nnx.BatchNorm
      True
    """
    turned = [(path, norm) for path, norm in norms(model) if getattr(norm, "before_synchronize", None) is not None]
    if not turned:
        raise ValueError(f"unsynchronize: synchronize has turned no norm of this {type(model).__name__}")
    for _, norm in turned:
        kind, before = norm.before_synchronize
        for name in (*(_OURS if kind is nnx.BatchNorm else ()), "before_synchronize"):
            delattr(norm, name)
        norm.__class__ = kind
        for name, value in before:
            setattr(norm, name, value)
    return [path for path, _ in turned]


def lookalikes(model: nnx.Module) -> dict[str, type]:
    """Returns, by path, the class of each module that keeps a mean and a variance but is no known norm."""
    found = {}
    for path, module in nnx.iter_graph(model):
        if isinstance(module, nnx.Module) and not isinstance(module, nnx.BatchNorm | BatchNorm):
            kept = [
                name.lower()
                for name, value in vars(module).items()
                if isinstance(value, nnx.Variable) and not isinstance(value, nnx.Param)
            ]
            if any("mean" in name for name in kept) and any("var" in name or "std" in name for name in kept):
                found["/".join(map(str, path))] = type(module)
    return found


def no_norms(model: Any, *, caller: str) -> ValueError:
    """Returns an error that gives the reason why a model has no norm to change."""
    kind = type(model).__name__
    if isinstance(model, nn.Module):
        return ValueError(
            f"{caller}: {kind} is a flax.linen module, and this takes flax.nnx modules; use "
            f"batchnorm_jax.linen.{caller}" + (", a context around model.apply" if caller == "synchronize" else "")
        )
    if not isinstance(model, nnx.Module):
        return ValueError(f"{caller}: the model must be a flax.nnx module, not {kind}")
    if left := lookalikes(model):
        return ValueError(f"{caller}: no norm was found: {name_lookalikes(left)}")
    return ValueError(f"{caller}: {kind} has no batch normalization")


def name_lookalikes(found: dict[str, type]) -> str:
    """Returns a sentence that names the modules, by path, and says what to do."""
    named = ", ".join(f"{path or 'the model'} ({kind.__name__})" for path, kind in list(found.items())[:5])
    return (
        f"{named} keeps a mean and a variance as a batch normalization does, but is of a class that is not known here; "
        "put a batchnorm_jax.nnx.BatchNorm with the same variables in its place"
    )


def _frozen(value: Any) -> Any:
    """Returns lists as tuples, which nnx does not count as state."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def become_ours(norm: Any) -> None:
    """Turns Flax's norm into ours, in place, with its own options."""
    norm.__class__ = BatchNorm
    for name, default in _OURS.items():
        setattr(norm, name, default)


def norms(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    """Yields the path and the module of every norm, ours and Flax's; a shared norm once."""
    for path, module in nnx.iter_graph(model) if isinstance(model, nnx.Module) else ():
        if isinstance(module, nnx.BatchNorm | BatchNorm):
            yield "/".join(map(str, path)), module
