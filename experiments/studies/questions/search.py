"""Accuracy of a very large batch in a fixed number of epochs, with the best recipe of a search of a declared size.

At every batch size alike, with one seed, on training images that are held out: the rate of every optimizer; averaged
weights and a batch ramp with every optimizer that takes them; then, for the best optimizer of those that average
weights themselves and the best of the others, each change of its recipe alone; then those that helped, one after
another; then half and twice the rate of what came out. The best recipe is trained on all training images with several
seeds, and evaluated on the test images.
"""

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, Self

from ..._errors import UsageError
from ...records.questions.search import Analysis, Recipe
from ...records.studies import StudyRow
from ...training.config.options import AUTO, TrainConfig
from ...training.recipe.optimizers import OPTIMIZERS
from ...training.recipe.schedules import SCHEDULES
from .. import tuning
from ..convergence import SEARCH_SEED, Trial, refuse_search_seed, trial_of
from ..jobs import Job
from ..large_batch import EPOCHS, SEEDS, fixed_epochs
from ..question import Asked, Changes, Look, Question, keys_of, no_larger
from ..question import Setting as Base
from ..tuning import Wanted

# Decay that is not a part of the gradient acts in proportion to the rate.
WEIGHT_DECAY, DECOUPLED_DECAY = 2e-3, 1e-2
# Examples after which averaged weights count half as much, as a share of an epoch.
HALF_LIFE = 0.5
SPAN = 128
# The fewest examples of each of many updates per forward pass.
LEAST_PART = 64


class Change(NamedTuple):
    """A change of a recipe.

    Attributes:
      name: in a report.
      options: (options of the recipe, training examples) -> options in place of its own; None: the recipe cannot have
        them.
    """

    name: str
    options: Callable[[Mapping[str, Any], int], dict[str, Any] | None]


def _whole_batches(recipe: Mapping[str, Any], parts: int) -> bool:
    return recipe["batch_size"] % parts == 0


def _has_spans(recipe: Mapping[str, Any]) -> bool:
    return recipe["batch_size"] > SPAN and _whole_batches(recipe, SPAN)


def _rate_of_part(recipe: Mapping[str, Any], parts: int) -> float:
    """Returns the rate of batches that are smaller by a factor, by the rule of the optimizer."""
    is_linear = OPTIMIZERS[recipe["optimizer"]].scaling == "linear"
    return recipe["learning_rate"] / parts ** (1 if is_linear else 0.5)


def _many_updates(recipe: Mapping[str, Any], _: int) -> dict[str, Any] | None:
    """Returns sixteen updates per forward pass, at the rate for as many examples as each has."""
    if not _whole_batches(recipe, 16) or recipe["batch_size"] < 16 * LEAST_PART:
        return None
    return {"backwards_per_forward": 16, "drop_remainder": True, "learning_rate": _rate_of_part(recipe, 16)}


def _ramp(recipe: Mapping[str, Any], _: int) -> dict[str, Any] | None:
    """Returns a batch that is a quarter at first, and doubles where a step schedule halves the rate."""
    size = recipe["batch_size"]
    if SCHEDULES[recipe["schedule"]].is_constant or not _whole_batches(recipe, 4):
        return None
    return {
        "schedule": "step",
        "step_factor": 2.0,
        "batch_size": size // 4,
        "batch_ramp": size,
        "learning_rate": _rate_of_part(recipe, 4),
    }


CHANGES: dict[str, Change] = {
    "average": Change(
        "averaged weights",
        lambda recipe, examples: (
            None
            if OPTIMIZERS[recipe["optimizer"]].averages
            else {"average_weights": max(1, round(HALF_LIFE * examples))}
        ),
    ),
    "short-warmup": Change("half the warmup", lambda recipe, _: {"warmup_epochs": recipe["warmup_epochs"] / 2}),
    "long-warmup": Change("twice the warmup", lambda recipe, _: {"warmup_epochs": recipe["warmup_epochs"] * 2}),
    "polynomial": Change(
        "polynomial decay of the rate",
        lambda recipe, _: None if SCHEDULES[recipe["schedule"]].is_constant else {"schedule": "polynomial"},
    ),
    "span": Change(
        f"statistics over {SPAN} examples",
        lambda recipe, _: {"span": SPAN, "drop_remainder": True} if _has_spans(recipe) else None,
    ),
    "no-smoothing": Change("no label smoothing", lambda *_: {"label_smoothing": 0.0}),
    "more-decay": Change("four times the decay", lambda recipe, _: {"weight_decay": recipe["weight_decay"] * 4}),
    "less-decay": Change("a quarter of the decay", lambda recipe, _: {"weight_decay": recipe["weight_decay"] / 4}),
    "less-momentum": Change("a momentum of 0.8", lambda *_: {"momentum": 0.8}),
    "more-momentum": Change("a momentum of 0.95", lambda *_: {"momentum": 0.95}),
    "updates": Change(
        "four updates per forward pass",
        lambda recipe, _: {"backwards_per_forward": 4, "drop_remainder": True} if _whole_batches(recipe, 4) else None,
    ),
    "many-updates": Change("sixteen updates per forward pass, their rate by the rule", _many_updates),
    "ramp": Change("a batch ramp from a quarter", _ramp),
}
# Tried with every optimizer, before the best is chosen: they gain some of them far more than others.
DECIDING = ("average", "ramp")
# Tried once a recipe has other changes, which may need another rate.
RATE_CHANGES: dict[str, Change] = {
    "half-rate": Change("half the rate", lambda recipe, _: {"learning_rate": recipe["learning_rate"] / 2}),
    "twice-rate": Change("twice the rate", lambda recipe, _: {"learning_rate": recipe["learning_rate"] * 2}),
}


