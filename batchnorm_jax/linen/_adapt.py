"""Recognises norms of a third party among other modules, and runs them as ours."""

import dataclasses
import inspect
from collections.abc import Callable, Container, Mapping
from typing import Any, TypedDict, cast

import jax
from flax import linen as nn
from jax.typing import ArrayLike

from batchnorm_jax.linen._module import BatchNorm, BatchRenorm

Rule = Callable[..., Mapping[str, Any]] | type[nn.BatchNorm] | None
"""The way that a class of norms is run as ours: see `synchronize`."""

Replace = Mapping[type, Rule]
"""The rule of each class of norms."""

Rules = dict[type, Rule]
"""A checked `Replace`."""

OF_FLAX = [field.name for field in dataclasses.fields(nn.BatchNorm) if field.name not in ("parent", "name")]
_OF_OURS = {field.name for field in dataclasses.fields(BatchRenorm)} - {"parent", "name"}


class CallOptions(TypedDict, total=False):
    """The options that a rule may give for the call of our norm."""

    mask: ArrayLike | None
    residual: ArrayLike | None
    update_stats: bool | None


_OF_CALL = tuple(CallOptions.__annotations__)


def check_replace(replace: Replace | None, *, caller: str) -> Rules:
    """Returns `replace` as a dictionary.

    Raises:
      ValueError: a key is not a class of linen modules, or a value neither a function, nor `nn.BatchNorm`, nor None.
    """
    if replace is not None and not isinstance(replace, Mapping):
        raise ValueError(
            f"{caller}: replace must be a mapping from a norm's class to its options, not {type(replace).__name__}; "
            "for a copy of Flax's norm it is {TheirNorm: flax.linen.BatchNorm}"
        )
    for key, rule in (replace or {}).items():
        if not (isinstance(key, type) and issubclass(key, nn.Module)):
            raise ValueError(f"{caller}: replace has the key {key!r}; it must be a class of flax.linen modules")
        if rule is not None and not callable(rule):
            raise ValueError(
                f"{caller}: replace has {rule!r} for {key.__name__}; give flax.linen.BatchNorm where its options have "
                "Flax's names, a function of the module and its call that gives options, or None to leave it alone"
            )
    return dict(replace or {})


def check_model(model: Any, *, caller: str) -> None:
    """Raises a ValueError for a model that is not a flax.linen module."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{caller}: the model must be a flax.linen module, not {type(model).__name__}; for flax.nnx there is "
            f"batchnorm_jax.nnx.{caller}"
        )


def plain_class(module: nn.Module) -> type:
    """Returns the class of a module without the wrappers of `nn.remat`, `nn.jit`, `nn.scan` and the like."""
    cls = type(module)
    while cls.__module__ == "flax.linen.transforms":
        cls = cls.__bases__[0]
    return cls


def is_to_replace(context: nn.module.InterceptorContext, rules: Rules) -> bool:
    """Returns whether a class is to be run as ours in this call; not while it makes its own variables."""
    kind: Any = plain_class(context.module)
    # Not the call of the class that `nn.scan` derives, within which this class is called.
    ours = rules.get(kind) is not None and called(context) is inspect.unwrap(kind.__call__)
    return ours and not context.module.is_initializing()


def called(context: nn.module.InterceptorContext) -> Any:
    """Returns the function that is called: Flax gives it with its module bound to it."""
    return getattr(context.orig_method, "func", None)


def replacer(rules: Rules, *, caller: str, folded: Container[str] | None = None) -> Callable[..., Any]:
    """Returns an interceptor that runs the norms of `rules` as ours.

    Args:
      rules: the rule of each class.
      caller: the public call, for messages.
      folded: the paths of the norms to run, whose variables are gone; None: all of them.
    """

    def intercept(next_function, args, kwargs, context: nn.module.InterceptorContext):
        module = context.module
        known = rules.get(plain_class(module)) is not None and module.scope is not None
        if not known or (folded is not None and "/".join(module.path) not in folded):
            return next_function(*args, **kwargs)
        if context.method_name == "setup" and folded is not None:
            return None  # It would ask for variables that are gone.
        if not is_to_replace(context, rules):
            return next_function(*args, **kwargs)
        rule = rules[plain_class(module)]
        norm, x, call = norm_instead(module, rule, args, kwargs, caller=caller, has_variables=folded is None)
        return norm(x, **call)

    return intercept


def run_as_ours(
    module: nn.Module, rule: Rule, args: tuple, kwargs: Mapping[str, Any], *, caller: str, **options: Any
) -> Any:
    """Calls our norm on the variables of a third party's, with the options that `rule` gives and those given here."""
    norm, x, call = norm_instead(module, rule, args, kwargs, caller=caller, has_variables=True, **options)
    return norm(x, **call)


