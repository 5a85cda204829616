"""Converts the options of a batch norm between PyTorch and the modules here."""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, TypedDict

from jax.core import Tracer
from jax.typing import ArrayLike


class FlaxOptions(TypedDict, total=False):
    """Keyword arguments of `linen.BatchNorm` and `nnx.BatchNorm` that PyTorch's norm has, too."""

    momentum: float
    epsilon: float
    use_scale: bool
    use_bias: bool
    unbiased_running_var: bool
    use_running_average: bool
    update_stats: bool


class TorchOptions(TypedDict, total=False):
    """Keyword arguments of `torch.nn.BatchNorm1d`, 2d and 3d."""

    eps: float
    momentum: float
    affine: bool
    track_running_stats: bool
    bias: bool


class _Mode(TypedDict, total=False):
    """The options that decide which statistics a norm uses and updates."""

    use_running_average: bool
    update_stats: bool


# Options of either library by name, whose values are still to be checked.
_Values = dict[str, Any]
# PyTorch's options with its defaults, and the options here with theirs.
_TORCH = {"eps": 1e-5, "momentum": 0.1, "affine": True, "bias": True, "track_running_stats": True}
_FLAX = {
    "epsilon": 1e-5,
    "momentum": 0.99,
    "use_scale": True,
    "use_bias": True,
    "use_running_average": None,
    "update_stats": None,
}
_FLAGS = ("affine", "bias", "track_running_stats", "use_scale", "use_bias")


def options_from_torch(layer: Any = None, *, num_batches_tracked: ArrayLike | None = None) -> FlaxOptions:
    """Returns the options with which `linen.BatchNorm` or `nnx.BatchNorm` computes what a PyTorch batch norm does.

        momentum = 1 - PyTorch's,   epsilon = eps,   use_scale = use_bias = affine,   unbiased_running_var = True

    PyTorch's `momentum` is the share of the new batch, and Flax's that of the old average. The difference is taken in
    decimals, 0.1 <-> 0.9, so that momenta of up to 15 decimals come back exactly. PyTorch's `momentum=None` is the
    plain average of all batches so far: after n batches the share of the next is 1 / (n + 1), so momentum =
    n / (n + 1), another one at each step.

    The arrays that a layer holds decide, as they do in PyTorch, not the flags that it was made with:

    | PyTorch's layer | in training | in evaluation | options here |
    |---|---|---|---|
    | has running statistics | the batch's, and updates | the running ones | neither of the two below |
    | has none | the batch's | the batch's | `use_running_average=False, update_stats=False` |
    | has them, `track_running_stats` set to False later | the batch's, no update | the running ones | \
`update_stats=False`, and `use_running_average=True` if the layer is in evaluation |
    | `FrozenBatchNorm2d` | the running ones | the running ones | `use_running_average=True, update_stats=False` |

    Args:
      layer: a PyTorch batch norm or a dict of its options; an option that is left out has PyTorch's default.
      num_batches_tracked: the number of batches before, needed where `momentum=None`. None: the layer's own number.

    Returns:
      Keyword arguments of the modules. Where they hold `use_running_average`, do not give it in the call of a linen
      module too, and do give it in the calls of an nnx model: `model.train()` and `model.eval()` overwrite it.

    Raises:
      ValueError: the layer is not a batch norm; an option is not one of eps, momentum, affine, bias,
        track_running_stats, or has a value that PyTorch does not accept; `momentum=None` in a dict without
        `num_batches_tracked`.

    Example:
      >>> options_from_torch({"momentum": 0.1})
      {'momentum': 0.9, 'epsilon': 1e-05, 'use_scale': True, 'use_bias': True, 'unbiased_running_var': True}
      >>> options_from_torch({"momentum": None}, num_batches_tracked=3)["momentum"]
      0.75

    Source: PyTorch's documentation of `torch.nn.BatchNorm2d`, and torchvision's of `ops.FrozenBatchNorm2d`.
    """
    caller = "options_from_torch"
    if layer is None or isinstance(layer, Mapping):
        given = _options(layer or {}, _TORCH, caller)
        given["bias"] = given["affine"] and given["bias"]
        mode: _Mode = {} if given["track_running_stats"] else {"use_running_average": False, "update_stats": False}
    else:
        given = _layer(layer, caller)
        mode = _mode(layer)
    options: FlaxOptions = {
        "epsilon": given["eps"],
        "use_scale": given["affine"],
        "use_bias": given["bias"],
        "unbiased_running_var": True,
        **mode,
    }
    if given["momentum"] is not None:
        return {"momentum": _complement(given["momentum"]), **options}
    if "update_stats" in mode:
        return options
    if num_batches_tracked is None:
        num_batches_tracked = getattr(layer, "num_batches_tracked", None)
    if num_batches_tracked is None:
        raise ValueError(
            f"{caller}: momentum=None averages all batches alike, with another momentum at every step; give "
            "num_batches_tracked=n, the number of batches before the step, or a momentum"
        )
    tracked: Any = num_batches_tracked
    count = int(tracked) if hasattr(tracked, "detach") else tracked
    # The count may be traced, so that one program serves all steps.
    if not isinstance(count, Tracer) and not 0 <= _number(count) < math.inf:
        raise ValueError(f"{caller}: num_batches_tracked={count!r} must be a number of batches, 0 or more")
    momentum: Any = count / (count + 1)
    return {"momentum": momentum, **options}