@dataclasses.dataclass(frozen=True)
class Setting(Base):
    """The extent of the search.

    Attributes:
      batch_sizes: to search at, rising; the first is what the others are compared with.
      optimizers: names of optimizers that take batches.
      epochs: the epochs of every run.
      changes: the names of the changes of a recipe that are tried.
      seeds: the seeds of the best recipes.
    """

    batch_sizes: tuple[int, ...] = (64, 1024, 8192, 32768)
    optimizers: tuple[str, ...] = ("nesterov", "lars", "lamb", "muon", "schedule_free", "schedule_free_adamw")
    epochs: int = EPOCHS
    changes: tuple[str, ...] = tuple(CHANGES)
    seeds: tuple[int, ...] = SEEDS

    def changed(self, changes: Changes) -> Self:
        """Returns the setting with the sizes and seeds of the user."""
        refuse_search_seed(changes.seeds)
        return dataclasses.replace(
            self, batch_sizes=changes.batch_sizes or self.batch_sizes, seeds=changes.seeds or self.seeds
        )

    def fitted(self, examples: int) -> Self:
        """Returns the setting with the batch sizes that fit what is not held out."""
        return dataclasses.replace(self, batch_sizes=no_larger(self.batch_sizes, examples))

    @property
    def compared_sizes(self) -> tuple[int, ...]:
        """Batch sizes whose best recipes are compared."""
        return self.batch_sizes


# Runs jobs, and returns their rows; None in the place of one that has not been run.
Rows = Callable[[Sequence[Job]], Sequence[StudyRow | None]]


def recipe_of(setting: Setting, optimizer: str, batch_size: int, rate: float) -> dict[str, Any]:
    """Returns the recipe of an optimizer before any change."""
    declared = OPTIMIZERS[optimizer]
    return {
        "optimizer": optimizer,
        "batch_size": batch_size,
        "learning_rate": rate,
        "epochs": setting.epochs,
        "warmup_epochs": min(2.0, setting.epochs / 6),
        "schedule": "constant" if declared.averages else "cosine",
        "weight_decay": DECOUPLED_DECAY if declared.adaptive else WEIGHT_DECAY,
        **({"b2": AUTO} if declared.second_moment else {}),
    }


class _Best(NamedTuple):
    """The best recipe so far of one kind of optimizer at a batch size.

    Attributes:
      recipe: its options.
      accuracy: on what is held out.
      kept: the names of the changes that it has.
    """

    recipe: dict[str, Any]
    accuracy: float
    kept: tuple[str, ...] = ()


def _job(asked: Asked, key: str, recipe: Mapping[str, Any], label: str = "") -> Job:
    options = {**fixed_epochs(asked.study.options, recipe["batch_size"]), **recipe}
    return Job(key, {**options, "validation_examples": asked.data.held_out, "seed": SEARCH_SEED}, label=label)


def _is_possible(job: Job) -> bool:
    """Returns whether the options of a job go together: some changes exclude each other."""
    try:
        TrainConfig(**job.options)
    except UsageError:
        return False
    return True


def _merit(row: StudyRow | None) -> float:
    return -1.0 if row is None or row.summary is None else row.ended.result.known_accuracy


# The batch size and the optimizer of a recipe, and what changes of it come to alone, by name.
Start = tuple[int, str]
Merits = dict[str, float]


