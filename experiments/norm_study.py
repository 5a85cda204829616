"""Which statistics to normalise by: `python -m experiments.norm_study`.

Local, synchronised, spans, renormalized, group and frozen, over per-device batch sizes. Training runs are kept as they
end, and a study that is stopped goes on with the same command.
"""

import shlex
from pathlib import Path

from absl import flags

from experiments import _commands, _flags, _workdirs
from experiments.reporting import write_norm_study_page
from experiments.studies import jobs, norm
from experiments.training.config.options import TrainConfig

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags; a program that only imports this module has none of them."""
    _flags.text(
        "preset",
        "full",
        "'full', an hour on two cores, or 'quick', three minutes and three norms.",
        among=tuple(norm.PRESETS),
    )
    known = ", ".join(norm.NORMS)
    _flags.several(
        "norms",
        str,
        None,
        f"What to compare, of {known}. Default: those of the preset.",
        among=tuple(norm.NORMS),
        kind="norm",
    )
    _flags.several("tasks", str, list(norm.TASKS), "What to train.", among=tuple(norm.TASKS), kind="task")
    _flags.several(
        "per_device_batch_sizes",
        int,
        None,
        "Examples a device. Default: those of the preset.",
        example="1,2,32",
        what="whole numbers",
        least=1,
    )
    helps = {
        "num_devices": "Devices of a run.",
        "workdir": "Folder for the results. Default: runs/norm_study-PRESET.",
    }
    _flags.define(TrainConfig, tuple(helps), {"num_devices": 8}, helps)
    _flags.switch("dry_run", "Print the commands of the runs that are not done, and run none.")


def main() -> int:
    """Parses the flags, runs what has not been run, writes the report; the exit status."""
    size = norm.PRESETS[FLAGS.preset]
    if FLAGS.norms is not None:
        size = size._replace(norms=tuple(FLAGS.norms))
    if FLAGS.per_device_batch_sizes is not None:
        size = size._replace(per_device_batch_sizes=tuple(FLAGS.per_device_batch_sizes))
    folder = Path(FLAGS.workdir or f"runs/norm_study-{FLAGS.preset}")
    rates = norm.rate_jobs(size, FLAGS.num_devices) if set(norm.RATE_NORMS) <= set(size.norms) else []
    all_jobs = [*rates, *norm.grid_jobs(size, FLAGS.tasks, FLAGS.num_devices)]
    jobs.refuse_hopeless(all_jobs)
    _workdirs.check(folder, _workdirs.NORM_STUDY)
    if not FLAGS.dry_run:
        _workdirs.claim(folder, _workdirs.NORM_STUDY)
    with jobs.Runner(folder) as runner:
        waiting = [job for job in all_jobs if not runner.is_done(job)]
        if FLAGS.dry_run:
            jobs.try_out(waiting)
            for job in waiting:
                print(shlex.join(["python", *jobs.command(job, folder)]))
            return 0
        runner.try_out(waiting)
        for number, job in enumerate(waiting, start=1):
            runner.run(job, f"{number} of {len(waiting)}")
        for job in rates:
            runner.note(job, "shift", norm.shift_of)
    print(f"report      {write_norm_study_page(folder)}")
    return _commands.status_of_study(runner.failed())


if __name__ == "__main__":
    define_flags()
    _flags.run(main)
