"""The words of a recommendation, for readers who know none of the papers."""

import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Sequence

from .. import _commands
from ..records.evidence import Evidence, MeasuredRun, Memory
from ..records.fields import Bounded, OpenInterval
from ..records.recommendation import (
    Advice,
    Estimate,
    Prediction,
    Recommendation,
    Source,
)
from .section import interval
from .style import number

# The norm that a span applies to. It is also the default norm, which evidence does not name.
SPANNED_NORM = "batch"
# Larger numbers carry no information, and are shown as "no bound".
MAX_SHOWN = 1e7
# Units that a cell names only once if its three numbers share them.
UNITS = (" ms", " s", " min")
# Options that the command shows even if they are 0, because their default is not 0.
SHOWN_AT_ZERO = ("warmup_epochs", "weight_decay", "label_smoothing")
# The reason why a larger batch is not recommended, and a remedy, by the constraint that binds.
WHY_NOT_LARGER = {
    "knee": "A larger batch would need fewer updates, but on this hardware each update would take longer in almost the "
    "same proportion. With faster hardware or more devices a larger batch would pay.",
    "noise": "This hardware has room for a larger batch, but it would save hardly any updates. For a harder target "
    "a larger batch would pay.",
    "memory": "A larger batch would be faster, but it does not fit in memory at once. With --dtype=bfloat16 or more "
    "devices it would.",
    "data": "A larger batch would be faster, but would leave too few updates in an epoch. With more training examples "
    "it would pay.",
    "budget": "Larger batches than those that were tried look faster still. A larger --budget_minutes would try them.",
}
SOURCES: dict[Source, str] = {
    "runs": "It rests on training runs to the target at several batch sizes.",
    "noise": "It rests on how much the gradients of different examples disagree, which is weaker evidence than runs to "
    "the target at several batch sizes.",
    "usual": "Only one batch size was run to the target, so it rests in part on what is usual for other models.",
}
# What a measurement takes beyond what was expected of it.
SPARE = 1.2
SHORT_OF_TIME = "too little time is left"


def headline(result: Recommendation) -> str:
    """Returns the recommendation in a sentence, or a sentence that there is none, with a remedy."""
    advice = result.advice
    if advice is None:
        if any(SHORT_OF_TIME in text for text in result.evidence.not_measured):
            return (
                "No recommendation yet: there was not enough time to decide. Run the same command again with "
                f"--budget_minutes={_minutes_needed(result)}; what has been measured is kept."
            )
        return "No recommendation: the measurements do not decide it. What is missing is below."
    text = f"Use a batch size of {advice.batch_size:,} with a learning rate of {advice.learning_rate:g}."
    chosen = advice.chosen
    if chosen.seconds is None or chosen.updates is None:
        if result.evidence.target is None:
            return text
        return (
            f"{text} But no run reached {_target(result.evidence)}: this rests on the gradient noise and the time of "
            "an update alone."
        )
    seconds, low, high = chosen.seconds
    goal = _target(result.evidence)
    ends = (
        f"; 19 of 20 runs should take between {_seconds(_rough(low))} and {_seconds(_rough(high))}"
        if low is not None and high is not None and high <= MAX_SHOWN
        else ""
    )
    return (
        f"{text} Training should reach {goal} after about {_seconds(_rough(seconds))} of computing, "
        f"in {_count(_rough(chosen.updates[0]))} updates{ends}."
    )


def _minutes_needed(result: Recommendation) -> int:
    """Returns the minutes that a budget needs for what time did not allow, with some to spare; more than there were."""
    needed = max(SPARE * (result.evidence.minutes_needed or 0.0), 1.5 * result.minutes)
    return math.ceil(needed)


def _target(evidence: Evidence) -> str:
    """Returns the target as words in a sentence."""
    if evidence.target is None:
        return "the target"
    return f"a loss of {evidence.target:g}" if evidence.goal == "loss" else f"{100 * evidence.target:g}%"


