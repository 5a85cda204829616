"""What the batch size does: the parts of the study, and what runs them.

| part | questions | what it runs |
|---|---|---|
| time | 1 | short runs at many sizes |
| smoothness | 2 | the first updates at one rate; a run whose gradient noise is measured |
| convergence | 3, 4, 8 | runs to a target accuracy, at one rate and with the rate tuned at each size |
| backwards | 5 | one forward pass with k updates |
| ladder | 6 | a very large batch, from a naive recipe on |
| search | 6 | the best of three optimizers at very large batches, 12 epochs each |
| generalisation | 7 | runs at equal epochs and equal updates, and how sharp their minima are |
| grid | | runs to a target at every batch size and rate; run only where it is asked for |
| ramp | 9 | a batch that grows with the noise, a rate that falls, and neither; likewise |
"""

import shlex
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import _files, _workdirs, records
from experiments._errors import UsageError
from experiments.studies import convergence, generalisation, large_batch, ramp, smoothness, step_time
from experiments.studies.convergence import Data
from experiments.studies.jobs import Job, Runner, command, refuse_hopeless, try_out
from experiments.studies.settings import Study, data_of, fitted
from experiments.training.config.options import PLACES


class Outcome(NamedTuple):
    """What a part leaves for its report.

    Attributes:
      rows: of its runs.
      analysis: what the report needs beside them.
    """

    rows: list[dict[str, Any]]
    analysis: dict[str, Any]


def _time(study: Study, data: Data, runner: Runner) -> Outcome:
    rows = runner.run_all(step_time.jobs(study.options, study.time))
    return Outcome(rows, step_time.analyse(rows, data.examples + data.held_out))


def _smoothness(study: Study, data: Data, runner: Runner) -> Outcome:
    runs = smoothness.jobs(data.options, study.smoothness)
    noisy = smoothness.noise_job(data.options, study.smoothness)
    runner.run_all([*runs, noisy])
    for job in runs:
        runner.note(job, "losses", smoothness.losses)
    runner.note(noisy, "noise", smoothness.noise)
    rows = runner.run_all([*runs, noisy])
    return Outcome(rows, smoothness.analyse(rows))


def _convergence(study: Study, data: Data, runner: Runner) -> Outcome:
    rows = runner.run_all(convergence.fixed_jobs(data, study.convergence))

    def run(job: Job) -> dict[str, Any]:
        rows.append(runner.run(job))
        return rows[-1]

    found = convergence.run_tuned(data, study.convergence, run)
    return Outcome(rows, convergence.analyse(study.convergence, rows, found))


def _grid(study: Study, data: Data, runner: Runner) -> Outcome:
    return Outcome(runner.run_all(convergence.grid_jobs(data, study.convergence)), {})


def _ramp(study: Study, data: Data, runner: Runner) -> Outcome:
    del data
    runs = ramp.jobs(study.options, study.ramp)
    runner.run_all(runs)
    for job in runs:
        runner.note(job, "course", ramp.course)
    return Outcome(runner.run_all(runs), {})


def _backwards(study: Study, data: Data, runner: Runner) -> Outcome:
    del data
    return Outcome(runner.run_all(large_batch.backwards_jobs(study.options, study.backwards)), {})


def _ladder(study: Study, data: Data, runner: Runner) -> Outcome:
    del data
    return Outcome(runner.run_all(large_batch.ladder_jobs(study.options, study.ladder)), {})


def _search(study: Study, data: Data, runner: Runner) -> Outcome:
    del data
    searched = runner.run_all(large_batch.search_jobs(study.options))
    return Outcome([*searched, *runner.run_all(large_batch.final_jobs(study.options, searched))], {})


def _generalisation(study: Study, data: Data, runner: Runner) -> Outcome:
    # By the rates of the search, if it has been run; it is not run for them.
    runs = _minima(study, data, _tuned_so_far(study, data, runner)[0])
    runner.run_all(runs)
    for job in runs:
        runner.note(job, "minimum", generalisation.minimum, ("model", "dataset"))
    rows = runner.run_all(runs)
    return Outcome(rows, generalisation.analyse(rows))