def norm_instead(
    module: Any, rule: Any, args: tuple, kwargs: Mapping[str, Any], *, caller: str, has_variables: bool, **options: Any
) -> tuple[BatchNorm, jax.Array, CallOptions]:
    """Returns our norm on the variables of a third party's, its input and the options of its call.

    Args:
      module: the norm of a third party.
      rule: the rule of its class.
      args: the arguments of its call.
      kwargs: the keyword arguments of its call.
      caller: the public call, for messages.
      has_variables: check that the variables which our norm needs are there.
      **options: options of our norm, in place of those that the rule gives.
    """
    where = f"{'/'.join(module.path) or 'the model'} ({type(module).__name__})"
    own = _as_flax(module, *args, **kwargs) if rule is nn.BatchNorm else rule(module, *args, **kwargs)
    if not isinstance(own, Mapping):
        raise ValueError(
            f"{caller}: replace gives {type(own).__name__} for {where}; it must give a dict of options of "
            "batchnorm_jax.linen.BatchNorm, such as {'use_running_average': not train, 'momentum': norm.momentum}"
        )
    if unknown := [name for name in own if name not in _OF_OURS and name not in _OF_CALL]:
        raise ValueError(
            f"{caller}: replace gives {unknown[0]!r} for {where}, which batchnorm_jax.linen.BatchNorm does not take; "
            f"options are {', '.join(sorted(_OF_OURS | set(_OF_CALL)))}"
        )
    call = cast(CallOptions, {name: own[name] for name in _OF_CALL if name in own})
    kind = BatchRenorm if {"r_max", "d_max"} & set(own) else BatchNorm
    # A fresh view of the same variables: a `setup` may have laid claim to their names.
    scope = module.scope.rewound()
    norm: Any = kind(**{name: own[name] for name in own if name not in _OF_CALL} | options, parent=scope)
    wanted = [("batch_stats", "mean"), ("batch_stats", "var")]
    wanted += [("params", name) for name, used in (("scale", norm.use_scale), ("bias", norm.use_bias)) if used]
    wanted += [("batch_stats", "steps")] if kind is BatchRenorm else []
    if has_variables and (
        missing := [f"{collection}/{name}" for collection, name in wanted if not scope.has_variable(collection, name)]
    ):
        raise ValueError(
            f"{caller}: {where} has no {missing[0]}, which batchnorm_jax.linen.{kind.__name__} keeps; give "
            "use_scale=False or use_bias=False where it learns none, or rename its variables"
        )
    x = args[0] if args else next(iter(kwargs.values()))
    return norm, x, call


def _as_flax(
    module: nn.Module, x: jax.Array, use_running_average: bool | None = None, *, mask: ArrayLike | None = None
) -> Mapping[str, Any]:
    """Returns the options of a norm whose fields and call have the names of Flax's norm."""
    own = {name: getattr(module, name) for name in OF_FLAX if hasattr(module, name)}
    running = nn.merge_param("use_running_average", own.pop("use_running_average", None), use_running_average)
    return {**own, "use_running_average": running, "mask": mask}


def looks_like_a_norm(module: nn.Module) -> bool:
    """Returns whether a module that was called itself keeps a mean and a variance that are not parameters."""
    kept: dict[str, set[str]] = {}
    for name, collections in getattr(module.scope, "reservations", {}).items():
        for collection in collections:
            if collection not in (None, "params"):
                kept.setdefault(collection, set()).add(name.lower())
    return any(
        any("mean" in name for name in names) and any("var" in name or "std" in name for name in names)
        for names in kept.values()
    )


def name_lookalikes(found: Mapping[str, type]) -> str:
    """Returns a sentence that names the modules, by path, and says what to do."""
    named = ", ".join(f"{path or 'the model'} ({kind.__name__})" for path, kind in list(found.items())[:5])
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    classes = ", ".join(dict.fromkeys(kind.__name__ for kind in found.values()))
    return (
        f"{named}{more} keeps a mean and a variance as a batch normalization does, but is of a class that is not known "
        f"here; say how {classes} is run with replace={{{next(iter(found.values())).__name__}: ...}}, see "
        "batchnorm_jax.linen.synchronize"
    )