def reasons(advice: Advice, evidence: Evidence) -> list[str]:
    """Returns the reasons for the batch size, its price and its certainty, each in one to three sentences."""
    critical, knee = advice.critical_batch_size, advice.knee
    fallback = f"What limits the batch size: {advice.binds}. What would help: {advice.loosen}."
    return [
        WHY_NOT_LARGER.get(advice.binds, fallback),
        f"Speed of the hardware: well below {_examples(knee)} a larger batch costs little extra time per update; well "
        "above, twice the batch takes about twice as long. This size is called the knee.",
        f"Speed of learning: well below {_examples(critical)} twice the batch needs about half the updates; well "
        "above, a larger batch saves few. This size is called the critical batch size.",
        f"How sure: with a probability of {advice.certainty:.0%}, as far as the measurements tell, no other batch "
        f"size is more than 10% faster. {SOURCES[advice.source]}",
        *_price(advice),
        _grounds(evidence),
        *_what_would_change(advice),
        _twice_the_budget(evidence),
        *_growing_batch(advice, evidence),
    ]


def _price(advice: Advice) -> list[str]:
    """Returns a sentence about the examples that the target costs, beside the batch size that needs the fewest."""
    read = {p.batch_size: p.updates[0] * p.batch_size for p in advice.candidates if p.updates is not None}
    seconds = {p.batch_size: p.seconds[0] for p in advice.candidates if p.seconds is not None}
    if advice.batch_size not in read or advice.batch_size not in seconds:
        return []
    own, fewest = read[advice.batch_size], min(read, key=lambda size: read[size])
    said = f"Price: about {_count(_rough(own))} examples are read until the target, beside the time"
    if fewest == advice.batch_size:
        return [f"{said}; no other batch size here needs fewer."]
    return [
        f"{said}. A batch size of {fewest:,} would need the fewest, about {_count(_rough(read[fewest]))}, and take "
        f"{_rough(seconds[fewest] / seconds[advice.batch_size]):g} times as long."
    ]


def _grounds(evidence: Evidence) -> str:
    """Returns a sentence about the measurements that the numbers rest on."""
    reached = [run for run in evidence.runs if run.reached]
    sizes, seeds = {run.batch_size for run in reached}, {run.seed for run in reached}
    updates = (
        f"the updates on {_many(len(reached), 'run')} to the target, of {_many(len(sizes), 'batch size')} and "
        f"{_many(len(seeds), 'seed')}"
        if reached
        else "the updates on no run to a target"
    )
    noise = (
        f"; the gradient noise scale on {_many(evidence.noise.measurements, 'measurement')}" if evidence.noise else ""
    )
    return (
        f"What it rests on: {updates}; the time of an update on {_many(len(evidence.step_time), 'timed run')}{noise}."
    )


def _what_would_change(advice: Advice) -> list[str]:
    """Returns a sentence about what other measurements would have led to; none of an earlier version's advice."""
    if not advice.alternatives:
        return []
    other = [found for found in advice.supposed if found.batch_size != advice.batch_size]
    texts = [
        f"with a critical batch size of {_count(_rough(found.critical_batch_size))}, an end of its interval, the curve "
        f"would ask for a batch of {found.batch_size:,}"
        for found in other
    ]
    rivals = [found for found in advice.alternatives if found.batch_size != advice.batch_size]
    if rivals:
        texts.append(f"the next likely to be the fastest is {rivals[0].batch_size:,} ({rivals[0].probability:.0%})")
    if not texts:
        return ["What would change it: neither end of the interval of the critical batch size would."]
    return [f"What would change it: {'; '.join(texts)}."]


def _twice_the_budget(evidence: Evidence) -> str:
    """Returns a sentence about what more time would buy."""
    if evidence.minutes_needed is None:
        return "With twice the time: nothing was left undone for want of time; a harder target would use more of it."
    minutes = math.ceil(SPARE * evidence.minutes_needed)
    needed = "a minute" if minutes == 1 else f"{_count(minutes)} minutes"
    return (
        "With twice the time: more seeds would be run, and whatever is listed as not measured for want of time; the "
        f"longest of it needs about {needed} in all. The same command with a larger --budget_minutes goes on "
        "from here."
    )


