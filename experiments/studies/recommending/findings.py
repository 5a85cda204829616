"""The measurements so far: a record that the parts of a recommendation add to, one after another."""

import dataclasses

from ...records.evidence import Evidence, MeasuredRun, Memory, Noise, RaceEntry, TimedUpdate
from .curves import NoisePrior, prior_of
from .lab import Problem


@dataclasses.dataclass
class Findings:
    """The measurements so far; `records.evidence.Evidence` describes each field."""

    step_time: list[TimedUpdate] = dataclasses.field(default_factory=list)
    memory: Memory | None = None
    race: list[RaceEntry] = dataclasses.field(default_factory=list)
    noise: Noise | None = None
    runs: list[MeasuredRun] = dataclasses.field(default_factory=list)
    not_measured: list[str] = dataclasses.field(default_factory=list)

    @property
    def prior(self) -> NoisePrior | None:
        """The noise scale as a prior; None: it is not known well enough."""
        return prior_of(self.noise)

    @property
    def largest(self) -> int | None:
        """The largest batch that fits in memory; None: not known."""
        return None if self.memory is None else self.memory.largest

    def evidence(self, problem: Problem, seconds_needed: float | None = None) -> Evidence:
        """Returns the measurements, together with the problem, as evidence.

        Args:
          problem: the training for which a batch size is sought.
          seconds_needed: the budget that all refused measurements would have needed; None: none was refused.
        """
        return Evidence(
            options=problem.data.options,
            examples=problem.data.examples,
            held_out=problem.data.held_out,
            devices=problem.devices,
            kind=problem.kind,
            unit=problem.unit,
            target=problem.target,
            goal=problem.data.goal,
            optimizer=problem.optimizer,
            rule=problem.rule,
            step_time=self.step_time,
            memory=self.memory,
            race=self.race,
            noise=self.noise,
            runs=self.runs,
            not_measured=self.not_measured,
            minutes_needed=None if seconds_needed is None else seconds_needed / 60,
        )
