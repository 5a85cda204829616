"""What the batch size does: the parts of the study, and what runs them.

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
from typing import Any

from experiments.studies import convergence, generalisation, large_batch, smoothness, step_time
from experiments.studies.convergence import Data
from experiments.studies.jobs import Job, Runner, command
from experiments.studies.settings import Study, data_of, fitted


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
