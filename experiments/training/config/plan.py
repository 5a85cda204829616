"""The sizes of a run, worked out from its configuration before anything is compiled; and what is refused there."""

import math
from typing import NamedTuple

from experiments import _limits
from experiments._errors import UsageError
from experiments.training.config.options import AUTO, TrainConfig
from experiments.training.machine.devices import nearest_multiples
from experiments.training.recipe import schedules
from experiments.training.recipe.optimizers import OPTIMIZERS

# Of an automatic ramp: by what the batch grows, and the updates that an epoch has at least.
FACTOR = 2
# Of a run that is as short as its warmup, one part in so many: as by default 2 of 20 epochs.
SHORTENED = 10
FEWEST_UPDATES = 8


class Phase(NamedTuple):
    """Epochs with one batch size.

    Attributes:
      first_epoch: counted from 0.
      first_step: the updates before it.
      batch_size: global.
      steps_per_epoch: updates in one pass over the data.
    """

    first_epoch: int
    first_step: int
    batch_size: int
    steps_per_epoch: int


class Position(NamedTuple):
    """Where a step lies.

    Attributes:
      phase: of the batch size.
      epoch: counted from 0.
      first_step: the updates before this epoch.
      last_step: the updates at its end, or at the end of training if that is earlier.
    """

    phase: Phase
    epoch: int
    first_step: int
    last_step: int


class Plan(NamedTuple):
    """The sizes of a run.

    Attributes:
      examples: in the training set.
      phases: one, or with a batch ramp several; with an automatic one those that are known.
      total_steps: updates in all; with an automatic ramp, if the batch grows no more.
      warmup_steps: updates of warmup among them; a tenth where as long a warmup as was asked for is the whole run.
      boundaries: of the step schedule: updates before each, and the factor of the rate from there on.
      cycle_steps: updates of a cycle of the cyclic schedule.
      dropped: examples that an epoch of the first phase leaves out.
      largest: batch size up to which an automatic ramp may go; None: there is none.
    """

    examples: int
    phases: tuple[Phase, ...]
    total_steps: int
    warmup_steps: int
    boundaries: dict[int, float]
    cycle_steps: float
    dropped: int
    largest: int | None = None

    @property
    def epochs(self) -> float:
        """Passes over the data in all, dropped examples counted as read."""
        return self.epochs_at(self.total_steps)

    @property
    def batch_size(self) -> int:
        """Of the last phase."""
        return self.phases[-1].batch_size

    def locate(self, step: int) -> Position:
        """Where the update after `step` others lies."""
        phase = next(p for p in reversed(self.phases) if p.first_step <= step)
        epochs = (step - phase.first_step) // phase.steps_per_epoch
        first = phase.first_step + epochs * phase.steps_per_epoch
        last = min(first + phase.steps_per_epoch, self.total_steps)
        return Position(phase, phase.first_epoch + epochs, first, last)

    def examples_of(self, size: int, masked: bool) -> int:
        """How many examples a batch has that is padded to `size`; which depends on the number of devices."""
        if not masked:
            return size
        rests = (self.examples % phase.batch_size for phase in self.phases)
        return max((rest for rest in rests if rest <= size), default=size)

    def epochs_at(self, step: int) -> float:
        """Passes over the data after `step` updates."""
        phase = next(p for p in reversed(self.phases) if p.first_step <= step)
        return phase.first_epoch + (step - phase.first_step) / phase.steps_per_epoch


def grow(plan: Plan, config: TrainConfig, epoch: int) -> Plan:
    """The plan with `FACTOR` times the batch from the start of an epoch on, which lies in its last phase."""
    last = plan.phases[-1]
    size = FACTOR * last.batch_size
    first_step = last.first_step + (epoch - last.first_epoch) * last.steps_per_epoch
    phase = Phase(epoch, first_step, size, _steps_per_epoch(config, size, plan.examples))
    return plan._replace(phases=(*plan.phases, phase), total_steps=_total_steps(config, phase))


