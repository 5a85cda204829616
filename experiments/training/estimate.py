"""Describes the costs of a compiled update: memory, collectives, arithmetic, and an estimate of its time."""

import dataclasses
import math
import re
from typing import NamedTuple

import jax

from .. import data as datasets
from .._errors import UsageError
from ..compiled import arithmetic, figures, targets
from ..compiled.speeds import SPEEDS
from ..records.runs import StepMemory
from .config import plan as plans
from .config.options import TrainConfig
from .config.plan import Plan
from .recipe.optimizers import OPTIMIZERS
from .state import TrainState
from .step.updates import Program

# JAX takes the first share of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION names another, such as the second.
GPU_MEMORY_SHARE, RAISED_MEMORY_SHARE = 0.75, 0.95
GIB = 2**30


class Costs(NamedTuple):
    """The costs of one update on one device.

    Attributes:
      bytes: the bytes read from and written to main memory.
      flop: the floating-point operations of matrix products and convolutions.
      cycles: the cycles by the estimate of a TPU's compiler, without collectives; None: another device.
      collectives: the number of collectives.
      collective_bytes: the bytes of their results.
      seconds: the time, or a lower bound of it; None: the speed of the device is not known.
    """

    bytes: int
    flop: int
    cycles: int | None
    collectives: int
    collective_bytes: int
    seconds: float | None


def costs(program: Program, kind: str, dtype: str) -> Costs:
    """Returns the costs of one update on one device.

    Args:
      program: the compiled update, with its parts.
      kind: the name by which JAX calls the device.
      dtype: the dtype of the computation.
    """
    speed = SPEEDS.get(_chip(kind) or "")
    total = Costs(0, 0, None, 0, 0, None if speed is None else 0.0)
    for part in program.parts:
        found, flop = figures.read(part.compiled, 0.0), arithmetic.flop(part.traced.jaxpr)
        total = Costs(
            bytes=total.bytes + part.runs * found.bytes,
            flop=total.flop + part.runs * flop,
            cycles=None if found.cycles is None else (total.cycles or 0) + part.runs * found.cycles,
            collectives=total.collectives + part.runs * found.collectives,
            collective_bytes=total.collective_bytes + part.runs * found.collective_bytes,
            seconds=None if speed is None else (total.seconds or 0) + part.runs * speed.seconds(found, flop, dtype),
        )
    return total


def _chip(kind: str) -> str | None:
    return next((name for name, chip in targets.CHIPS.items() if chip.kind == kind), None)


def of_model(
    config: TrainConfig, dataset: datasets.Dataset, source: str, state: TrainState, *, resident: bool
) -> list[str]:
    """Returns the lines about the data set and the model.

    Args:
      config: configuration of the run.
      dataset: the data set, whose images are not needed.
      source: where its sizes and shapes are from.
      state: the state, whose values are not needed.
      resident: whether the data set is kept on every device.
    """
    shape = "x".join(map(str, dataset.train.image_shape))
    kept = "kept on every device" if resident else "read by the hosts while they train"
    parameters = sum(math.prod(a.shape) for a in jax.tree.leaves(state.params))
    return [
        f"images    {shape}, {dataset.num_classes:,} classes, {source}; {kept}",
        f"model     {config.model} in {config.dtype}: {parameters:,} parameters",
    ]


def of_program(config: TrainConfig, plan: Plan, program: Program, kind: str) -> list[str]:
    """Returns the lines about the collectives and the time of an update, and the time of the run that follows from it.

    Args:
      config: configuration of the run.
      plan: the sizes of the run.
      program: the compiled update.
      kind: the name by which JAX calls the devices.
    """
    found = costs(program, kind, config.dtype)
    k = config.backwards_per_forward
    each = f"{k} updates" if k > 1 else "an update"
    lines = [
        f"network   {found.collectives:,} collective{'s' * (found.collectives != 1)} of "
        f"{found.collective_bytes / 2**20:,.1f} MiB in all for {each}",
        f"work      {_short(found.flop)}FLOP and {_short(found.bytes)}B through memory per device, for {each}",
    ]
    if OPTIMIZERS[config.optimizer].full_batch:
        lines.append("note      the line search, whose length is not known, is counted as one step of it")
    if found.seconds is None:
        lines.append(f"step      not estimated: the speed of a {kind} is not known here; --steps=20 measures it")
        return lines
    speed = SPEEDS[_chip(kind) or ""]
    if speed.clock_hertz is None:
        peak, bandwidth = speed.flop_per_second[config.dtype], speed.memory_bytes_per_second
        least = "at least "
        how = f", the longer of its bytes at {_short(bandwidth)}B/s and its arithmetic at {_short(peak)}FLOP/s"
    else:
        cycles, clock = f"{found.cycles or 0:,}", f"{speed.clock_hertz / 1e9:.2f} GHz"
        least, how = "", f" by the compiler's estimate of {cycles} cycles at {clock}, collectives left out"
    lines += [
        f"step      {least}{1e3 * found.seconds:,.3g} ms for {each}{how}; computed, not measured",
        f"run       {least}{_time(_whole(plan, k, found.seconds))} for {plan.total_steps:,} updates, without "
        "compiling, evaluation, and waiting for data",
    ]
    return lines