def options_to_torch(norm: Any = None) -> TorchOptions:
    """Returns the options with which `torch.nn.BatchNorm1d`, 2d or 3d computes what a batch norm here or in Flax does.

    It reverses `options_from_torch`. One difference is no option in PyTorch: it always averages the variance that is
    divided by n - 1, as the modules here do only with `unbiased_running_var=True`.

    Args:
      norm: a module, or a dict of its options; an option that is left out has the module's default.

    Returns:
      eps, momentum, affine and track_running_stats; and bias=False, which PyTorch has since 2.13, for a norm with only
      a scale.

    Raises:
      ValueError: the norm is not a batch norm; it has a bias without a scale, which PyTorch does not have; or an option
        or a value that PyTorch does not have.

    Example:
      >>> options_to_torch({"momentum": 0.9})
      {'eps': 1e-05, 'momentum': 0.1, 'affine': True, 'track_running_stats': True}

    Source: PyTorch's documentation of `torch.nn.BatchNorm2d`.
    """
    caller = "options_to_torch"
    if norm is None or isinstance(norm, Mapping):
        given = _options(norm or {}, _FLAX, caller, "unbiased_running_var")
    else:
        if not hasattr(norm, "momentum") or "Renorm" in type(norm).__name__:
            raise _no_batch_norm(norm, caller)
        if not hasattr(norm, "epsilon"):
            raise ValueError(f"{caller}: {type(norm).__name__} has no epsilon; PyTorch's goes to options_from_torch")
        # Flax's own module has no update_stats.
        given = _checked({name: getattr(norm, name, default) for name, default in _FLAX.items()}, caller)
    if given["momentum"] is None:
        raise ValueError(f"{caller}: momentum=None is no momentum of Flax's; give the share of the old average")
    if given["use_bias"] and not given["use_scale"]:
        raise ValueError(
            f"{caller}: use_scale=False and use_bias=True; PyTorch has no bias without a scale. Take both, with a "
            "scale of ones"
        )
    untracked = given["update_stats"] is False
    if untracked and given["use_running_average"] is None:
        raise ValueError(
            f"{caller}: update_stats=False and no use_running_average; PyTorch makes no such norm. Leave update_stats "
            "out, and set track_running_stats = False on PyTorch's layer once it is made"
        )
    options: TorchOptions = {
        "eps": given["epsilon"],
        "momentum": _complement(given["momentum"]),
        "affine": given["use_scale"],
        "track_running_stats": not (untracked and given["use_running_average"] is False),
    }
    if given["use_scale"] and not given["use_bias"]:
        options["bias"] = False
    return options