def make(config: TrainConfig, examples: int, devices: int) -> Plan:
    """Works out the sizes of a run.

    Args:
      config: of the run.
      examples: in the training set.
      devices: of all processes.

    Raises:
      UsageError: a batch is larger than the training set, or devices, micro-batches or spans do not divide it.
    """
    _check_batch(config, config.batch_size, examples, devices)
    per_epoch = _steps_per_epoch(config, config.batch_size, examples)
    k = config.backwards_per_forward
    if config.steps is not None and config.steps % k:
        raise UsageError(
            f"--steps={config.steps} counts updates and is not a multiple of --backwards_per_forward={k}; the nearest "
            f"that work: {nearest_multiples(config.steps, k)}"
        )
    epochs = config.epochs if config.steps is None else config.steps / per_epoch
    milestones = schedules.parse_epochs(config.step_epochs) or tuple(f * epochs for f in schedules.STEP_FRACTIONS)
    phases = (Phase(0, 0, config.batch_size, per_epoch),)
    boundaries: dict[int, float] = {}
    if schedules.SCHEDULES[config.schedule].has_milestones:
        # Those beyond the end change nothing; of a run of so many updates the end is not known in epochs.
        within = [m for m in milestones if config.steps is not None or m < epochs]
        phases, boundaries = _staircase(config, phases[0], within, examples, devices)
    total = _total_steps(config, phases[-1])
    phases = tuple(p for p in phases if p.first_step < total)
    boundaries = {step: scale for step, scale in boundaries.items() if step < total}
    warmup = _warmup(config, per_epoch, total)
    changes = sorted([*boundaries, *(p.first_step for p in phases[1:])])
    # Where the places were given the warmup is held to what was asked for, however short the run.
    until = wanted_warmup(config, per_epoch) if config.step_epochs else warmup
    if changes and changes[0] < until:
        raise UsageError(
            f"--schedule={config.schedule} makes its first change after {changes[0]} updates, inside the warmup of "
            f"{until}; give a shorter --warmup_epochs or later --step_epochs"
        )
    full = examples // config.batch_size * config.batch_size
    dropped = examples - full if config.drop_remainder else 0
    largest = _largest_of_ramp(config, examples, devices) if config.batch_ramp == AUTO else None
    return Plan(examples, phases, total, warmup, boundaries, config.cycle_epochs * per_epoch, dropped, largest)


def wanted_warmup(config: TrainConfig, steps_per_epoch: int) -> int:
    """The updates of warmup that a configuration asks for, however long the run is."""
    return 0 if OPTIMIZERS[config.optimizer].full_batch else round(config.warmup_epochs * steps_per_epoch)


def _warmup(config: TrainConfig, steps_per_epoch: int, total: int) -> int:
    """The updates of warmup: as many as are wanted, or a tenth of the run where it would end before they do."""
    wanted = wanted_warmup(config, steps_per_epoch)
    return wanted if wanted < total else total // SHORTENED


def _total_steps(config: TrainConfig, last: Phase) -> int:
    total = config.steps or last.first_step + (config.epochs - last.first_epoch) * last.steps_per_epoch
    if total > _limits.MOST_WHOLE:
        raise UsageError(
            f"--epochs={config.epochs} are {total:,} updates, and they are counted up to {_limits.MOST_WHOLE:,}; train "
            "for fewer"
        )
    return total