def _growing_batch(advice: Advice, evidence: Evidence) -> list[str]:
    """Returns a sentence about a batch that grows, if runs at several sizes say where the critical batch size is."""
    critical, noise = advice.critical_batch_size.value, evidence.noise
    if advice.source != "runs" or not critical or noise is None or not noise.scale or noise.scale <= 0:
        return []
    share = critical / noise.scale
    return [
        f"A batch that grows: the critical batch size is {share:.2g} of the gradient noise scale, which grows as "
        f"training goes on; --batch_ramp=auto --critical_share={share:.2g} in a run of your own follows it."
    ]


def _examples(found: Estimate) -> str:
    """Returns an estimated batch size and its 95% interval as text, to two digits."""
    low, high = (None if end is None else _rough(end) for end in found.interval)
    if found.value is None or found.value > MAX_SHOWN:
        return f"any number of examples here ({_bounds((low, high))})"
    return f"about {_count(None if found.value is None else _rough(found.value))} examples ({_bounds((low, high))})"


def _many(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


def _rough(value: float) -> float:
    return float(f"{value:.2g}")


def command(advice: Advice) -> str:
    """Returns the training command for the recommended setting."""
    options = {name: value for name, value in advice.options.items() if value not in (None, 0) or name in SHOWN_AT_ZERO}
    return shlex.join([*_commands.start("train"), *(f"--{name}={value}" for name, value in options.items())])


def settings(advice: Advice, evidence: Evidence) -> list[tuple[str, str]]:
    """Returns the recommended settings, as pairs of name and text."""
    parts = advice.accumulation_steps
    optimizer = advice.optimizer or "of the problem"
    has_norm = evidence.options.get("problem") is None
    norm = str(evidence.options.get("norm") or SPANNED_NORM)
    micro = advice.batch_size // parts
    span = "the whole batch" if micro == advice.batch_size else f"each micro-batch of {micro:,}"
    span = span if advice.span is None else f"{advice.span} examples"
    devices = f"{evidence.devices} {evidence.kind} device{'s' * (evidence.devices > 1)}"
    half = evidence.options.get("average_weights")
    batch = f"{advice.batch_size:,} examples per update: {advice.per_device:,} on each of {devices}"
    return [
        ("batch", batch + (f", {parts} times before each update (accumulation)" if parts > 1 else "")),
        ("rate", f"{advice.learning_rate:g}, {_course(evidence)}; optimizer {optimizer}"),
        *([("norm", norm + (f", statistics over {span}" if norm == SPANNED_NORM else ""))] * has_norm),
        *([("weights", f"an average, in which one counts half as much after {int(half):,} examples")] if half else []),
    ]


def _course(evidence: Evidence) -> str:
    """Describes how the rate goes on from its peak, and how it comes there."""
    schedule, epochs, warmup = (evidence.options.get(name) for name in ("schedule", "epochs", "warmup_epochs"))
    decay = "constant" if epochs is None else f"{schedule} over {_many(int(epochs), 'epoch')}"
    return f"{decay}, {f'warmup {warmup:g} epochs' if warmup else 'without warmup'}"


def measured(evidence: Evidence) -> list[str]:
    """Returns one line of text per measurement."""
    held_out = evidence.held_out
    goal = f"{held_out:,} held out for the target" if held_out else "none held out: the test split has the target"
    if evidence.options.get("problem") is not None:
        goal = "the target is on what the problem holds out"
    texts = [f"data: {evidence.examples:,} examples to train on, {goal}"]
    if evidence.memory is not None:
        texts.append(_memory(evidence.memory))
    if evidence.step_time:
        latest = dict(evidence.step_time)
        shown = ", ".join(f"{_seconds(seconds)} at {size:,}" for size, seconds in sorted(latest.items()))
        texts.append(f"time per update: {shown} examples")
    if evidence.race:
        shown = "; ".join(f"{size:,} and {rate:g}: {loss:.3g}" for size, rate, loss in sorted(evidence.race))
        texts.append(f"loss after short runs of equal time, by batch size and rate: {shown}")
    if noise := evidence.noise:
        texts.append(
            f"gradient noise scale, the size of a batch whose noise is as large as its gradient: "
            f"{_count(noise.scale)} examples ({_bounds(noise.interval)}), the median of "
            f"{noise.measurements} measurements along a run"
        )
    return [*texts, *_runs(evidence.runs)]


def _memory(memory: Memory) -> str:
    text = f"memory: {_bytes(memory.fixed)} and {_bytes(memory.per_example)} per example"
    if memory.largest is not None and memory.limit is not None:
        text += f"; the largest batch that fits in {memory.limit / 2**30:.1f} GiB: {memory.largest:,}"
    if tried := memory.tried:
        text += f"; {tried.batch_size:,} {f'failed ({tried.error})' if tried.error else 'ran'}"
    return text


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if value >= size / 10:
            return f"{value / size:.3g} {unit}"
    return f"{value / 2**10:.3g} KiB"


def _runs(runs: Sequence[MeasuredRun]) -> list[str]:
    """Returns one line per setting, with the outcome of each of its seeds."""
    settings: dict[tuple[int, float], list[MeasuredRun]] = defaultdict(list)
    for run in runs:
        settings[run.batch_size, run.rate].append(run)
    lines = []
    for (size, rate), there in sorted(settings.items()):
        reached = [f"{run.updates:,}" for run in sorted(there, key=lambda run: run.updates) if run.reached]
        missed = [f"{run.updates:,}" for run in there if not run.reached and not run.diverged]
        diverged = sum(run.diverged for run in there)
        outcomes = [
            *([f"reached after {', '.join(reached)} updates"] if reached else []),
            *([f"not reached after {', '.join(missed)} updates"] if missed else []),
            *([f"{diverged} diverged" if len(there) > 1 else "diverged"] if diverged else []),
        ]
        seeds = f"{len(there)} seeds" if len(there) > 1 else "one seed"
        lines.append(f"runs of batch size {size:,} at rate {rate:g}, {seeds}: {'; '.join(outcomes)}")
    return lines


def _updates_per_epoch(prediction: Prediction) -> str:
    left_out = f", {prediction.dropped:.1%} left out" if prediction.dropped else ""
    return f"{prediction.updates_per_epoch:,}{left_out}"


# The rows of the table of predictions: a heading, and a function that returns the text for a prediction.
_ROWS: tuple[tuple[str, Callable[[Prediction], str]], ...] = (
    ("batch size", lambda p: f"{p.batch_size:,}"),
    ("time per update", lambda p: _with_bounds(p.step_seconds, _seconds)),
    ("updates per epoch", _updates_per_epoch),
    ("updates", lambda p: _with_bounds(p.updates, _count)),
    ("epochs", lambda p: _with_bounds(p.epochs, _count)),
    ("computing time", lambda p: _with_bounds(p.seconds, _seconds)),
    ("memory", lambda p: "not known" if p.memory is None else _bytes(p.memory)),
)


def predictions(advice: Advice) -> list[tuple[str, ...]]:
    """Returns the rows of the table of predictions, which has one column per batch size and begins with their row."""
    return [(heading, *map(say, advice.predictions)) for heading, say in _ROWS]


def spent(result: Recommendation) -> str:
    """Returns the minutes that measuring took and the time limit, as text."""
    return f"{result.seconds / 60:.1f} of {number(result.minutes)} minutes"


def _with_bounds(values: Bounded | None, say: Callable[[float | None], str]) -> str:
    if values is None:
        return "not measured"
    texts, shared = [say(value) for value in values], ""
    for unit in UNITS:
        if all(text.endswith(unit) for text in texts):
            texts, shared = [text.removesuffix(unit) for text in texts], unit
    middle, low, high = texts
    return f"{middle}{shared} ({low} to {high})"


def _bounds(ends: OpenInterval) -> str:
    return interval([math.inf if end is None or end > MAX_SHOWN else end for end in ends])


def _count(value: float | None) -> str:
    return number(math.inf if value is None or value > MAX_SHOWN else value)


def _seconds(value: float | None) -> str:
    if value is None or value > MAX_SHOWN:
        return "no bound"
    if value < 0.1:
        return f"{1e3 * value:.3g} ms"
    return f"{value:.3g} s" if value < 120 else f"{value / 60:.3g} min"
