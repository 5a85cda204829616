"""Automatic batch ramp: a batch size that grows with the gradient noise scale (`--batch_ramp=auto`).

At a constant learning rate a larger batch lowers the noise as a lower rate would, with fewer updates for the same
examples. The noise scale, above which larger batches save no updates, grows as the loss falls, so the batch may grow
with it. The critical batch size is often a share of the noise scale, which `--critical_share` says. Decisions are made
between epochs and stored with every checkpoint, so that a run that resumes has the batches that it would have had
without the interruption.

Sources: Smith et al., "Don't Decay the Learning Rate, Increase the Batch Size", arXiv 1711.00489, 2018; McCandlish et
al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, appendix D.
"""

from ...records.checkpoints import RampNotes
from ...records.runs import StepMemory
from ..config import plan as plans
from ..config.plan import RAMP_FACTOR, Plan
from ..machine import processes


def grown(plan: Plan, step: int, critical: float) -> Plan:
    """Returns the plan after an epoch: with a doubled batch from here on if the critical batch size is that large.

    Args:
      plan: the plan so far.
      step: updates so far, at the end of an epoch.
      critical: the critical batch size by the running noise scale, in examples; nan: unknown.

    Returns:
      The plan with a doubled batch; or the same plan where it has no automatic ramp, where the warmup is not over or
      the run is, or where a doubled batch would exceed the critical batch size or the largest batch allowed. With
      several processes, the noise scale of the first one decides, and a doubled batch must fit in the memory of all.
    """
    if plan.largest is None or step < plan.warmup_steps or step >= plan.total_steps:
        return plan
    size = RAMP_FACTOR * plan.batch_size
    answers = processes.gathered([size <= critical, size <= plan.largest])
    if not (answers[0, 0] and answers[:, 1].all()):
        return plan
    return plans.grow(plan, plan.locate(step - 1).epoch + 1)


def within_memory(plan: Plan, memory: StepMemory) -> Plan:
    """Returns the plan with the ramp stopped at the present batch if twice the step's memory exceeds the device's."""
    if (
        plan.largest is None
        or None in (memory.needed, memory.limit)
        or RAMP_FACTOR * (memory.needed or 0) <= (memory.limit or 0)
    ):
        return plan
    return plan._replace(largest=min(plan.largest, plan.batch_size))


def notes(plan: Plan) -> RampNotes | None:
    """Returns the decisions of an automatic ramp so far, for a checkpoint; None: the plan has no automatic ramp."""
    if plan.largest is None:
        return None
    return RampNotes(epochs=[phase.first_epoch for phase in plan.phases[1:]], largest=plan.largest)


def restored(plan: Plan, kept: RampNotes | None) -> Plan:
    """Returns the plan of a resumed run, with the ramp decisions that its checkpoint stored applied again."""
    if kept is None:
        return plan
    for epoch in kept.epochs:
        plan = plans.grow(plan, epoch)
    return plan._replace(largest=kept.largest)
