"""Compiles the update of a training run for a stated topology, from shapes alone, and prints what it would cost."""

import os
import time
from typing import NamedTuple

import jax

from .. import data as datasets
from .._errors import UsageError
from ..compiled import targets
from ..records.runs import StepMemory
from . import estimate
from .config import plan as plans
from .config import preflight
from .config.options import TrainConfig
from .machine import devices
from .step import feeding
from .step.run import prepare
from .terminal import say

HERE = "here"
# Any statistics of the pixels will do: they are constants of the program. With 0 and 1 the compiler would drop them.
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25


class Place(NamedTuple):
    """The devices that a run is compiled for.

    Attributes:
      name: the value of `--dry_run`.
      devices: the devices of all processes.
      target: the topology; None: the machine at hand.
    """

    name: str
    devices: list[devices.Device]
    target: targets.Target | None

    @property
    def processes(self) -> int:
        """The number of processes, one per host."""
        return len({device.process_index for device in self.devices})

    @property
    def platform(self) -> str:
        """The platform of the devices."""
        return self.devices[0].platform

    @property
    def memory(self) -> int | None:
        """The bytes that a run may use of one device, for a CPU of the host; None: not known."""
        if self.target is None:
            return devices.memory_of(self.devices[0])
        whole = targets.CHIPS[self.target.chip].memory_bytes
        return int(estimate.GPU_MEMORY_SHARE * whole) if self.platform == "gpu" else whole


def check_name(flag: str, text: str) -> None:
    """Checks that a text names the machine at hand or a topology.

    Raises:
      UsageError: it names neither; the message names the flag and lists the chips.
    """
    if text != HERE:
        try:
            targets.check_name(flag, text)
        except UsageError as error:
            raise UsageError(f"{error} Or --{flag}={HERE}: the machine at hand.") from error


def run(config: TrainConfig, name: str) -> int:
    """Compiles the update of a run, and prints what the run would cost; trains, reads and writes nothing.

    Args:
      config: configuration of the run.
      name: the devices to compile for: a topology that `targets.parse` knows, or `HERE`.

    Returns:
      0, or 1 if the update does not fit in the memory of a device.

    Raises:
      UsageError: the run cannot be done as configured, its data set has no known shapes, or the compiler of the
        topology is not installed.
    """
    place = _place(config, name)
    dataset, source = datasets.outlined(
        config.dataset,
        config.data_dir,
        image_size=config.image_size,
        validation_examples=config.validation_examples,
    )
    channels = dataset.train.image_shape[-1]
    statistics = ([PIXEL_MEAN] * channels, [PIXEL_STD] * channels)
    prepared = prepare(config, dataset, statistics, place.devices, shapes_only=True)
    resident = feeding.is_resident(config, dataset, prepared.mesh, place.memory)
    count = len(place.devices)
    lines = [
        f"dry run   {place.name}, {count} x {place.devices[0].device_kind}: nothing is trained, and nothing written",
        *preflight.describe(config, prepared.plan, count, place.platform, place.processes, prepared.tried),
        *estimate.of_model(config, dataset, source, prepared.state, resident=resident),
    ]
    for line in lines:
        say(line)
    sources = feeding.shapes(config, dataset.train, prepared.mesh, resident=resident)
    started = time.monotonic()
    try:
        program = prepared.compile(prepared.state, sources, prepared.plan)
    except jax.errors.JaxRuntimeError as error:
        # The compiler of a TPU refuses a program that does not fit.
        memory, program = estimate.refused_memory(str(error), place.memory), None
        if memory is None:
            raise UsageError(f"--dry_run={name}: the compiler refuses the update ({_first_line(error)})") from error
    else:
        say(f"compiled  in {time.monotonic() - started:.0f} s on this machine")
        needed = preflight.step_memory(program.largest, place.devices).needed
        memory = StepMemory(needed=needed, limit=place.memory)
    lines = estimate.memory_lines(config, prepared.plan, count, memory, place.platform)
    if program is not None:
        lines += estimate.of_program(config, prepared.plan, program, place.devices[0].device_kind)
    for line in lines:
        say(line)
    return int(program is None or estimate.exceeds(memory))


def _place(config: TrainConfig, name: str) -> Place:
    if config.problem is not None:
        raise UsageError(
            f"--dry_run={name} compiles a model on images, and --problem={config.problem} is a program of its own; "
            "leave one of the two out"
        )
    if config.distributed or config.coordinator_address is not None:
        raise UsageError(
            f"--dry_run={name} is one process; leave --distributed and --coordinator_address out, and name the "
            "topology of all processes, such as --dry_run=h100:16"
        )
    if name == HERE:
        chosen = devices.set_up(config.num_devices, config.batch_size, micro_batches=config.accumulation_steps)
        place = Place(name, chosen, None)
    else:
        place = _elsewhere(name)
        if config.num_devices is not None and config.num_devices * place.processes != len(place.devices):
            raise UsageError(
                f"--dry_run={name} has {len(place.devices)} devices in {place.processes} processes, not "
                f"{config.num_devices} in each; leave --num_devices out"
            )
    plans.check_divisible(
        config, config.batch_size, len(place.devices), place.processes, all_devices=place.target is not None
    )
    return place


def _elsewhere(name: str) -> Place:
    target = targets.parse(name)
    if missing := targets.missing(target):
        raise UsageError(f"--dry_run={name}: {missing}")
    os.environ.update(target.environment)
    # The environment variable is read when JAX is imported.
    jax.config.update("jax_platforms", "cpu")
    try:
        return Place(name, targets.devices(target), target)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise UsageError(f"--dry_run={name}: there is no such topology ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
