"""Models from a user's own factory, adapted to the call signature of all models."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from .. import _users
from .._errors import UsageError

# The names that are recognised for the arguments of a factory (`CLASSES`) and of a model's call (`TRAIN`, or
# `EVALUATE`, which means the opposite).
CLASSES = ("num_classes", "n_classes", "classes", "num_outputs")
TRAIN = ("train", "training", "is_training")
EVALUATE = ("deterministic", "use_running_average", "inference")


def model(name: str, num_classes: int, norm: Any, dtype: Any) -> nn.Module:
    """Calls the user's factory, and adapts the model that it returns.

    The factory, which may be a class, receives those of `num_classes`, `norm` and `dtype` that its signature takes.

    Args:
      name: the value of `--model`, "package.module:factory".
      num_classes: the number of classes of the labels.
      norm: the factory of the norms, a `models.normalised.NormFactory`, or None.
      dtype: the compute dtype.

    Returns:
      A module called as `module(images, train=..., mask=...)`, whose parameters have the paths of the user's module.

    Raises:
      UsageError: the factory fails, requires other arguments, or returns something other than a linen module; or the
        call of that module requires other arguments.
    """
    factory = _users.function("model", name)
    values = {**dict.fromkeys(CLASSES, num_classes), "norm": norm, "dtype": dtype}
    taken = _taken(factory)
    named = set(taken.required) | set(taken.optional)
    given = {argument: values[argument] for argument in values if argument in named}
    if taken.others:
        known = {} if given.keys() & set(CLASSES) else {"num_classes": num_classes}
        given |= {**known, "norm": norm, "dtype": dtype}
    missing = [argument for argument in taken.required if argument not in given]
    if taken.by_place:
        raise _by_place(name, taken.by_place)
    if missing:
        raise UsageError(
            f"--model={name} must take num_classes, norm and dtype, or some of them, and it asks for "
            f"{', '.join(missing)} too; name a function that fills that in"
        )
    with _users.running("model", name, "the factory"):
        try:
            made = factory(**given)
        except TypeError as error:
            # A wrapper that takes *args hides the signature of the function that it wraps.
            if given or not taken.any_by_place:
                raise
            raise _by_place(name, ["*args"], f" ({error})") from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"--model={name} must return a flax.linen module, and it returned {_described(made)}")
    return _adapted(name, made)


def _by_place(name: str, arguments: list[str], why: str = "") -> UsageError:
    return UsageError(
        f"--model={name} is called with num_classes, norm and dtype by name, those of them that it takes, and it "
        f"takes {', '.join(arguments)} by position only{why}; write it as def model(num_classes), without / and *args"
    )


class _Taken:
    """The arguments that a function takes.

    Attributes:
      required: the names of arguments without a default.
      optional: the names of arguments with a default.
      others: whether the function takes any other name too, by `**kwargs`.
      by_place: the names of positional-only arguments without a default.
      any_by_place: whether the function takes any number of positional arguments, by `*args`.
    """

    def __init__(self, parameters: list[inspect.Parameter]):
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        named = [p for p in parameters if p.kind in kinds]
        self.required = [p.name for p in named if p.default is inspect.Parameter.empty]
        self.optional = [p.name for p in named if p.default is not inspect.Parameter.empty]
        self.others = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        self.by_place = [
            p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is inspect.Parameter.empty
        ]
        self.any_by_place = any(p.kind is p.VAR_POSITIONAL for p in parameters)


def _taken(function: Callable, *, skip: int = 0) -> _Taken:
    """Returns the arguments that a function takes, without the first `skip`; any name if its signature is not known."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = [inspect.Parameter("_", inspect.Parameter.VAR_KEYWORD)]
    return _Taken(parameters[skip:])


def _described(made: Any) -> str:
    if isinstance(made, type):
        return f"the class {made.__name__}; call it in the factory"
    if isinstance(made, tuple | list):
        return f"a {type(made).__name__} of {len(made)}"
    of_nnx = any(base.__module__.startswith("flax.nnx") for base in type(made).__mro__)
    return f"a {type(made).__name__}" + (", a module of flax.nnx, which is not trained here" if of_nnx else "")


def _adapted(name: str, module: nn.Module) -> nn.Module:
    called: Any = module
    while isinstance(called, nn.Sequential) and called.layers:
        called = called.layers[0]
    if not callable(called):
        raise UsageError(
            f"--model={name}: the {type(called).__name__} that it returned has no __call__, which is what is trained"
        )
    taken = _taken(called.__call__ if isinstance(called, nn.Module) else called, skip=1)
    named = [*taken.required, *taken.optional]
    flag = next((argument for argument in (*TRAIN, *EVALUATE) if argument in named), "train" if taken.others else None)
    missing = [argument for argument in taken.required if argument not in (flag, "mask")]
    if missing:
        raise UsageError(
            f"--model={name}: the model must be called as model(images, train=..., mask=...), or without one or both "
            f"of these, and its call asks for {', '.join(missing)} too; wrap it in a module that fills that in"
        )
    takes_mask = "mask" in named or taken.others
    if flag == "train" and takes_mask:
        return module
    return Adapted(module, name, flag, takes_mask)


class Adapted(nn.Module):
    """A wrapper that gives the user's module the common call signature, and keeps the paths of its variables.

    Attributes:
      inner: the user's module.
      model: the value of `--model`.
      flag: the user's name for the argument `train` or for its opposite; None: the module takes neither.
      takes_mask: whether the module takes `mask`.
    """

    inner: nn.Module
    model: str
    flag: str | None
    takes_mask: bool

    def setup(self):
        """Shares the scope of the module, so that no level is added to the paths of its variables."""
        nn.share_scope(self, self.inner)

    def __call__(self, images: jax.Array, *, train: bool, mask: jax.Array | None = None) -> Any:
        """Returns the logits of the user's module.

        Args:
          images: the images of the batch.
          train: True: normalise by the batch's statistics and update the running ones; False: use the running ones.
          mask: True where an example counts, shape (N,); None: all examples count.

        Raises:
          UsageError: a mask is given, and the module does not take one.
        """
        options: dict[str, Any] = {}
        if self.flag is not None:
            options[self.flag] = train if self.flag in TRAIN else not train
        if self.takes_mask:
            options["mask"] = mask
        elif mask is not None:
            raise UsageError(
                f"--model={self.model}: a padded batch needs a model whose call takes mask, to leave the padding out "
                "of the statistics; give it one, or leave --nodrop_remainder out"
            )
        inner: Any = self.inner
        return inner(images, **options)
