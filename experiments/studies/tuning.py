"""Trials of learning rates, as many for every optimizer at every batch size, about the best of the size below."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..training.config.options import TrainConfig
from .convergence import Trial, best_rate, rounded

# The rates that are tried after the one that the size below leads one to expect, as multiples of it.
FACTORS = (1 / 4, 4.0)
# Two more: about the best of them or, where that is on an edge, farther out on that side.
ABOUT, BELOW, ABOVE = (1 / 2, 2.0), (1 / 4, 2.0), (1 / 2, 4.0)
ROUNDS, TRIALS = 3, 1 + len(FACTORS) + len(ABOUT)


@dataclasses.dataclass
class Search:
    """The trials of one optimizer at one batch size.

    Attributes:
      trials: the outcomes by rate.
    """

    trials: dict[float, Trial] = dataclasses.field(default_factory=dict)

    @property
    def best(self) -> float:
        """The best rate so far."""
        return best_rate(self.trials)

    @property
    def outcome(self) -> Trial:
        """The outcome at the best rate."""
        return self.trials[self.best]

    @property
    def is_on_edge(self) -> bool:
        """Whether the best rate is the least or the greatest that was tried."""
        return self.best in (min(self.trials), max(self.trials))

    def next(self, expected: float) -> list[float]:
        """Returns the rates to try next, from the one that is expected."""
        if len(self.trials) < 2:
            return [rounded(expected * factor) for factor in (FACTORS if self.trials else (1.0,))]
        factors = {min(self.trials): BELOW, max(self.trials): ABOVE}.get(self.best, ABOUT)
        return [rounded(self.best * factor) for factor in factors]


class Wanted(NamedTuple):
    """A trial that is to be made.

    Attributes:
      optimizer: its name.
      batch_size: examples per update.
      rate: the peak learning rate.
      best: the best outcome so far at this batch size; None: there is none.
    """

    optimizer: str
    batch_size: int
    rate: float
    best: Trial | None


Found = dict[tuple[str, int], Search]


def first_rate(optimizer: str, batch_size: int) -> float:
    """Returns the rate that an optimizer has at a batch size by its own default and its own rule."""
    constant = TrainConfig(optimizer=optimizer, batch_size=batch_size, schedule="constant")
    return rounded(constant.peak_learning_rate)


def tune(
    optimizers: Sequence[str], batch_sizes: Sequence[int], run: Callable[[Sequence[Wanted]], Sequence[Trial]]
) -> Found:
    """Tries rates of every optimizer at every batch size, those of all optimizers side by side.

    Args:
      optimizers: their names.
      batch_sizes: rising.
      run: returns the outcomes of trials.

    Returns:
      The trials by optimizer and batch size.
    """
    found: Found = {}
    expected = {name: first_rate(name, batch_sizes[0]) for name in optimizers}
    for place, batch_size in enumerate(batch_sizes):
        here = {name: Search() for name in optimizers}
        for _ in range(ROUNDS):
            wanted = [
                Wanted(name, batch_size, rate, search.outcome if search.trials else None)
                for name, search in here.items()
                for rate in search.next(expected[name])
            ]
            for one, trial in zip(wanted, run(wanted), strict=True):
                here[one.optimizer].trials[one.rate] = trial
        found |= {(name, batch_size): search for name, search in here.items()}
        for after in batch_sizes[place + 1 : place + 2]:
            # Between no change and the linear rule, either of which the next trials reach.
            expected = {name: search.best * (after / batch_size) ** 0.5 for name, search in here.items()}
    return found
