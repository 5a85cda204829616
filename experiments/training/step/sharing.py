"""Statistics that all devices must share after a step: replicated if they are equal, refused if they differ."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from ..._errors import UsageError
from ..machine.devices import AXIS


def shared(batch_stats: Any, statistics_of: Callable[[Any], Any], params: Any) -> Any:
    """Returns the statistics after a step as replicated values, which JAX requires of the step's output.

    Args:
      batch_stats: the statistics after a step, on this device.
      statistics_of: parameters -> the statistics after a step with them.
      params: parameters that are marked as varying over the devices (by `single.device_varying`).

    Raises:
      UsageError: some statistics differ between devices, so there is no single value for the next step to use.
    """
    if not _varying(batch_stats):
        return batch_stats
    batch_stats = _replicate_functions_of_parameters(batch_stats, statistics_of, params)
    if apart := _varying(batch_stats):
        raise UsageError(
            f"the statistics {', '.join(list(apart)[:3])} must be equal on all devices and are not, as with a norm "
            "that does not pool over the devices; use the norm that the model's factory is given, or nn.BatchNorm, "
            "which is pooled here; or take --norm=local, which averages the statistics, or --num_devices=1"
        )
    return batch_stats


def _varying(batch_stats: Any) -> dict[str, jax.Array]:
    """Returns the statistics that are marked as varying over the devices, by path."""
    return {
        _path_name(path): leaf
        for path, leaf in jax.tree.leaves_with_path(batch_stats)
        if AXIS in jax.typeof(leaf).manual_axis_type.varying
    }


def _replicate_functions_of_parameters(batch_stats: Any, statistics_of: Callable, params: Any) -> Any:
    """Replicates statistics that are computed from the parameters alone, such as those of `nn.SpectralNorm`.

    Their values are equal on all devices: they are marked as varying only because `single.device_varying` marked the
    parameters. To find them, the step is traced a second time, with replicated parameters: statistics that come out
    replicated there depend on nothing that differs between devices. Nothing is computed in that trace.
    """
    common: dict[str, bool] = {}

    def trace(common_params):
        statistics = statistics_of(common_params)
        left = _varying(statistics)
        common.update(
            (_path_name(path), _path_name(path) not in left) for path, _ in jax.tree.leaves_with_path(statistics)
        )

    jax.eval_shape(trace, jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params))
    apart = _varying(batch_stats)

    def shared(path, leaf):
        # The values are equal, so their maximum is the value itself, to the last bit; a mean could round.
        same = _path_name(path) in apart and common.get(_path_name(path), False)
        return lax.pmax(lax.stop_gradient(leaf), AXIS) if same else leaf

    return jax.tree.map_with_path(shared, batch_stats)


def _path_name(path: Any) -> str:
    return "/".join(str(getattr(key, "key", key)) for key in path)