def _merits_alone(asked: Asked, starts: Mapping[Start, _Best], names: Sequence[str], rows: Rows) -> dict[Start, Merits]:
    """Tries changes of recipes, each alone, side by side."""
    jobs: dict[tuple[Start, str], Job] = {}
    for start, best in starts.items():
        for name in names:
            changes = CHANGES[name].options(best.recipe, asked.data.examples)
            if changes is None:
                continue
            job = _job(asked, _key("change", start, name), {**best.recipe, **changes}, CHANGES[name].name)
            if _is_possible(job):
                jobs[start, name] = job
    merits: dict[Start, Merits] = {start: {} for start in starts}
    for (start, name), row in zip(jobs, rows(list(jobs.values())), strict=True):
        merits[start][name] = _merit(row)
    return merits


def _best_of_kinds(starts: Mapping[Start, _Best], merits: Mapping[Start, Merits]) -> dict[Start, _Best]:
    """Returns the best recipe of each batch size of either kind: optimizers that average weights, and all others.

    The former refuse some of the changes, which are not to be left untried because one of them is the best.
    """
    kinds: dict[tuple[int, bool], list[Start]] = {}
    for start in starts:
        kinds.setdefault((start[0], OPTIMIZERS[start[1]].averages), []).append(start)

    def reached(start: Start) -> float:
        return max(starts[start].accuracy, *merits[start].values(), -1.0)

    return {start: starts[start] for kind in kinds.values() for start in [max(kind, key=reached)]}


# What tries one thing after another: it gives the jobs that are next, and is sent their rows.
Steps = Generator[list[Job], Sequence[StudyRow | None], _Best]


def _together(asked: Asked, size: int, start: _Best, merits: Mapping[str, float]) -> Steps:
    """Joins the changes of a recipe that helped alone, one after another, and tries other rates of what came out."""
    examples = asked.data.examples
    helped = sorted((name for name, merit in merits.items() if merit > start.accuracy), key=lambda name: -merits[name])
    best, changed = start, set()
    for name in helped:
        changes = CHANGES[name].options(best.recipe, examples)
        # One that takes another back is not joined to it.
        if changes is None or changes.keys() & changed - {"drop_remainder"}:
            continue
        recipe, kept = {**best.recipe, **changes}, (*best.kept, name)
        if len(kept) == 1:
            best, changed = _Best(recipe, merits[name], kept), set(changes)
            continue
        job = _joined(asked, size, recipe, kept)
        if not _is_possible(job):
            continue
        (row,) = yield [job]
        if _merit(row) >= best.accuracy:
            best, changed = _Best(recipe, _merit(row), kept), changed | changes.keys()
    return (yield from _with_its_rate(asked, size, best)) if best.kept else best


def _with_its_rate(asked: Asked, size: int, best: _Best) -> Steps:
    """Tries half and twice the rate of a recipe with changes, and returns the best of the three."""
    tried = [
        _Best({**best.recipe, **(change.options(best.recipe, asked.data.examples) or {})}, 0.0, (*best.kept, name))
        for name, change in RATE_CHANGES.items()
    ]
    found = yield [_joined(asked, size, one.recipe, one.kept) for one in tried]
    ended = (one._replace(accuracy=_merit(row)) for one, row in zip(tried, found, strict=True))
    return max(best, *ended, key=lambda one: one.accuracy)


def _side_by_side(steps: Mapping[Start, Steps], rows: Rows) -> dict[Start, _Best]:
    """Runs the next jobs of all at once, until each has returned its best recipe."""
    returned: dict[Start, _Best] = {}
    answers: dict[Start, Sequence[StudyRow | None]] = {}
    going = list(steps)
    while going:
        wanted: dict[Start, list[Job]] = {}
        for start in going:
            try:
                wanted[start] = steps[start].send(answers[start]) if start in answers else next(steps[start])
            except StopIteration as stop:
                returned[start] = stop.value
        made = iter(rows([job for jobs in wanted.values() for job in jobs]))
        answers = {start: [next(made) for _ in jobs] for start, jobs in wanted.items()}
        going = list(wanted)
    return returned


def _key(kind: str, start: Start, changes: str) -> str:
    """Returns the name of a run with changes."""
    size, optimizer = start
    return f"{kind}-b{size}-{optimizer}-{changes}"


def _joined(asked: Asked, size: int, recipe: Mapping[str, Any], kept: Sequence[str]) -> Job:
    key = _key("joined", (size, recipe["optimizer"]), "-".join(kept))
    return _job(asked, key, recipe, ", ".join(_in_words(kept)))


def _in_words(kept: Sequence[str]) -> list[str]:
    """Returns the names that changes have in a report."""
    return [(CHANGES | RATE_CHANGES)[name].name for name in kept]