def _largest_of_ramp(config: TrainConfig, examples: int, devices: int) -> int:
    """The batch size up to which it may be doubled: an epoch keeps some updates, and a span fits the devices."""
    size = config.batch_size
    while FACTOR * size * FEWEST_UPDATES <= examples and (
        config.span is None or config.span in spans(FACTOR * size // config.accumulation_steps, devices)
    ):
        size *= FACTOR
    if size == config.batch_size:
        raise UsageError(
            f"--batch_ramp=auto keeps at least {FEWEST_UPDATES} updates an epoch"
            + ("" if config.span is None else f" and whole spans of {config.span}")
            + f", and {FACTOR * size} of {examples} examples is too large a batch for that; start from a smaller "
            f"--batch_size than {size}"
        )
    return size


def _steps_per_epoch(config: TrainConfig, batch_size: int, examples: int) -> int:
    full, rest = divmod(examples, batch_size)
    return (full + (rest > 0 and not config.drop_remainder)) * config.backwards_per_forward


def _staircase(config: TrainConfig, phase: Phase, milestones, examples: int, devices: int):
    """The phases and the boundaries of a step schedule: at each milestone the batch grows, or the rate falls."""
    phases, boundaries = [phase], {}
    for milestone in milestones:
        if not isinstance(config.batch_ramp, int):
            step = round(milestone * phase.steps_per_epoch)
            boundaries[step] = boundaries.get(step, 1.0) / config.step_factor
            continue
        # The batch changes between epochs, so that each of them reads every example once.
        epoch = max(round(milestone), phase.first_epoch + 1)
        if config.steps is None and epoch >= config.epochs:
            break
        first_step = phase.first_step + (epoch - phase.first_epoch) * phase.steps_per_epoch
        batch_size = min(round(phase.batch_size * config.step_factor), config.batch_ramp)
        _check_batch(config, batch_size, examples, devices)
        left = config.step_factor / (batch_size / phase.batch_size)
        if not math.isclose(left, 1.0):
            boundaries[first_step] = 1 / left
        phase = Phase(epoch, first_step, batch_size, _steps_per_epoch(config, batch_size, examples))
        phases.append(phase)
    return tuple(phases), boundaries


def _check_batch(config: TrainConfig, batch_size: int, examples: int, devices: int) -> None:
    parts = devices * config.accumulation_steps
    flag = _flag_of(config, batch_size)
    if batch_size > examples:
        raise UsageError(
            f"--{flag}={batch_size} is larger than the training set of {examples} examples; "
            f"the largest that works is {examples // parts * parts}"
        )
    check_divisible(config, batch_size, devices)
    if OPTIMIZERS[config.optimizer].full_batch and batch_size != examples:
        raise UsageError(
            f"--optimizer={config.optimizer} takes the whole training set at once: --batch_size={examples}, not "
            f"{batch_size}; --accumulation_steps keeps the memory of it small"
        )
    if config.span is not None:
        _check_span(config, batch_size, devices)


def _flag_of(config: TrainConfig, batch_size: int) -> str:
    """Returns the flag from which a batch size comes."""
    return "batch_size" if batch_size == config.batch_size else "batch_ramp"


def check_divisible(config: TrainConfig, batch_size: int, devices: int, processes: int = 1) -> None:
    """Checks that each device of each micro-batch gets as many examples as any other.

    Args:
      config: of the run.
      batch_size: of the first phase or of a later one, global.
      devices: of all processes.
      processes: how many there are.

    Raises:
      UsageError: the batch is not divisible; the message names batch sizes, and a number of devices, that work.
    """
    micro = config.accumulation_steps
    if batch_size % (devices * micro) == 0:
        return
    flag = _flag_of(config, batch_size)
    batch = f"--{flag}={batch_size}" if flag == "batch_size" else f"--{flag}: a batch of {batch_size}"
    among = f"{devices} devices" + (f" ({processes} processes x {devices // processes})" if processes > 1 else "")
    if micro > 1:
        among += f" x {micro} --accumulation_steps"
    share = math.gcd(batch_size // micro, devices) // processes
    works = share and batch_size % (share * processes * micro) == 0
    raise UsageError(
        f"{batch} is not divisible by {among}; the nearest sizes that work: "
        f"{nearest_multiples(batch_size, devices * micro)}." + (f" Or give --num_devices={share}." if works else "")
    )


def _check_span(config: TrainConfig, batch_size: int, devices: int) -> None:
    micro = batch_size // config.accumulation_steps
    work = spans(micro, devices)
    if config.span not in work:
        what = f"{micro} examples ({devices} devices x {micro // devices})"
        raise UsageError(
            f"--span={config.span} does not divide the {what} of a forward pass; spans that work here: "
            f"{', '.join(map(str, work))}"
        )
    if not config.drop_remainder:
        raise UsageError(f"--span={config.span} takes --drop_remainder: a smaller batch has no whole number of spans")


def spans(examples: int, devices: int) -> list[int]:
    """The spans into which a batch can be cut: parts of a device's share, or groups of whole shares.

    Example:
      >>> spans(16, 4)
      [1, 2, 4, 8, 16]
    """
    share = examples // devices
    return [n for n in range(1, examples + 1) if examples % n == 0 and (share % n == 0 or n % share == 0)]
