"""Statistics after a step, of which the next step on every device has to have the same."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from experiments._errors import UsageError
from experiments.training.machine.devices import AXIS


def shared(batch_stats: Any, statistics_of: Callable[[Any], Any], params: Any) -> Any:
    """The statistics as those of all devices, where they are the same on each.

    Args:
      batch_stats: after a step, on this device.
      statistics_of: parameters -> these statistics.
      params: that count as each device's own.

    Raises:
      UsageError: some are each device's own: which of them the next step should have is not known.
    """
    if not _own(batch_stats):
        return batch_stats
    batch_stats = _of_parameters_alone(batch_stats, statistics_of, params)
    if own := _own(batch_stats):
        raise UsageError(
            f"the statistics {', '.join(list(own)[:3])} are each device's own, as of a norm that does not pool over "
            "the devices; give the model the norm that its factory is given, or nn.BatchNorm, which is pooled here; or "
            "take --norm=local, which averages them, or --num_devices=1"
        )
    return batch_stats


def _own(batch_stats: Any) -> dict[str, jax.Array]:
    """Those that count as each device's own, by their path."""
    return {
        _named(path): leaf
        for path, leaf in jax.tree.leaves_with_path(batch_stats)
        if AXIS in jax.typeof(leaf).manual_axis_type.varying
    }


def _of_parameters_alone(batch_stats: Any, statistics_of: Callable, params: Any) -> Any:
    """Makes statistics the devices' common ones that are so by value, and each device's own by `own` alone.

    Such are those of `nn.SpectralNorm`: of parameters that count as common they count as common themselves, as a
    second trace tells, of which nothing is computed.
    """
    common: dict[str, bool] = {}

    def trace(common_params):
        statistics = statistics_of(common_params)
        left = _own(statistics)
        common.update((_named(path), _named(path) not in left) for path, _ in jax.tree.leaves_with_path(statistics))

    jax.eval_shape(trace, jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params))
    apart = _own(batch_stats)

    def shared(path, leaf):
        # The largest of equal values is one of them, to the last bit.
        same = _named(path) in apart and common.get(_named(path), False)
        return lax.pmax(lax.stop_gradient(leaf), AXIS) if same else leaf

    return jax.tree.map_with_path(shared, batch_stats)


def _named(path: Any) -> str:
    return "/".join(str(getattr(key, "key", key)) for key in path)
