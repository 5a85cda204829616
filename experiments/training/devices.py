"""Which devices a run uses, and how they are set up."""

import contextlib
import ctypes
import math
import os
import sys
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments._errors import UsageError

AXIS = "batch"
Device = Any  # A jax.Device, which type checkers take for a variable.


def cpu_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_up(num_devices: int | None, batch_size: int | None = None) -> list[Device]:
    """Chooses the devices of a run, and makes the CPU into several if it has no accelerator.

    Must come before JAX is first used in the process: it decides how many devices the CPU shows.

    Args:
      num_devices: how many; None: all accelerators, or on a CPU the most that there are cores for and divide the batch.
      batch_size: the global batch size; None: any number of devices will do.

    Returns:
      The devices.

    Raises:
      UsageError: there are fewer devices, or they do not divide the batch; the message names sizes that work.
    """
    if num_devices is not None and num_devices < 1:
        raise UsageError(f"--num_devices must be at least 1, not {num_devices}")

    def most(limit: int) -> int:
        return next(n for n in range(limit, 0, -1) if batch_size is None or batch_size % n == 0)

    wanted = num_devices or most(cpu_cores())
    # Devices on a CPU share a pool of NPROC threads. One that waits in a collective holds a thread, and with no more
    # threads than devices (the default on a small machine) they wait for each other until XLA aborts the process.
    os.environ.setdefault("NPROC", str(cpu_cores() + wanted))
    # If JAX is in use already, in a notebook or in the tests, what it has is what there is.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", wanted)
    keep_freed_memory()
    # Collectives of steps that were dispatched ahead can wait for each other in the same way.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    there = jax.devices()
    on_cpu = there[0].platform == "cpu"
    count = num_devices or (most(min(cpu_cores(), len(there))) if on_cpu else len(there))
    if count > len(there):
        raise UsageError(f"--num_devices={count}, but this process has {len(there)} ({there[0].platform})")
    if batch_size is not None and batch_size % count:
        raise UsageError(
            f"--batch_size={batch_size} is not divisible by {count} devices; the nearest sizes that work: "
            f"{nearest_multiples(batch_size, count)}. Or give --num_devices={math.gcd(batch_size, count)}."
        )
    return there[:count]


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
