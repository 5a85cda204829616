"""A batch that grows with the gradient noise scale, between the epochs of a run: `--batch_ramp=auto`.

At a constant rate a larger batch lowers the noise as a lower rate does, in fewer updates of the same examples; and the
noise scale, above which larger batches save no updates, grows as the loss falls. What was decided is kept with every
checkpoint, so that a run that goes on has the batches that it would have had.

Sources: Smith et al., "Don't Decay the Learning Rate, Increase the Batch Size", arXiv 1711.00489, 2018; McCandlish et
al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, appendix D.
"""

from experiments.records.checkpoints import RampNotes
from experiments.records.runs import StepMemory
from experiments.training.config import plan as plans
from experiments.training.config.plan import RAMP_FACTOR, Plan
from experiments.training.machine import processes


def grown(plan: Plan, step: int, scale: float) -> Plan:
    """The plan after an epoch: with twice the batch from here on, if the noise scale says so.

    Args:
      plan: so far.
      step: updates so far, which end an epoch.
      scale: the running gradient noise scale, in examples; nan: not known.

    Returns:
      The same plan where there is no automatic ramp, the warmup is not over or the last epoch is, or the batch is large
      enough. Of several processes the first has the noise scale that counts, and all must have room.
    """
    if plan.largest is None or step < plan.warmup_steps or step >= plan.total_steps:
        return plan
    size = RAMP_FACTOR * plan.batch_size
    answers = processes.gathered([size <= scale, size <= plan.largest])
    if not (answers[0, 0] and answers[:, 1].all()):
        return plan
    return plans.grow(plan, plan.locate(step - 1).epoch + 1)


def within_memory(plan: Plan, memory: StepMemory) -> Plan:
    """The plan with a ramp that stops where the memory of the present step, and as much again, would be too much."""
    if (
        plan.largest is None
        or None in (memory.needed, memory.limit)
        or RAMP_FACTOR * (memory.needed or 0) <= (memory.limit or 0)
    ):
        return plan
    return plan._replace(largest=min(plan.largest, plan.batch_size))


def notes(plan: Plan) -> RampNotes | None:
    """Returns what a checkpoint keeps of an automatic ramp; None: the plan has none."""
    if plan.largest is None:
        return None
    return RampNotes(epochs=[phase.first_epoch for phase in plan.phases[1:]], largest=plan.largest)


def restored(plan: Plan, kept: RampNotes | None) -> Plan:
    """Returns the plan of a run that resumes from a checkpoint that kept these notes."""
    if kept is None:
        return plan
    for epoch in kept.epochs:
        plan = plans.grow(plan, epoch)
    return plan._replace(largest=kept.largest)
