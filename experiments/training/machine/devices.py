"""Which devices a run uses, and how they are set up."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments._errors import UsageError

AXIS = "batch"
# A CPU's devices wait for each other: on two cores one sum over 256 of them takes 5 s, and over 1,000 of them 20 s.
MOST_OF_A_CPU, MOST_PER_CORE = 64, 8
Device = Any  # A jax.Device, which type checkers take for a variable.


def cpu_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _host_memory() -> int:
    """The bytes that this process may use: the machine's, or the limit of its control group if that is lower."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return min(limits)


def memory_of(device: Device) -> int | None:
    """The bytes that a device may use, those of the host for a CPU; None: it does not say."""
    if device.platform == "cpu":
        return _host_memory()
    return (device.memory_stats() or {}).get("bytes_limit")


def set_up(
    num_devices: int | None,
    batch_size: int | None = None,
    *,
    micro_batches: int = 1,
    connect: Callable[[], int] | None = None,
) -> list[Device]:
    """Chooses the devices of a run, and makes the CPU into several if it has no accelerator.

    Must come before JAX is first used in the process: it decides how many devices the CPU shows.

    Args:
      num_devices: how many of each process; None: all accelerators, or on a CPU the most that there are cores for
        and divide the batch.
      batch_size: the global batch size, which `plan.check_divisible` checks; None: any number of devices will do.
      micro_batches: that it is cut into.
      connect: joins the other processes and returns how many there are; None: there are no others.

    Returns:
      The devices of all processes.

    Raises:
      UsageError: there are fewer devices.
    """
    if num_devices is not None and num_devices < 1:
        raise UsageError(f"--num_devices must be at least 1, not {num_devices}")
    # Devices on a CPU share a pool of NPROC threads. One that waits in a collective holds a thread, and with no more
    # threads than devices (the default on a small machine) they wait for each other until XLA aborts the process.
    os.environ.setdefault("NPROC", str(cpu_cores() + (num_devices or cpu_cores())))
    keep_freed_memory()
    # Collectives of steps that were dispatched ahead can wait for each other in the same way.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    processes = connect() if connect is not None else 1

    def most(limit: int) -> int:
        return next(
            n
            for n in range(limit, 0, -1)
            if batch_size is None or batch_size % (n * processes * micro_batches) == 0 or n == 1
        )

    # If JAX is in use already, in a notebook or in the tests, what it has is what there is.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", num_devices or most(cpu_cores()))
    there = local_devices()
    on_cpu = there[0].platform == "cpu"
    count = num_devices or (most(min(cpu_cores(), len(there))) if on_cpu else len(there))
    if on_cpu and count > (limit := max(MOST_OF_A_CPU, MOST_PER_CORE * cpu_cores())):
        raise UsageError(
            f"--num_devices={count}, but a CPU of {cpu_cores()} cores is divided into {limit} devices at most; take "
            "fewer"
        )
    if count > len(there):
        raise UsageError(f"--num_devices={count}, but this process has {len(there)} ({there[0].platform})")
    chosen: list[Device] = []
    for process in range(processes):
        chosen += [d for d in jax.devices() if d.process_index == process][:count]
    return chosen


def local_devices() -> list[Device]:
    """The devices of this process.

    Raises:
      UsageError: JAX finds none of the platform that the environment variable JAX_PLATFORMS names.
    """
    try:
        return jax.local_devices()
    # An assertion of JAX's, where the package for the platform is not installed.
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.values.get("jax_platforms")
        if not platforms:
            raise
        said = str(error).partition("\n")[0] or "its package is not installed"
        raise UsageError(
            f"JAX_PLATFORMS={platforms} asks for devices that are not found here ({said}); unset it, or set it to cpu"
        ) from error


def keep_compiled_programs(directory: Path) -> None:
    """Has JAX keep what it compiles in a folder, so that the same program starts at once the next time.

    A folder that JAX has been given already, as by the environment variable JAX_COMPILATION_CACHE_DIR, stays.
    """
    if jax.config.values.get("jax_compilation_cache_dir") is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def keep_freed_memory() -> None:
    """Has the C library keep what is freed, on Linux.

    XLA allocates the memory of a step anew each time. What glibc gives back to the system in between comes again as
    zeroed pages, one fault each, which took a third of the time of a step of 6,000 images on two cores.
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
    """The multiples of `divisor` on both sides of `value`, as text.

    Example:
      >>> nearest_multiples(10, 4)
      '8 and 12'
    """
    below = value // divisor * divisor
    return f"{below} and {below + divisor}" if below else str(divisor)


def make_mesh(devices: list[Device]) -> Mesh:
    """A mesh of one axis over which batches are cut."""
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Puts arrays of the host, which every process has whole, onto the devices of all processes."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(a):
        a = np.asarray(a)
        return jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])

    return jax.tree.map(put, tree)
