"""What the batch size does: the parts of the study, how large each is, and what runs them.

| part | questions | what it runs |
|---|---|---|
| time | 1 | short runs at many sizes |
| smoothness | 2 | the first updates at one rate; a run whose gradient noise is measured |
| convergence | 3, 4, 8 | runs to a target accuracy, at one rate and with the rate tuned at each size |
| backwards | 5 | one forward pass with k updates |
| ladder | 6 | a very large batch, from a naive recipe on |
| search | 6 | the best of three optimizers at very large batches, by number of epochs |
| generalisation | 7 | runs at equal epochs and equal updates, and how sharp their minima are |
"""

import json
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import data as datasets
from experiments._errors import UsageError
from experiments.studies import convergence, generalisation, large_batch, smoothness, step_time
from experiments.studies.convergence import Data
from experiments.studies.jobs import Job, Runner, command

# One in so many training examples is held out.
HELD_OUT = 12
# Of an epoch, at the very large batches of ladder and backwards.
FEWEST_UPDATES = 7
# Without a norm: batch statistics of one image are none, and the batch size should act through the gradient alone.
PLAIN = {"norm": "none"}


class Study(NamedTuple):
    """What to study.

    Attributes:
      options: of `TrainConfig`, of every run: data set, where it is, model.
      time: sizes to be timed.
      smoothness: runs whose losses and noise are looked at.
      convergence: runs to the target.
      backwards: one forward pass with several updates.
      ladder: a very large batch.
      generalisation: minima.
      search: run the search too.
    """

    options: dict[str, Any]
    time: step_time.Setting
    smoothness: smoothness.Setting
    convergence: convergence.Setting
    backwards: large_batch.Backwards
    ladder: large_batch.Ladder
    generalisation: generalisation.Setting
    search: bool = False


_MNIST_TIMED = (1, 6, 60, 250, 256, 264, 600, 1018, 1024, 1032, 4090, 4096, 4104, 6000)
PRESETS = {
    "quick": Study(
        {"dataset": "digits"},
        time=step_time.Setting((60, 250, 256, 264, 1024, 4096), examples=8_000, rounds=2),
        smoothness=smoothness.Setting((6, 60, 600), 200, 64, 0.02, 400, 10),
        convergence=convergence.Setting(0.9, (60, 600, 6000), (64, 512, 4096), (0.02, 0.04, 0.08), 2, (0, 1)),
        backwards=large_batch.Backwards(batch_size=6000, k=5, epochs=1, seeds=(0,)),
        ladder=large_batch.Ladder(batch_size=2048, epochs=1, seeds=(0,)),
        generalisation=generalisation.Setting((64, 512, 4096), epochs=1, steps=60, seeds=(0,)),
    ),
    "mnist": Study(
        {"dataset": "mnist"},
        time=step_time.Setting(_MNIST_TIMED, examples=30_000, rounds=3),
        smoothness=smoothness.Setting((1, 6, 60, 600), 1_000, 64, 0.01, 4_000, 80),
        convergence=convergence.Setting(
            0.98, (1, 6, 60, 600, 6000), (16, 64, 256, 1024, 4096), (0.0025, 0.005, 0.01), 20, (0, 1)
        ),
        backwards=large_batch.Backwards(epochs=4, seeds=(0,)),
        ladder=large_batch.Ladder(epochs=6, seeds=(0,)),
        generalisation=generalisation.Setting((64, 512, 4096), epochs=8, steps=400, seeds=(0, 1)),
    ),
    "mnist_full": Study(
        {"dataset": "mnist"},
        time=step_time.Setting(_MNIST_TIMED, examples=60_000, rounds=9),
        smoothness=smoothness.Setting((1, 6, 60, 600, 6000), 1_000, 64, 0.01, 8_000, 80),
        convergence=convergence.Setting(
            0.98,
            (1, 6, 60, 600, 6000),
            (4, 16, 64, 256, 1024, 4096, 16384),
            (0.0025, 0.005, 0.01),
            40,
            (0, 1, 2, 3, 4),
        ),
        backwards=large_batch.Backwards(),
        ladder=large_batch.Ladder(),
        generalisation=generalisation.Setting((16, 64, 512, 4096), epochs=12, steps=1_000, seeds=(0, 1, 2)),
        search=True,
    ),
}