def _minima(study: Study, data: Data, tuned: dict[int, float]) -> list[Job]:
    setting = study.convergence
    first, *_ = setting.tuned_sizes or study.generalisation.batch_sizes
    rate = generalisation.rate_by(tuned, setting.rates[len(setting.rates) // 2], first)
    return generalisation.jobs(data.options, study.generalisation, rate)


# In the order in which they are run: the rates of the last part are those of the third.
PARTS: dict[str, Callable[[Study, Data, Runner], Outcome]] = {
    "time": _time,
    "smoothness": _smoothness,
    "convergence": _convergence,
    "backwards": _backwards,
    "ladder": _ladder,
    "search": _search,
    "generalisation": _generalisation,
    "grid": _grid,
    "ramp": _ramp,
}
# Beside the questions of a study, so that only who asks for them has them run.
EXTRA = ("grid", "ramp")


def parts_of(study: Study) -> list[str]:
    """The parts that a study has."""
    return [name for name in PARTS if name not in EXTRA and (name != "search" or study.search)]


def run(study: Study, parts: Sequence[str], folder: Path) -> list[str]:
    """Runs what has not been run, and keeps what each part's report needs in `PART.json`.

    Returns:
      The keys of the runs that failed; the same command tries them again.

    Raises:
      UsageError: the folder holds a study of other data or another model, a part has too few batch sizes that the data
        allow, or no run can begin.
    """
    data = data_of(study)
    study = fitted(study, data.examples, parts)
    jobs = _possible(study, parts, data, Runner(folder))
    _claim(folder, study)
    with Runner(folder) as runner:
        runner.try_out(jobs)
        for part in (name for name in PARTS if name in parts):
            print(f"part      {part}", flush=True)
            rows, analysis = PARTS[part](study, data, runner)
            # A report shows these rows, and not those of other grids that the folder may hold.
            _write(folder / f"{part}.json", {**analysis, "keys": sorted({row["key"] for row in rows})})
    return runner.failed()


def _possible(study: Study, parts: Sequence[str], data: Data, runner: Runner) -> list[Job]:
    """The jobs of a study that are known, unless their options refuse all of them."""
    jobs = [job for part in parts for job in planned(study, part, data, runner)]
    refuse_hopeless(jobs, data.examples)
    return jobs


def _claim(folder: Path, study: Study) -> None:
    """Writes of which data and model the study in a folder is, or compares with what is there."""
    here = {name: value for name, value in study.options.items() if name not in PLACES}
    path = folder / "study.json"
    there = _files.read_json(path, records.STUDY) if path.exists() else here
    if there != here:
        differs = ", ".join(
            f"--{name}: {there.get(name)} there, {here.get(name)} here"
            for name in sorted({*there, *here})
            if there.get(name) != here.get(name)
        )
        raise UsageError(f"the folder {folder} holds a study of something else ({differs}); give another --workdir")
    _workdirs.claim(folder, _workdirs.STUDY)
    _write(path, here)


def _write(path: Path, value: dict[str, Any]) -> None:
    _files.write_json(path, value)


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
    if part == "grid":
        return convergence.grid_jobs(data, study.convergence)
    if part == "ramp":
        return ramp.jobs(study.options, study.ramp)
    if part == "backwards":
        return large_batch.backwards_jobs(study.options, study.backwards)
    if part == "ladder":
        return large_batch.ladder_jobs(study.options, study.ladder)
    if part == "search":
        return large_batch.search_jobs(study.options)
    return _minima(study, data, _tuned_so_far(study, data, runner)[0])


def _tuned_so_far(study: Study, data: Data, runner: Runner) -> tuple[dict[int, float], list[Job]]:
    """The best rates of the sizes whose search is done, and the jobs that the other searches would ask for next."""
    waiting: list[Job] = []

    def look(job: Job) -> dict[str, Any]:
        if runner.is_done(job):
            return runner.run(job)
        # Worse than any row that is there; without any, the best in the middle.
        middle = len(study.convergence.rates) // 2
        place = sum(other.options["batch_size"] == job.options["batch_size"] for other in waiting)
        waiting.append(job)
        summary = {"target": {"reached_after_updates": 10**9 + abs(place - middle)}}
        return {"key": job.key, "options": job.options, "summary": summary}

    found = convergence.run_tuned(data, study.convergence, look)
    asked = {job.options["batch_size"] for job in waiting if job.options["seed"] == convergence.SEARCH_SEED}
    return {t.batch_size: t.rate for t in found if t.rate is not None and t.batch_size not in asked}, waiting


def describe(study: Study, parts: Sequence[str], folder: Path) -> list[str]:
    """Lines on what is left to run: the command of every run that is known, and about how long each part takes."""
    data = data_of(study)
    study = fitted(study, data.examples, parts)
    runner = Runner(folder)
    try_out([job for job in _possible(study, parts, data, runner) if not runner.is_done(job)])
    lines, total = [], 0.0
    for part in (name for name in PARTS if name in parts):
        waiting = [job for job in planned(study, part, data, runner) if not runner.is_done(job)]
        seconds = estimated_seconds(waiting, data, runner.rows())
        total += seconds
        lines += [shlex.join(["python", *command(job, folder)]) for job in waiting]
        found = ", their rates those that will be found" if part in ("convergence", "generalisation") else ""
        lines.append(f"part      {part}: {len(waiting)} runs{found}, about {seconds / 60:.0f} minutes")
    basis = "by the runs in this folder" if _speeds(runner.rows()) else "of simple_cnn on two cores"
    return [*lines, f"in all    about {total / 60:.0f} minutes, {basis}"]


# Of `simple_cnn` on two cores: seconds to start a run, seconds of an update, examples a second.
START, OVERHEAD, THROUGHPUT = 4.0, 5e-4, 10_000.0
# Of the epochs that a run with a target may take.
SHARE_TO_TARGET = 0.2


def estimated_seconds(jobs: Sequence[Job], data: Data, rows: Sequence[dict[str, Any]] = ()) -> float:
    """About how long jobs take: by rows that are there already, if any, else as `simple_cnn` does on two cores."""
    speeds = _speeds(rows)
    throughput = statistics.median(speeds) if speeds else THROUGHPUT
    total = 0.0
    for job in jobs:
        size = job.options["batch_size"]
        epochs = job.options.get("epochs", 1) * (SHARE_TO_TARGET if "target_accuracy" in job.options else 1)
        updates = job.options.get("steps", epochs * data.examples / size)
        total += START + updates * (OVERHEAD + size / throughput)
    return total


def _speeds(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Examples a second of the runs whose batches are not so small that overhead is most of an update."""
    return [
        row["summary"]["updates"] * row["options"]["batch_size"] / row["summary"]["seconds"]["compute"]
        for row in rows
        if "summary" in row and row["options"]["batch_size"] >= 256 and row["summary"]["seconds"].get("compute")
    ]