def _layer(layer: Any, caller: str) -> _Values:
    """Returns the options of a PyTorch layer; its arrays decide whether it has a scale and a bias."""
    name = type(layer).__name__
    if "InstanceNorm" in name:
        raise ValueError(f"{caller}: {name} normalises each example by itself and is no batch norm")
    if hasattr(layer, "epsilon"):
        raise ValueError(f"{caller}: {name} has an epsilon, which is Flax's name; Flax's goes to options_to_torch")
    if not hasattr(layer, "momentum") and not _is_frozen(layer):
        raise _no_batch_norm(layer, caller)
    if not hasattr(layer, "eps"):
        raise ValueError(
            f"{caller}: {name} has no eps, so its code holds it; give "
            "options_from_torch({'eps': ...}) | {'use_running_average': True, 'update_stats': False}"
        )
    flags = {name: getattr(layer, name, default) for name, default in _TORCH.items() if name != "bias"}
    arrays = {"affine": "weight", "bias": "bias"}
    held = {option: getattr(layer, array, None) is not None for option, array in arrays.items()}
    return _checked({**flags, **held}, caller)


def _is_frozen(layer: Any) -> bool:
    """Returns whether a PyTorch layer has running statistics that it never updates."""
    return hasattr(layer, "running_mean") and hasattr(layer, "running_var") and not hasattr(layer, "momentum")


def _mode(layer: Any) -> _Mode:
    """Returns the options that decide which statistics a PyTorch layer uses and updates."""
    if getattr(layer, "running_mean", None) is None and getattr(layer, "running_var", None) is None:
        return {"use_running_average": False, "update_stats": False}
    if _is_frozen(layer):
        return {"use_running_average": True, "update_stats": False}
    if getattr(layer, "track_running_stats", True):
        return {}
    # In training the call of the module decides which statistics it uses, as for every other norm.
    if getattr(layer, "training", True):
        return {"update_stats": False}
    return {"use_running_average": True, "update_stats": False}


def _options(given: Mapping[str, Any], defaults: Mapping[str, Any], caller: str, *ignored: str) -> _Values:
    """Returns the given options, checked, and the defaults of those that are left out."""
    if unknown := sorted(map(str, set(given) - set(defaults) - set(ignored))):
        raise ValueError(f"{caller}: {unknown} are not options that both have; those are {[*defaults, *ignored]}")
    return _checked({name: given.get(name, default) for name, default in defaults.items()}, caller)


def _checked(options: _Values, caller: str) -> _Values:
    """Returns the options, and raises a ValueError for a value that no batch norm has."""
    for name, value in options.items():
        if name in _FLAGS and _number(value) not in (0, 1):
            raise ValueError(f"{caller}: {name}={value!r} must be True or False")
        if name in ("eps", "epsilon") and not 0 <= _number(value) < math.inf:
            raise ValueError(f"{caller}: {name}={value!r} must be a number, 0 or more, such as 1e-5")
        if name == "momentum" and value is not None and not 0 <= _number(value) <= 1:
            raise ValueError(f"{caller}: momentum={value!r} must be a number between 0 and 1")
    return options


def _number(value: Any) -> float:
    """Returns the value as a float, or NaN where it is not a number."""
    try:
        return math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return math.nan


def _no_batch_norm(given: Any, caller: str) -> ValueError:
    """Returns the error for a layer that is not a batch norm."""
    return ValueError(f"{caller}: a batch norm or a dict of its options is wanted, not {type(given).__name__}")


def _complement(momentum: float) -> float:
    """Returns 1 - momentum without the rounding of binary fractions: 0.1 for 0.9."""
    return float(1 - Decimal(repr(float(momentum))))
