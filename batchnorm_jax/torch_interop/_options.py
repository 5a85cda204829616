"""The options of a batch norm in PyTorch and in the modules here."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

_TORCH = {"eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True}
_FLAX = {
    "epsilon": 1e-5,
    "momentum": 0.99,
    "use_scale": True,
    "use_bias": True,
    "use_running_average": None,
    "update_stats": None,
}


def options_from_torch(layer: Any = None, *, num_batches_tracked: Any = None) -> dict[str, Any]:
    """The options with which `linen.BatchNorm` or `nnx.BatchNorm` is what a PyTorch batch norm is.

        momentum = 1 - PyTorch's,   epsilon = eps,   use_scale = use_bias = affine,   unbiased_running_var = True

    PyTorch's `momentum` is the share of the new batch, and Flax's that of the old average. The difference is taken in
    decimals, 0.1 <-> 0.9, so that momenta of up to 15 decimals come back exactly. PyTorch's `momentum=None` is the
    plain average of all batches so far: after n batches its share is 1 / (n + 1), so momentum = n / (n + 1), one for
    each step.

    Args:
      layer: a PyTorch batch norm or a dict of its options, of which those left out are PyTorch's defaults.
      num_batches_tracked: how many batches came before, read where `momentum=None`. None: the layer's own number.

    Returns:
      Keyword arguments of the modules. With `track_running_stats=False` they hold `use_running_average=False`, so do
      not give that in the call of a linen module, and do give it in the calls of an nnx model after `model.eval()`.

    Raises:
      ValueError: not a batch norm; an option that is not one of eps, momentum, affine, track_running_stats;
        `momentum=None` in a dict without `num_batches_tracked`.

    Example:
      >>> options_from_torch({"momentum": 0.1})
      {'momentum': 0.9, 'epsilon': 1e-05, 'use_scale': True, 'use_bias': True, 'unbiased_running_var': True}
      >>> options_from_torch({"momentum": None}, num_batches_tracked=3)["momentum"]
      0.75

    Source: PyTorch's documentation of `torch.nn.BatchNorm2d`.
    """
    given = _read(layer, _TORCH, "options_from_torch")
    momentum = given["momentum"]
    if momentum is None and num_batches_tracked is None and getattr(layer, "num_batches_tracked", None) is not None:
        num_batches_tracked = int(layer.num_batches_tracked)
    if momentum is not None:
        momentum = _complement(momentum)
    elif num_batches_tracked is not None:
        momentum = num_batches_tracked / (num_batches_tracked + 1)
    else:
        raise ValueError(
            "options_from_torch: momentum=None averages all batches alike, with another momentum at every step; give "
            "num_batches_tracked=n, the number of batches before the step, or a momentum"
        )
    options = {
        "momentum": momentum,
        "epsilon": given["eps"],
        "use_scale": given["affine"],
        "use_bias": given["affine"],
        "unbiased_running_var": True,
    }
    if not given["track_running_stats"]:
        options |= {"use_running_average": False, "update_stats": False}
    return options


def options_to_torch(norm: Any = None) -> dict[str, Any]:
    """The options of `torch.nn.BatchNorm1d`, 2d, 3d that make of it what a batch norm here or in Flax is.

    The reverse of `options_from_torch`. One thing is no option there: PyTorch always averages the variance that is
    divided by n - 1, as the modules here do only with `unbiased_running_var=True`.

    Args:
      norm: a module, or a dict of its options, of which those left out are the module's defaults.

    Returns:
      eps, momentum, affine and track_running_stats.

    Raises:
      ValueError: not a batch norm; only one of scale and bias, where PyTorch has both or neither; an option that
        PyTorch does not have.

    Example:
      >>> options_to_torch({"momentum": 0.9})
      {'eps': 1e-05, 'momentum': 0.1, 'affine': True, 'track_running_stats': True}

    Source: PyTorch's documentation of `torch.nn.BatchNorm2d`.
    """
    given = _read(norm, _FLAX, "options_to_torch", "unbiased_running_var")
    if given["use_scale"] != given["use_bias"]:
        raise ValueError(
            f"options_to_torch: use_scale={given['use_scale']} and use_bias={given['use_bias']}; PyTorch has both "
            "(affine=True) or neither. Take both, with a scale of ones or a bias of zeros for what is not learned"
        )
    return {
        "eps": given["epsilon"],
        "momentum": _complement(given["momentum"]),
        "affine": given["use_scale"],
        "track_running_stats": given["use_running_average"] is not False or given["update_stats"] is not False,
    }


def _read(source: Any, defaults: Mapping[str, Any], caller: str, *ignored: str) -> dict[str, Any]:
    if "InstanceNorm" in type(source).__name__:
        raise ValueError(f"{caller}: {type(source).__name__} normalises each example by itself and is no batch norm")
    if source is not None and not isinstance(source, Mapping):
        if not hasattr(source, "momentum"):
            raise ValueError(f"{caller}: a batch norm or a dict of its options is wanted, not {type(source).__name__}")
        # A module of Flax's own has no update_stats.
        return {name: getattr(source, name, default) for name, default in defaults.items()}
    source = source or {}
    if unknown := sorted(set(source) - set(defaults) - set(ignored)):
        raise ValueError(f"{caller}: {unknown} are not options that both have; those are {[*defaults, *ignored]}")
    return {name: source.get(name, default) for name, default in defaults.items()}


def _complement(momentum: float) -> float:
    """1 - momentum without the rounding of binary fractions: 0.1 for 0.9."""
    return float(1 - Decimal(repr(float(momentum))))
