"""Claims of the literature beside what a study measured, from its files alone."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ..records.questions import convergence, optimizers
from .document import table
from .questions.ladder import warmup_gain
from .questions.ramp import ramp_and_decay
from .section import Section, interval
from .study_files import StudyFiles
from .style import number

# Of the batch size in the best rate: it stays, grows with the square root, or in proportion.
POWERS = (0.0, 0.5, 1.0)
NUMBER, TITLE = 12, "Which claims of the literature does this bear out?"
VERDICTS = BORNE_OUT, NOT_BORNE_OUT, OPEN = "borne out", "not borne out", "left open"


class Claim(NamedTuple):
    """A claim and the verdict of a study.

    Attributes:
      claim: in words.
      source: where it is made.
      measured: the numbers of the study that bear on it.
      verdict: one of `VERDICTS`.
    """

    claim: str
    source: str
    measured: str
    verdict: str


def claims_sections(study: StudyFiles) -> list[Section]:
    """Returns the section, if a part was run that bears on a claim."""
    makers: Sequence[Callable[[StudyFiles], Claim | None]] = (linear_rule, root_rule, muon, warmup, ramp)
    claims = [claim for make in makers if (claim := make(study)) is not None]
    if not claims:
        return []
    counts = Counter(claim.verdict for claim in claims)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    answer = f"Of {len(claims)} claim{'s' * (len(claims) > 1)}: {said}."
    return [
        Section(
            NUMBER,
            TITLE,
            answer,
            [table(("claim", "source", "measured here", "verdict"), claims, numbers=False, wrap=True)],
        )
    ]


def linear_rule(study: StudyFiles) -> Claim | None:
    """Returns the linear rule for SGD with momentum beside the best rates, of the runs to a target."""
    claim = "Up to the critical batch size the best rate of SGD with momentum grows in proportion to the batch"
    source = "Goyal et al., arXiv 1706.02677, 2017"
    found = study.analysis("convergence", convergence.Analysis)
    # A problem has an optimizer of its own.
    if found is not None and not any(row.options.get("problem") for row in study.rows_of("convergence")):
        rates = [(t.batch_size, t.rate, t.on_edge) for t in found.tuned if t.reached]
        return _rule(claim, source, rates, found.factor, 1.0, found.fit)
    return _rule_of(study, "nesterov", claim, source, 1.0)


def root_rule(study: StudyFiles) -> Claim | None:
    """Returns the square-root rule for Adam beside its best rates."""
    claim = "Up to the critical batch size the best rate of Adam grows with the square root of the batch"
    source = "Malladi et al., arXiv 2205.10287, 2022"
    return _rule_of(study, "adamw", claim, source, 0.5)


def _rule_of(study: StudyFiles, optimizer: str, claim: str, source: str, power: float) -> Claim | None:
    found = study.analysis("optimizers", optimizers.Analysis)
    if found is None:
        return None
    rates = [(t.batch_size, t.rate, t.on_edge) for t in found.tuned if t.reached and t.optimizer == optimizer]
    fit = next((one.fit for one in found.fits if one.optimizer == optimizer), None)
    return _rule(claim, source, rates, found.factor, power, fit)


def _rule(
    claim: str,
    source: str,
    rates: Iterable[tuple[int, float | None, bool]],
    factor: float,
    power: float,
    fit: convergence.StepsFit | None,
) -> Claim | None:
    """Compares the power of the batch size in the best rates with that of a rule.

    Args:
      claim: see `Claim`.
      source: see `Claim`.
      rates: batch size, best rate, and whether it is the least or the greatest that was tried; batch sizes rise.
      factor: between neighbouring rates, which limits how well a best rate is known.
      power: that of the rule.
      fit: gives the critical batch size; None: all batch sizes are compared.
    """
    most = math.inf if fit is None else fit.critical_batch_size
    known = [(size, rate, on_edge) for size, rate, on_edge in rates if rate is not None]
    below = [one for one in known if one[0] <= most]
    if len(known) < 2:
        return None
    if len(below) < 2:
        return Claim(claim, source, f"only one batch size is below the critical one, {number(most)}", OPEN)
    (first, first_rate, _), (last, last_rate, _) = below[0], below[-1]
    found, known_to = (math.log(ratio) / math.log(last / first) for ratio in (last_rate / first_rate, factor))
    measured = f"from {first:,} to {last:,} with the power {found:.2f}, known to {known_to:.2f}"
    if below[0][2] or below[-1][2]:
        return Claim(claim, source, f"{measured}; a best rate is on the edge of those tried", OPEN)
    fitting = [rule for rule in POWERS if abs(found - rule) <= known_to]
    verdict = NOT_BORNE_OUT if power not in fitting else OPEN if len(fitting) > 1 else BORNE_OUT
    return Claim(claim, source, measured, verdict)


def muon(study: StudyFiles) -> Claim | None:
    """Returns the critical batch size of Muon beside that of AdamW."""
    found = study.analysis("optimizers", optimizers.Analysis)
    if found is None:
        return None
    fits = {one.optimizer: one.fit for one in found.fits if one.fit is not None}
    ours, theirs = fits.get("muon"), fits.get("adamw")
    if ours is None or theirs is None:
        return None
    measured = "; ".join(
        f"{name} {number(fit.critical_batch_size)} ({interval(fit.intervals.critical_batch_size)})"
        for name, fit in (("Muon", ours), ("AdamW", theirs))
    )
    low, high = ours.intervals.critical_batch_size
    their_low, their_high = theirs.intervals.critical_batch_size
    verdict = BORNE_OUT if low > their_high else NOT_BORNE_OUT if high < their_low else OPEN
    claim = "Muon keeps its data efficiency to larger batches than AdamW"
    return Claim(claim, "Shah et al., arXiv 2505.02222, 2025", measured, verdict)


def warmup(study: StudyFiles) -> Claim | None:
    """Returns what warmup is worth beside the linear rate, at a very large batch."""
    found = warmup_gain(study)
    if found is None:
        return None
    gain, spread, seeds = found.gain, found.spread, found.seeds
    measured = f"{gain:+.2f} points at a batch of {found.batch_size:,}"
    claim, source = "Warmup repairs the linear rate at a very large batch", "Goyal et al., arXiv 1706.02677, 2017"
    if seeds == 1:
        return Claim(claim, source, f"{measured}, one seed", OPEN)
    measured += f"; {seeds} seeds lie up to {spread:.2f} apart"
    return Claim(claim, source, measured, BORNE_OUT if gain > spread else NOT_BORNE_OUT if gain < -spread else OPEN)


def ramp(study: StudyFiles) -> Claim | None:
    """Returns a batch that grows beside a rate that falls."""
    found = ramp_and_decay(study)
    if found is None:
        return None
    measured = (
        f"a batch that follows the noise scale {found.ramp:.2f}% after {found.ramp_updates:,.0f} updates, a rate that "
        f"falls in steps {found.decay:.2f}% after {found.decay_updates:,.0f}"
    )
    claim = "A batch that grows in place of a falling rate costs no accuracy, in fewer updates"
    source = "Smith et al., arXiv 1711.00489, 2017, where it grows at the steps"
    if found.seeds == 1:
        return Claim(claim, source, f"{measured}, one seed", OPEN)
    measured += f"; {found.seeds} seeds lie up to {found.spread:.2f} apart"
    costs = found.ramp < found.decay - found.spread or found.ramp_updates >= found.decay_updates
    return Claim(claim, source, measured, NOT_BORNE_OUT if costs else BORNE_OUT)