def _short(value: float) -> str:
    """Formats a number to three significant digits with the prefix of a unit.

    Example:
      >>> _short(2.5e11), _short(4.0)
      ('250 G', '4 ')
    """
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= scale:
            return f"{float(f'{value / scale:.3g}'):,.6g} {prefix}"
    return f"{value:,.0f} "


def _time(seconds: float) -> str:
    """Formats a duration to three significant digits.

    Example:
      >>> _time(5.371), _time(847), _time(10_350)
      ('5.37 s', '14.1 minutes', '2.88 hours')
    """
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} minutes" if seconds < 120 * 60 else f"{seconds / 3600:,.3g} hours"


def _whole(plan: Plan, backwards_per_forward: int, seconds: float) -> float:
    """Returns the seconds of all updates; in later phases an example takes as long as in the first."""
    ends = [*(phase.first_step for phase in plan.phases[1:]), plan.total_steps]
    first = plan.phases[0].batch_size
    passes = sum(
        (end - phase.first_step) * phase.batch_size / first for phase, end in zip(plan.phases, ends, strict=True)
    )
    return passes * seconds / backwards_per_forward


def refused_memory(message: str, limit: int | None) -> StepMemory | None:
    """Returns the memory that a compiler names as it refuses a program for it; None: it refuses for another reason.

    Args:
      message: the message of the compiler.
      limit: the memory of one device in bytes.

    Example:
      >>> refused_memory("RESOURCE_EXHAUSTED: Ran out of memory. Used 24.5G of 15.75G hbm.", 2**34).needed / 2**30
      24.5
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"Used ([\d.]+)([KMG]) of", message)
    if found is None:
        return StepMemory(limit=limit)
    return StepMemory(needed=round(float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[found[2]]), limit=limit)


def exceeds(memory: StepMemory) -> bool:
    """Returns whether an update needs more memory than there is."""
    return memory.needed is not None and memory.limit is not None and memory.needed > memory.limit


def memory_lines(config: TrainConfig, plan: Plan, devices: int, memory: StepMemory, platform: str) -> list[str]:
    """Returns the lines about the memory of an update, and what would help if it does not fit.

    Args:
      config: configuration of the run.
      plan: the sizes of the run.
      devices: the number of devices.
      memory: the memory of one device, for a CPU of all devices together.
      platform: the platform of the devices.
    """
    needed = "an unknown amount" if memory.needed is None else f"{memory.needed / GIB:,.2f} GiB"
    where = "on all devices together" if platform == "cpu" else "per device"
    there = "" if memory.limit is None else f", of {memory.limit / GIB:,.2f} GiB"
    lines = [f"memory    {needed} {where}{there}"]
    if exceeds(memory):
        help = [*_accumulation(config, plan, devices, memory), "more devices"]
        help += ["--dtype=bfloat16"] * (config.dtype == "float32")
        if platform == "gpu" and (memory.needed or 0) <= (memory.limit or 0) / GPU_MEMORY_SHARE * RAISED_MEMORY_SHARE:
            help.append(f"XLA_PYTHON_CLIENT_MEM_FRACTION={RAISED_MEMORY_SHARE} in the environment")
        lines.append(f"warning   an update does not fit in the memory; what helps: {', '.join(help)}")
    return lines


def _accumulation(config: TrainConfig, plan: Plan, devices: int, memory: StepMemory) -> list[str]:
    """Returns the flag with the fewest micro-batches that the configuration takes and that would fit in proportion."""
    now = config.accumulation_steps
    most = config.batch_size // devices
    wanted = now * (memory.needed or 0) / (memory.limit or 1)
    for micro in range(max(now + 1, math.ceil(wanted)), most + 1):
        if most % micro:
            continue
        try:
            plans.make(dataclasses.replace(config, accumulation_steps=micro), plan.examples, devices)
        except UsageError:
            continue
        return [f"--accumulation_steps={micro}"]
    return []
