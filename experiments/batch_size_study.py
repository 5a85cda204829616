"""Measures the effects of the batch size: `python -m experiments.batch_size_study --preset=quick`.

Each result is stored as soon as its run ends; the same command resumes a study that was stopped.
"""

import sys
from pathlib import Path

from absl import flags

from . import _commands, _flags, _workdirs
from ._errors import UsageError
from .studies import batch_size, settings, status
from .studies.executing.choice import Where
from .studies.question import Study
from .studies.questions import QUESTIONS
from .training.config.options import LARGEST_SEED, TrainConfig, refuse_beside_problem
from .training.of_problem import check_target, refuse_met
from .training.terminal import say

FLAGS = flags.FLAGS
# The flags of the fields of `Changes`; a target is named by its kind.
FLAG_OF = {
    "max_epochs": "max_epochs",
    "batch_sizes": "batch_sizes",
    "rates": "learning_rates",
    "seeds": "seeds",
    "target": "target_accuracy",
}


def define_flags() -> None:
    """Defines the flags; a program that only imports this module has none of them."""
    names = ", ".join(sorted(settings.PRESETS))
    _flags.text("preset", "quick", f"How much to study, and of which data: {names}.", among=tuple(settings.PRESETS))
    _flags.several(
        "parts",
        str,
        None,
        "What to study: "
        + "; ".join(f"{name}, {asked.help}" for name, asked in QUESTIONS.items())
        + ". Default: what the preset has.",
        among=tuple(QUESTIONS),
        kind="part",
    )
    train = _commands.program("train")
    helps = {
        "dataset": "Data set in place of the preset's; also 'package.module:function'.",
        "data_dir": "TFDS data directory. Default: TFDS's own.",
        "image_size": f"As for {train}.",
        "model": "Model in place of the preset's; also 'package.module:factory'.",
        "norm": "Norm of every run. Default: none where batch sizes from 1 on are compared, else batch.",
        "problem": "Training program of your own in place of a preset: 'package.module:function'.",
        "target_accuracy": "Accuracy that the runs to a target stop at, such as 0.98.",
        "target_loss": "Loss that the runs to a target stop at, for a problem that evaluates a loss.",
        "num_devices": f"Devices of every run. Default: as {train}.",
        "workdir": "Folder for the results. Default: runs/batch_size_study-PRESET.",
    }
    _flags.define(TrainConfig, tuple(helps), dict.fromkeys(helps), helps)
    _flags.whole("max_epochs", None, "Stop runs to the target after this many epochs.", least=1, most=10**9)
    _flags.several(
        "batch_sizes",
        int,
        None,
        "Batch sizes to tune the rate and compare minima at, in rising order.",
        least=1,
        example="1,2,32",
    )
    _flags.several(
        "learning_rates",
        float,
        None,
        "Learning rates to begin the search with, at the smallest batch size.",
        above=0,
        example="0.01,0.02",
    )
    _flags.several(
        "seeds",
        int,
        None,
        "Seeds of every part except the rate search.",
        least=0,
        most=LARGEST_SEED,
        example="0,1,2",
    )
    _flags.switch("list_presets", "Print the presets with the data set and the parts of each; run nothing.")
    _flags.define(Where)
    _flags.switch("status", "Print how far the study is, which another process may be running; run nothing.")
    _flags.switch("dry_run", "Print what would be run, and about how long it takes; run nothing.")


def main() -> int:
    """Parses the flags, makes the runs that are not done, writes the report, and returns the exit status."""
    from .reporting import write_study_page

    if FLAGS.list_presets:
        width = max(map(len, settings.PRESETS)) + 2
        for name, study in settings.PRESETS.items():
            say(f"{name:<{width}}{study.options['dataset']}: {', '.join(study.parts)}")
        return 0
    folder = Path(FLAGS.workdir or f"runs/batch_size_study-{(FLAGS.problem or FLAGS.preset).replace(':', '_')}")
    _workdirs.check(folder, _workdirs.STUDY)
    if FLAGS.status:
        print("\n".join(status.lines(folder)))
        return 0
    where = _flags.made(Where).make()
    study = _study()
    parts = FLAGS.parts or study.parts
    for name in batch_size.unread(study, parts):
        if FLAGS[FLAG_OF[name]].value is not None:
            say(f"warning   --{FLAG_OF[name]} changes nothing of {', '.join(parts)}")
    if FLAGS.dry_run:
        for line in batch_size.describe(study, parts, folder):
            print(line)
        return 0
    _workdirs.claim(folder, _workdirs.STUDY)
    words = [*_commands.start("batch_size_study"), *sys.argv[1:]]
    failed = batch_size.run(study, parts, folder, where, command=_commands.shareable_command(words))
    print(f"report      {write_study_page(folder)}")
    return _commands.status_of_study(failed)


def _study() -> Study:
    """Returns the study that the flags ask for.

    Raises:
      UsageError: flags exclude each other, or ask for what the study of a problem has not.
    """
    changes = {
        "max_epochs": FLAGS.max_epochs,
        "batch_sizes": FLAGS.batch_sizes,
        "rates": FLAGS.learning_rates,
        "seeds": FLAGS.seeds,
    }
    names = ("dataset", "data_dir", "image_size", "model", "norm", "num_devices")
    options = {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}
    if FLAGS.problem is None:
        if FLAGS.target_loss is not None:
            raise UsageError("--target_loss is for a --problem; the runs on a data set have a --target_accuracy")
        return settings.changed(settings.PRESETS[FLAGS.preset], options, target=FLAGS.target_accuracy, **changes)
    refuse_beside_problem(options, FLAGS.problem)
    if FLAGS["preset"].present:
        raise UsageError(f"--preset={FLAGS.preset} is of a data set; leave it out with --problem={FLAGS.problem}")
    config = TrainConfig(problem=FLAGS.problem, target_accuracy=FLAGS.target_accuracy, target_loss=FLAGS.target_loss)
    others = [part for part in FLAGS.parts or () if not QUESTIONS[part].of_problems]
    if others:
        can = ", ".join(name for name, asked in QUESTIONS.items() if asked.of_problems)
        raise UsageError(f"--parts={','.join(others)} cannot be asked of a --problem; what can: {can}")
    options["problem"] = FLAGS.problem
    data = settings.with_held_out(options)
    goal = data.goal
    check_target(FLAGS.problem, goal, config.target_accuracy, config.target_loss)
    target = config.target_accuracy if config.target_loss is None else config.target_loss
    if data.problem is not None and target is not None:
        refuse_met(data.problem, target)
    idle = [name for name in ("learning_rates", "max_epochs") if FLAGS[name].value is not None and target is None]
    if idle:
        raise UsageError(f"--{idle[0]} is of runs to a target, and there are none without --target_{goal}; give it")
    study = settings.of_problem(options, target=target, batch_sizes=FLAGS.batch_sizes)
    if target is None:
        say(f"note      without --target_{goal} there are no runs to a target: only the time of an update is studied")
    return settings.changed(study, {}, target=target, goal=goal, **changes)


def run() -> None:
    """Runs the program, as `python -m experiments.batch_size_study` and as the command `batchnorm-batch-size-study`."""
    _flags.run(define_flags, main)


if __name__ == "__main__":
    run()