def search(asked: Asked, rows: Rows) -> tuple[tuning.Found, dict[int, _Best]]:
    """Searches for the best recipe at every batch size.

    Args:
      asked: the study under way.
      rows: runs jobs.

    Returns:
      The trials of the rates, and the best recipe by batch size, without sizes at which no run ended well.

    Raises:
      UsageError: no training images can be held out, by which to choose.
    """
    setting = asked.study.of(Setting)
    if not asked.data.held_out:
        raise UsageError(
            "--parts=search chooses a recipe by training images that are held out, and those of "
            f"--dataset={asked.study.options['dataset']} cannot be: they are views of each other, or streamed; give "
            "another data set, such as mnist"
        )

    def trials(wanted: Sequence[Wanted]) -> list[Trial]:
        jobs = [
            _job(asked, f"search-b{size}-{name}-{rate:g}", recipe_of(setting, name, size, rate))
            for name, size, rate, _ in wanted
        ]
        return [Trial(None, None) if row is None else trial_of(row) for row in rows(jobs)]

    found = tuning.tune(setting.optimizers, setting.batch_sizes, trials)
    starts = {
        (size, name): _Best(recipe_of(setting, name, size, tried.best), tried.outcome.merit or 0.0)
        for (name, size), tried in found.items()
        if tried.outcome.ended
    }
    deciding = [name for name in setting.changes if name in DECIDING]
    starts = _best_of_kinds(starts, _merits_alone(asked, starts, deciding, rows))
    merits = _merits_alone(asked, starts, setting.changes, rows)
    steps = {start: _together(asked, start[0], best, merits[start]) for start, best in starts.items()}
    best: dict[int, _Best] = {}
    for (size, _), one in _side_by_side(steps, rows).items():
        best[size] = max(best.get(size, one), one, key=lambda one: one.accuracy)
    return found, dict(sorted(best.items()))


def final_jobs(asked: Asked, best: Mapping[int, _Best]) -> list[Job]:
    """Returns the best recipe of each batch size, on all training images, with each seed."""
    return [
        Job(
            f"final-b{size}-seed{seed}",
            {**fixed_epochs(asked.study.options, size), **found.recipe, "seed": seed},
            label=", ".join(_in_words(found.kept)),
        )
        for size, found in best.items()
        for seed in asked.study.of(Setting).seeds
    ]


def planned(asked: Asked) -> list[Job]:
    """Returns the runs that are known: those that have rows, and those that are next."""
    look = Look(asked.runner)
    _, best = search(asked, look)
    return look.known if look.is_open else [*look.known, *final_jobs(asked, best)]


def _total(setting: Setting) -> int:
    """Returns about how many runs there are: the changes that help are not known."""
    averaging = sum(OPTIMIZERS[name].averages for name in setting.optimizers)
    others = len(setting.optimizers) - averaging
    kinds = (averaging > 0) + (others > 0)
    deciding = max(0, others - 1) * len(set(DECIDING) & set(setting.changes))
    per_size = tuning.TRIALS * len(setting.optimizers) + deciding + kinds * len(setting.changes) + len(setting.seeds)
    return per_size * len(setting.batch_sizes)


def run(asked: Asked) -> Analysis:
    """Runs the search, then the recipes that it found."""
    rows: list[StudyRow] = []

    def run_all(jobs: Sequence[Job]) -> list[StudyRow]:
        rows.extend(made := asked.runner.run_all(jobs))
        return made

    found, best = search(asked, run_all)
    run_all(final_jobs(asked, best))
    return Analysis(
        keys=keys_of(rows),
        epochs=asked.study.of(Setting).epochs,
        trials=tuning.TRIALS,
        recipes=tuple(
            Recipe(
                batch_size=size,
                optimizer=one.recipe["optimizer"],
                rate=found[one.recipe["optimizer"], size].best,
                on_edge=found[one.recipe["optimizer"], size].is_on_edge,
                kept=_in_words(one.kept),
                held_out=one.accuracy,
            )
            for size, one in best.items()
        ),
    )


QUESTION = Question(
    order=60,
    help="the best recipe that a search finds at very large batches, at equal epochs",
    setting=Setting,
    planned=planned,
    run=run,
    presets={
        "mnist_full": Setting(),
        # Eighty minutes of two cores.
        "cifar10": Setting(
            batch_sizes=(512, 4096),
            optimizers=("nesterov", "muon"),
            epochs=6,
            changes=("average", "no-smoothing", "ramp"),
        ),
    },
    otherwise=Setting(),
    fewest_sizes=1,
    rates_follow=True,
    total=lambda asked: _total(asked.study.of(Setting)),
)
