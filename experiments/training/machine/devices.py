"""Chooses and sets up the devices of a run, and places arrays on them."""

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..._errors import UsageError

AXIS = "batch"
# Devices of one CPU wait for each other: on two cores a sum over 256 devices takes 5 s, and over 1,000 devices 20 s.
# The larger of the two limits applies.
MAX_CPU_DEVICES, MAX_CPU_DEVICES_PER_CORE = 64, 8
Device = Any  # A `jax.Device`, which type checkers reject as a type.


@functools.cache
def cpu_cores() -> int:
    """Returns the number of CPU cores that this process may run on, when it is first asked."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _host_memory() -> int:
    """Returns the bytes that this process may use: the machine's memory, or the lower limit of its control group."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return min(limits)


def is_here(device: Device) -> bool:
    """Returns whether a device is one of this run's, and not of a topology that programs are only compiled for."""
    return device in jax.devices()


def memory_of(device: Device) -> int | None:
    """Returns the bytes that a device may use, for a CPU those of the host; None if the device does not report them."""
    if device.platform == "cpu":
        return _host_memory()
    if not is_here(device):
        return None
    return (device.memory_stats() or {}).get("bytes_limit")


def set_up(
    num_devices: int | None,
    batch_size: int | None = None,
    *,
    micro_batches: int = 1,
    connect: Callable[[], int] | None = None,
) -> list[Device]:
    """Chooses the devices of a run; without an accelerator, divides the CPU into several devices.

    Call it before JAX is first used in the process: it decides how many devices the CPU shows.

    Args:
      num_devices: the number of devices per process; None: all accelerators, or on a CPU the largest number that is at
        most the number of cores and divides the batch.
      batch_size: the global batch size, which `plan.check_divisible` checks; None: any number of devices will do.
      micro_batches: the number of micro-batches that a batch is split into.
      connect: joins the other processes and returns the number of processes; None: there is one process.

    Returns:
      The devices of all processes, ordered by process.

    Raises:
      UsageError: there are fewer devices.
    """
    if num_devices is not None and num_devices < 1:
        raise UsageError(f"--num_devices must be at least 1, not {num_devices}")
    # Devices on a CPU share a pool of NPROC threads. A device that waits in a collective holds a thread. With no more
    # threads than devices (the default on a small machine) they wait for each other until XLA aborts the process.
    os.environ.setdefault("NPROC", str(cpu_cores() + (num_devices or cpu_cores())))
    keep_freed_memory()
    # Collectives of steps that were dispatched ahead can deadlock in the same way.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    processes = connect() if connect is not None else 1

    def most(limit: int) -> int:
        return next(
            n
            for n in range(limit, 0, -1)
            if batch_size is None or batch_size % (n * processes * micro_batches) == 0 or n == 1
        )

    # If JAX is in use already, in a notebook or in the tests, the number of its devices can no longer change.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", num_devices or most(cpu_cores()))
    available = local_devices()
    on_cpu = available[0].platform == "cpu"
    count = num_devices or (most(min(cpu_cores(), len(available))) if on_cpu else len(available))
    if on_cpu and count > (limit := max(MAX_CPU_DEVICES, MAX_CPU_DEVICES_PER_CORE * cpu_cores())):
        raise UsageError(
            f"--num_devices={count}, but a CPU of {cpu_cores()} cores is divided into at most {limit} devices; give a "
            "smaller --num_devices"
        )
    if count > len(available):
        raise UsageError(
            f"--num_devices={count}, but this process has {len(available)} ({available[0].platform}); give a smaller "
            "--num_devices"
        )
    chosen: list[Device] = []
    for process in range(processes):
        chosen += [d for d in jax.devices() if d.process_index == process][:count]
    return chosen


def local_devices() -> list[Device]:
    """Returns the devices of this process.

    Raises:
      UsageError: JAX finds no device of the platform that the environment variable JAX_PLATFORMS names.
    """
    try:
        return jax.local_devices()
    # JAX raises an AssertionError if the package for the platform is not installed.
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.values.get("jax_platforms")
        if not platforms:
            raise
        said = str(error).partition("\n")[0] or "its package is not installed"
        raise UsageError(
            f"JAX_PLATFORMS={platforms} asks for devices that are not found here ({said}); unset JAX_PLATFORMS, or set "
            "it to cpu"
        ) from error


def keep_compiled_programs(directory: Path) -> None:
    """Makes JAX cache compiled programs in a folder, so that the same program starts at once the next time.

    Does nothing if JAX has a cache folder already, for example from the environment variable JAX_COMPILATION_CACHE_DIR.

    Args:
      directory: the folder of the cache.
    """
    if jax.config.values.get("jax_compilation_cache_dir") is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def keep_freed_memory() -> None:
    """Makes the C library keep freed memory, on Linux.

    XLA allocates the memory of every step again. Memory that glibc has returned to the system in the meantime comes
    back as zeroed pages, with one page fault each: a third of the time of a step of 6,000 images on two cores.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    arena_max, mmap_threshold, trim_threshold = -8, -3, -1
    largest = 2**31 - 1
    mallopt(arena_max, 1)
    mallopt(mmap_threshold, largest)
    mallopt(trim_threshold, largest)


def nearest_multiples(value: int, divisor: int) -> str:
    """Returns the multiples of `divisor` on both sides of `value`, as text.

    Example:
      >>> nearest_multiples(10, 4)
      '8 and 12'
    """
    below = value // divisor * divisor
    return f"{below} and {below + divisor}" if below else str(divisor)


def make_mesh(devices: list[Device]) -> Mesh:
    """Returns a mesh with one axis, over which batches are sharded."""
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Places host arrays, which every process holds whole, on the devices of all processes.

    Args:
      tree: the arrays, or their shapes and dtypes without values.
      sharding: the layout of every array on the devices.

    Returns:
      The tree with device arrays; with their shapes, dtypes and shardings alone where the tree has no values, or where
      the devices are those of a topology that is not here.
    """
    leaves = jax.tree.leaves(tree)
    if any(isinstance(a, jax.ShapeDtypeStruct) for a in leaves) or not is_here(next(iter(sharding.device_set))):
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(a):
        a = np.asarray(a)
        return jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])

    return jax.tree.map(put, tree)
