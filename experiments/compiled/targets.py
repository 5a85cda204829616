"""The accelerators that programs are compiled for: their names, their memory and their compilers."""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._errors import UsageError, unknown_name

EXTRA = "pip install -e '.[topology]'"
# The host's backend is the CPU, because only the compiler of the accelerator is used.
_HOST = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
# libtpu asks a metadata server for the host's kind unless a variable gives it. Any kind will do, because the topology
# names the kind to compile for. Several processes may load libtpu, since none of them holds a device.
_TPU = {
    **_HOST,
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_GPUS_PER_HOST = 8
_LIBTPU = "what libtpu 0.0.42.1 states when it refuses a program"


@dataclass(frozen=True)
class Chip:
    """An accelerator.

    Attributes:
      title: the full name.
      platform: the platform, "tpu" or "cuda".
      memory_bytes: the memory of one device that programs can use.
      memory_source: the source of `memory_bytes`.
      kind: the name by which JAX calls a device.
      options: the arguments of `get_topology_desc` beside the platform and the shape.
    """

    title: str
    platform: str
    memory_bytes: int
    memory_source: str
    kind: str
    options: Mapping[str, str] = field(default_factory=dict)


def _gib(value: float) -> int:
    return int(value * 2**30)


CHIPS: dict[str, Chip] = {
    # One device per chip, as on real hosts; without the option there would be one device per core.
    "v4": Chip("TPU v4", "tpu", _gib(30.75), _LIBTPU, "TPU v4", {"chip_config_name": "megacore"}),
    "v5e": Chip("TPU v5e", "tpu", _gib(15.75), _LIBTPU, "TPU v5 lite"),
    "v5p": Chip("TPU v5p", "tpu", _gib(95.74), _LIBTPU, "TPU v5"),
    "v6e": Chip("TPU v6e", "tpu", _gib(31.25), _LIBTPU, "TPU v6 lite"),
    # Two devices per chip.
    "tpu7x": Chip("TPU7x, each device half a chip", "tpu", _gib(94.75), _LIBTPU, "TPU7x"),
    # The whole memory of the GPU; JAX preallocates three quarters of it by default.
    "h100": Chip(
        "NVIDIA H100 80GB HBM3",
        "cuda",
        84_942_979_072,
        "device_memory_size in h100.txtpb: all of it",
        "NVIDIA H100 80GB HBM3",
    ),
}


@dataclass(frozen=True)
class Target:
    """The devices to compile for.

    Attributes:
      name: the name that was given, such as "v5e:2x2" or "h100:4".
      chip: a key of `CHIPS`.
      shape: the numbers of chips along the axes of a TPU's torus; for GPUs, one number: the GPUs.
    """

    name: str
    chip: str
    shape: tuple[int, ...]

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that a process needs before it imports jax."""
        return dict(_TPU if CHIPS[self.chip].platform == "tpu" else _HOST)


def parse(name: str) -> Target:
    """Parses the name of a topology.

    Args:
      name: a name such as "v5e:4x4" for TPUs; "h100" or "h100:16" for NVIDIA H100s, eight per host.

    Raises:
      UsageError: the chip is not known, or cannot be used in this number.

    Example:
      >>> parse("v5e:2x4").shape, parse("h100").shape
      ((2, 4), (1,))
    """
    chip, _, shape = name.partition(":")
    if chip not in CHIPS:
        raise unknown_name("topology", chip, CHIPS, hint=" Examples: v5e:2x2, v5p:2x2x1, h100:4.")
    if CHIPS[chip].platform == "cuda":
        count = int(shape) if shape.isdecimal() else 0 if shape else 1
        if count < 1 or (count > _GPUS_PER_HOST and count % _GPUS_PER_HOST):
            raise UsageError(
                f"topology {name!r}: {chip}:N needs a number from 1 to {_GPUS_PER_HOST}, or a multiple of it; got "
                f"{shape!r}. For example {chip}:{_GPUS_PER_HOST}."
            )
        return Target(name, chip, (count,))
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise UsageError(f"topology {name!r}: chips along each axis are needed; got {shape!r}. For example {chip}:2x2.")
    return Target(name, chip, tuple(int(n) for n in shape.split("x")))


def missing(target: Target) -> str | None:
    """Returns a text that tells how to install the compiler of a target; None: it is installed."""
    package, modules = "libtpu", ("libtpu",)
    if CHIPS[target.chip].platform == "cuda":
        package, modules = "jax-cuda12-plugin", ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
    if any(map(_is_installed, modules)):
        return None
    return f"{package} is not installed; in an environment of its own: {EXTRA}"


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def check_name(flag: str, text: str) -> None:
    """Checks that a text names a topology.

    Args:
      flag: the name of the flag, for the message.
      text: the value of the flag.

    Raises:
      UsageError: it does not; the message names the flag and lists the chips.
    """
    try:
        parse(text)
    except UsageError as error:
        raise UsageError(f"--{flag}: {error}") from error


def mesh(target: Target, axis_name: str) -> Any:
    """Returns a mesh over all devices of a target, in a process that has the target's environment.

    Args:
      target: a target whose compiler is installed.
      axis_name: the name of the mesh's only axis.
    """
    # These imports load jax, which must happen after the environment is set.
    import numpy as np
    from jax.sharding import AxisType, Mesh

    return Mesh(np.array(devices(target)), (axis_name,), axis_types=(AxisType.Auto,))


def devices(target: Target) -> list[Any]:
    """Returns the devices of a target, in a process that has the target's environment.

    Args:
      target: a target whose compiler is installed.

    Raises:
      JaxRuntimeError: the compiler does not know a topology of this shape.
    """
    from jax.experimental import topologies

    chip = CHIPS[target.chip]
    options: dict[str, Any] = dict(chip.options)
    if chip.platform == "cuda":
        (count,) = target.shape
        per_host = min(count, _GPUS_PER_HOST)
        options["topology"] = f"1x{count // per_host}x{per_host}"
        options["target_config"] = Path(__file__).with_name(f"{target.chip}.txtpb").read_text()
        name = target.chip
    else:
        name = target.name
        if any(n % 2 for n in target.shape[:2]):
            # By default a host has 2 x 2 chips, which an odd axis does not allow.
            options["chips_per_host_bounds"] = [1, 1, 1]
    return topologies.get_topology_desc(platform=chip.platform, topology_name=name, **options).devices
