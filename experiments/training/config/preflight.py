"""Describes a run before its first step, with warnings, and predicts its memory."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..._errors import UsageError
from ...records.runs import StepMemory
from ..machine import devices as machine
from ..recipe.norms import NORMS
from ..recipe.optimizers import OPTIMIZERS
from .options import REFERENCE_BATCH_SIZE, TrainConfig
from .plan import Plan

# Above this peak rate at the reference batch size Nesterov's momentum seldom converges without tuning.
UNUSUAL_BASE_RATE = 1.0
# Goyal et al. 2017, figure 1: up to here the linear rule kept the accuracy of ResNet-50.
LINEAR_RULE_LIMIT = 8192
FEW_UPDATES = 100
# Below this, the statistics of one device's examples are noise even where each example has many positions.
FEW_EXAMPLES = 4
# The variance of 16 numbers has a relative error of a third; with fewer numbers the result of a norm is mostly noise.
FEW_POSITIONS = 16


class Trial(NamedTuple):
    """Facts about a model from tracing it, before it is compiled.

    Attributes:
      positions: by the path of each norm, the positions of one example that it averages over.
      own_norms: the paths of the norms that the model makes itself: of Flax, or of batchnorm_jax without an axis name.
    """

    positions: dict[str, int]
    own_norms: tuple[str, ...]


def describe(
    config: TrainConfig, plan: Plan, devices: int, platform: str, processes: int = 1, tried: Trial | None = None
) -> list[str]:
    """Returns the lines to print before a run, with its warnings.

    Args:
      config: the configuration of the run.
      plan: the sizes of the run.
      devices: the number of devices of all processes.
      platform: the platform of the devices.
      processes: the number of processes.
      tried: facts about the model; None: not traced.
    """
    per_device = config.batch_size // devices // config.accumulation_steps
    where = f" in {processes} processes" if processes > 1 else ""
    lines = [
        f"data      {config.dataset}: {plan.examples:,} training examples",
        f"batch     global {config.batch_size} = {devices} {platform} device{'s' * (devices > 1)}{where} x "
        f"{per_device} per device x {config.accumulation_steps} accumulation",
        f"updates   {_updates(plan)}; "
        f"{plan.dropped:,} examples ({plan.dropped / plan.examples:.1%}) left out of each epoch",
        f"rate      {_rate(config, plan)}",
        f"norm      {_norm(config, per_device, devices)}",
    ]
    if tried is not None and tried.own_norms:
        lines.append(
            f"norm      {len(tried.own_norms)} that the model makes itself run so as well; their "
            "running statistics are averaged by --norm_momentum"
        )
    lines += _changes(config, plan)
    if config.evaluates_average:
        lines.append(f"average   {_average(config)} is evaluated, with statistics of training images for it")
    texts = _warnings(config, plan, per_device)
    if tried is not None:
        texts += _few_positions(config, plan, per_device, devices, tried.positions)
    return lines + [f"warning   {text}" for text in texts]


def describe_problem(config: TrainConfig, plan: Plan, devices: int, platform: str) -> list[str]:
    """Returns the lines to print before the run of a problem.

    Args:
      config: the configuration of the run.
      plan: the sizes of the run.
      devices: the number of devices that hold the problem's state.
      platform: the platform of the devices.
    """
    few = plan.total_steps < FEW_UPDATES and config.steps is None
    return [
        f"problem   {config.problem}: {plan.examples:,} training examples, its state on {devices} {platform} "
        f"device{'s' * (devices > 1)}",
        f"batch     {config.batch_size}",
        f"updates   {_updates(plan)}",
        f"rate      {_course(config, plan)}",
        *_changes(config, plan),
        *([f"warning   only {plan.total_steps} updates; train longer, or take a smaller batch"] * few),
    ]


def _average(config: TrainConfig) -> str:
    if config.average_weights is None:
        return f"the average of {config.optimizer}"
    return (
        f"an average of the weights, in which a weight counts half as much after {config.average_weights:,} examples,"
    )


def _updates(plan: Plan) -> str:
    return f"{plan.total_steps:,} in {plan.epochs:.4g} epochs of {plan.phases[0].steps_per_epoch:,}"


def _changes(config: TrainConfig, plan: Plan) -> list[str]:
    """Returns the lines about batches that grow and a warmup that is shortened."""
    lines = [
        f"ramp      batch {p.batch_size} from epoch {p.first_epoch}: {p.steps_per_epoch:,} updates per epoch"
        for p in plan.phases[1:]
    ]
    if plan.largest is not None:
        share = "" if config.critical_share == 1 else f"{config.critical_share:g} of "
        lines.append(
            f"ramp      twice the batch, up to {plan.largest}, at the end of an epoch as soon as {share}the running "
            "gradient noise scale is above that"
        )
    wanted = plan.wanted_warmup
    if wanted > plan.warmup_steps:
        lines.append(
            f"note      --warmup_epochs={config.warmup_epochs:g} is {wanted} updates, as long as the run or longer; "
            f"shortened to {plan.warmup_steps} of its {plan.total_steps}"
        )
    return lines


def _rate(config: TrainConfig, plan: Plan) -> str:
    if OPTIMIZERS[config.optimizer].full_batch:
        unused = "rate, schedule, warmup and momentum"
        return f"{config.optimizer}; a line search finds each step, so that {unused} are not used"
    text = f"{config.optimizer}, {_course(config, plan)}"
    if config.backwards_per_forward > 1:
        text += f"; {config.backwards_per_forward} updates per forward pass"
    return text


def _course(config: TrainConfig, plan: Plan) -> str:
    """Returns the course of the learning rate in words."""
    text = f"peak {plan.peak_learning_rate:g} after {plan.warmup_steps} updates of warmup, then {config.schedule}"
    if plan.boundaries:
        text += " (" + ", ".join(f"x {scale:g} at {step}" for step, scale in plan.boundaries.items()) + ")"
    return text


def _norm(config: TrainConfig, per_device: int, devices: int) -> str:
    norm = NORMS[config.norm]
    if norm.pools == "device":
        return f"{norm.name}, statistics over each device's {per_device}"
    if norm.fixes_statistics:
        return f"{norm.name}, statistics of the training set before the first update"
    if norm.pools is None:
        return norm.name
    pooled = config.span or per_device * devices
    return f"{norm.name}, statistics over {'spans of ' * (config.span is not None)}{pooled} examples"


def _few_positions(
    config: TrainConfig, plan: Plan, per_device: int, devices: int, positions: Mapping[str, int]
) -> list[str]:
    """Warns of statistics over so few positions that the statistics of evaluation differ, whatever the reason."""
    norm = NORMS[config.norm]
    if norm.pools is None:
        return []
    if not positions:
        return [f"the model has no batch normalization, so that --norm={config.norm} changes nothing"]
    share = devices if norm.pools == "device" else 1
    examples = config.span or per_device * devices // share
    rest = plan.examples % config.batch_size // config.accumulation_steps // share
    which = ""
    if not config.drop_remainder and 0 < rest < examples:
        examples, which = rest, " in the last batch of an epoch"
    path, least = min(positions.items(), key=lambda item: item[1])
    if examples > 1 and examples * least >= FEW_POSITIONS:
        return []
    return [
        f"the norm {path} averages over {examples * least} positions{which}, those of {examples} "
        f"example{'s' * (examples > 1)}: in training it gives each of them what depends on the others, and in "
        "evaluation, by averages over many, something else; pool more examples, or take --norm=group"
    ]


def _warnings(config: TrainConfig, plan: Plan, per_device: int) -> list[str]:
    texts = []
    optimizer, norm = OPTIMIZERS[config.optimizer], NORMS[config.norm]
    update_batch = config.batch_size / config.backwards_per_forward
    per_reference = plan.peak_learning_rate * REFERENCE_BATCH_SIZE / update_batch
    if optimizer.momentum_based and per_reference > UNUSUAL_BASE_RATE:
        texts.append(f"the peak rate is {per_reference:g} per {REFERENCE_BATCH_SIZE} examples, far above the usual 0.1")
    scaled = config.learning_rate is None and config.lr_scaling in (None, "linear")
    if optimizer.momentum_based and scaled and update_batch > LINEAR_RULE_LIMIT:
        texts.append(
            f"the rate grows in proportion to the batch up to {update_batch:g}; published results follow that rule to "
            f"{LINEAR_RULE_LIMIT}, beyond which tuning --learning_rate pays"
        )
    if optimizer.adaptive and config.lr_scaling == "linear":
        texts.append(f"--lr_scaling=linear is a rule for SGD; with {config.optimizer} the square root is usual")
    if optimizer.trust_ratio:
        texts.append(
            f"with {config.optimizer}, norm parameters and biases take the rate of {plan.peak_learning_rate:g} "
            "itself, without a trust ratio"
        )
    if plan.total_steps < FEW_UPDATES and config.steps is None and not optimizer.full_batch:
        texts.append(f"only {plan.total_steps} updates; train longer, or take a smaller batch")
    if norm.pools == "device" and not norm.corrects_by_running_statistics and per_device < FEW_EXAMPLES:
        texts.append(
            f"{norm.name} statistics of {per_device} examples are noisy; --norm=batch pools those of all devices, "
            "--norm=renorm corrects them"
        )
    return texts


def step_memory(compiled: Any, devices: Sequence[Any]) -> StepMemory:
    """Returns the memory of a compiled step on those devices of this process that run it; None: it is not compiled."""
    analysis = None if compiled is None else compiled.memory_analysis()
    on_cpu = devices[0].platform == "cpu"
    limit = machine.memory_of(devices[0])
    if analysis is None:
        return StepMemory(limit=limit)
    needed = (
        analysis.temp_size_in_bytes
        + analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )
    return StepMemory(needed=needed * len(devices) if on_cpu else needed, limit=limit)


def memory_line(memory: StepMemory) -> str:
    """Returns the line about the memory of a step, and refuses a step that does not fit.

    Raises:
      UsageError: the step needs more memory than the device has.
    """
    if memory.needed is None:
        return "memory    not known: neither this backend nor the program says it"
    if memory.limit is None:
        return f"memory    {memory.needed / 2**30:.2f} GiB predicted for a step"
    if memory.needed > memory.limit:
        raise UsageError(
            f"a step takes {memory.needed / 2**30:.1f} GiB by its compiled program, and there are "
            f"{memory.limit / 2**30:.1f} GiB; lower --batch_size, or raise --accumulation_steps"
        )
    return f"memory    {memory.needed / 2**30:.2f} GiB predicted for a step, of {memory.limit / 2**30:.1f} GiB"