def changed(
    study: Study,
    options: dict[str, Any],
    *,
    target: float | None = None,
    batch_sizes: Sequence[int] | None = None,
    rates: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
) -> Study:
    """A study with what is given in place of what it has.

    Args:
      study: such as a preset.
      options: of every run; None: as it is.
      target: accuracy of the runs to a target.
      batch_sizes: at which the rate is tuned and minima are compared.
      rates: where the search begins, at the smallest of them.
      seeds: of every run that has several.

    Raises:
      UsageError: a value is out of range, or some do not rise.
    """
    for name, values, least in (("batch_sizes", batch_sizes, 1), ("learning_rates", rates, 0), ("seeds", seeds, 0)):
        if values is None:
            continue
        if not values or min(values) < least or list(values) != sorted(set(values)) or 0.0 in (rates or ()):
            raise UsageError(
                f"--{name} must rise and be {'positive' if name != 'seeds' else 'at least 0'}, not {values}"
            )
    if target is not None and not 0 < target <= 1:
        raise UsageError(f"--target_accuracy is a share of 1, such as 0.98, not {target}")
    runs, minima = study.convergence, study.generalisation
    if target is not None:
        runs = runs._replace(target=target)
    if batch_sizes is not None:
        runs = runs._replace(fixed_sizes=tuple(batch_sizes), tuned_sizes=tuple(batch_sizes))
        minima = minima._replace(batch_sizes=tuple(batch_sizes))
    if rates is not None:
        runs = runs._replace(rates=tuple(rates))
    study = study._replace(options={**study.options, **{k: v for k, v in options.items() if v is not None}})
    if seeds is not None:
        runs, minima = runs._replace(seeds=tuple(seeds)), minima._replace(seeds=tuple(seeds))
        study = study._replace(
            ladder=study.ladder._replace(seeds=tuple(seeds)), backwards=study.backwards._replace(seeds=tuple(seeds))
        )
    return study._replace(convergence=runs, generalisation=minima)


def data_of(study: Study) -> Data:
    """The data set of a study, loaded to know its size. A twelfth is held out for the target, where that can be."""
    dataset = datasets.load(study.options["dataset"], study.options.get("data_dir"))
    held_out = dataset.train.size // HELD_OUT if dataset.independent else 0
    return Data({**study.options, **PLAIN}, dataset.train.size - held_out, held_out)


def fitted(study: Study, examples: int) -> Study:
    """The study without batch sizes that a training set does not have, or has in too few updates to tell anything.

    Raises:
      UsageError: too few are left.
    """
    runs, minima = study.convergence, study.generalisation

    def kept(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(size for size in sizes if size <= examples)

    large = examples // FEWEST_UPDATES
    unit = 8 * study.backwards.k
    found = study._replace(
        time=study.time._replace(batch_sizes=kept(study.time.batch_sizes)),
        smoothness=study.smoothness._replace(batch_sizes=kept(study.smoothness.batch_sizes)),
        convergence=runs._replace(fixed_sizes=kept(runs.fixed_sizes), tuned_sizes=kept(runs.tuned_sizes)),
        generalisation=minima._replace(batch_sizes=kept(minima.batch_sizes)),
        backwards=study.backwards._replace(batch_size=min(study.backwards.batch_size, max(unit, large // unit * unit))),
        ladder=study.ladder._replace(batch_size=min(study.ladder.batch_size, max(4, 2 ** (large.bit_length() - 1)))),
    )
    if len(found.convergence.tuned_sizes) < 2 or not found.generalisation.batch_sizes:
        raise UsageError(
            f"the training set has {examples} examples, and of the batch sizes {runs.tuned_sizes} and "
            f"{minima.batch_sizes} too few are smaller; give --batch_sizes"
        )
    return found


def _time(study: Study, data: Data, runner: Runner) -> dict[str, Any]:
    runner.run_all(step_time.jobs(study.options, study.time))
    return step_time.analyse(runner.rows(), data.examples + data.held_out)


def _smoothness(study: Study, data: Data, runner: Runner) -> dict[str, Any]:
    runs = smoothness.jobs(data.options, study.smoothness)
    noisy = smoothness.noise_job(data.options, study.smoothness)
    runner.run_all([*runs, noisy])
    for job in runs:
        runner.note(job, "losses", smoothness.losses)
    runner.note(noisy, "noise", smoothness.noise)
    return smoothness.analyse(runner.rows())


def _convergence(study: Study, data: Data, runner: Runner) -> dict[str, Any]:
    runner.run_all(convergence.fixed_jobs(data, study.convergence))
    found = convergence.run_tuned(data, study.convergence, runner.run)
    return convergence.analyse(study.convergence, runner.rows(), found)


def _backwards(study: Study, data: Data, runner: Runner) -> None:
    del data
    runner.run_all(large_batch.backwards_jobs(study.options, study.backwards))


def _ladder(study: Study, data: Data, runner: Runner) -> None:
    del data
    runner.run_all(large_batch.ladder_jobs(study.options, study.ladder))


def _search(study: Study, data: Data, runner: Runner) -> None:
    del data
    searched = runner.run_all(large_batch.search_jobs(study.options))
    runner.run_all(large_batch.final_jobs(study.options, searched))


def _generalisation(study: Study, data: Data, runner: Runner) -> dict[str, Any]:
    # Those of the part before, if it has been run; it is not run for them.
    found, _ = _tuned_so_far(study, data, runner)
    runs = _minima(study, data, found)
    runner.run_all(runs)
    for job in runs:
        runner.note(job, "minimum", generalisation.minimum)
    return generalisation.analyse(runner.rows())


def _minima(study: Study, data: Data, tuned: dict[int, float]) -> list[Job]:
    setting = study.convergence
    rate = generalisation.rate_by(tuned, setting.rates[len(setting.rates) // 2], setting.tuned_sizes[0])
    return generalisation.jobs(data.options, study.generalisation, rate)


# In the order in which they are run: the rates of the last part are those of the third.
PARTS: dict[str, Callable[[Study, Data, Runner], dict[str, Any] | None]] = {
    "time": _time,
    "smoothness": _smoothness,
    "convergence": _convergence,
    "backwards": _backwards,
    "ladder": _ladder,
    "search": _search,
    "generalisation": _generalisation,
}


def parts_of(study: Study) -> list[str]:
    """The parts that a study has."""
    return [name for name in PARTS if name != "search" or study.search]


def run(study: Study, parts: Sequence[str], folder: Path) -> None:
    """Runs what has not been run, and keeps what each part's report needs in `PART.json`."""
    data = data_of(study)
    study = fitted(study, data.examples)
    with Runner(folder) as runner:
        for part in parts:
            print(f"part      {part}", flush=True)
            analysis = PARTS[part](study, data, runner)
            if analysis is not None:
                aside = folder / f"{part}.tmp"
                aside.write_text(json.dumps(analysis, indent=1) + "\n")
                os.replace(aside, folder / f"{part}.json")


def planned(study: Study, part: str, data: Data, runner: Runner) -> list[Job]:
    """What a part runs, as far as it is known: the rates of a search follow from rows, and stay in the middle without.

    Of `search`, without the best recipe of each size with every seed.
    """
    if part == "time":
        return step_time.jobs(study.options, study.time)
    if part == "smoothness":
        return [*smoothness.jobs(data.options, study.smoothness), smoothness.noise_job(data.options, study.smoothness)]
    if part == "convergence":
        return [*convergence.fixed_jobs(data, study.convergence), *_tuned_so_far(study, data, runner)[1]]
    if part == "backwards":
        return large_batch.backwards_jobs(study.options, study.backwards)
    if part == "ladder":
        return large_batch.ladder_jobs(study.options, study.ladder)
    if part == "search":
        return large_batch.search_jobs(study.options)
    return _minima(study, data, _tuned_so_far(study, data, runner)[0])


def _tuned_so_far(study: Study, data: Data, runner: Runner) -> tuple[dict[int, float], list[Job]]:
    """The best rates by the rows of the search that are there, and the jobs that it would ask for next."""
    waiting: list[Job] = []
    there: set[int] = set()

    def look(job: Job) -> dict[str, Any]:
        size = job.options["batch_size"]
        if runner.is_done(job):
            there.add(size)
            return runner.run(job)
        # Worse than any row that is there; without any, the best in the middle.
        middle = len(study.convergence.rates) // 2
        place = sum(other.options["batch_size"] == size for other in waiting)
        waiting.append(job)
        updates = 10**9 + abs(place - middle)
        return {"key": job.key, "options": job.options, "summary": {"target": {"reached_after_updates": updates}}}

    found = convergence.run_tuned(data, study.convergence, look)
    return {t.batch_size: t.rate for t in found if t.rate is not None and t.batch_size in there}, waiting


def describe(study: Study, parts: Sequence[str], folder: Path) -> list[str]:
    """Lines on what is left to run: the command of every run that is known, and about how long each part takes."""
    data = data_of(study)
    study = fitted(study, data.examples)
    runner = Runner(folder)
    lines, total = [], 0.0
    for part in parts:
        waiting = [job for job in planned(study, part, data, runner) if not runner.is_done(job)]
        seconds = estimated_seconds(waiting, data, runner.rows())
        total += seconds
        lines += ["python " + " ".join(command(job, folder)) for job in waiting]
        found = ", their rates those that will be found" if part in ("convergence", "generalisation") else ""
        lines.append(f"part      {part}: {len(waiting)} runs{found}, about {seconds / 60:.0f} minutes")
    basis = "by the runs in this folder" if runner.rows() else "of simple_cnn on two cores"
    return [*lines, f"in all    about {total / 60:.0f} minutes, {basis}"]


# Of `simple_cnn` on two cores: seconds to start a run, seconds of an update, examples a second.
START, OVERHEAD, THROUGHPUT = 4.0, 5e-4, 10_000.0
# Of the epochs that a run with a target may take.
SHARE_TO_TARGET = 0.2


def estimated_seconds(jobs: Sequence[Job], data: Data, rows: Sequence[dict[str, Any]] = ()) -> float:
    """About how long jobs take: by rows that are there already, if any, else as `simple_cnn` does on two cores."""
    speeds = [
        row["summary"]["updates"] * row["options"]["batch_size"] / row["summary"]["seconds"]["compute"]
        for row in rows
        if "summary" in row and row["options"]["batch_size"] >= 256 and row["summary"]["seconds"].get("compute")
    ]
    throughput = statistics.median(speeds) if speeds else THROUGHPUT
    total = 0.0
    for job in jobs:
        size = job.options["batch_size"]
        epochs = job.options.get("epochs", 1) * (SHARE_TO_TARGET if "target_accuracy" in job.options else 1)
        updates = job.options.get("steps", epochs * data.examples / size)
        total += START + updates * (OVERHEAD + size / throughput)
    return total
