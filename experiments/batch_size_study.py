"""What the batch size does: `python -m experiments.batch_size_study --preset=quick`.

Training runs are kept as they end, and a study that is stopped goes on with the same command.
"""

import sys
from pathlib import Path

from absl import flags

from experiments import _commands, _files, _flags, _workdirs
from experiments._errors import UsageError, unknown_name
from experiments.reporting import write_study_page
from experiments.studies import batch_size, settings
from experiments.training.terminal import say

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags; a program that only imports this module has none of them."""
    names = ", ".join(sorted(settings.PRESETS))
    flags.DEFINE_string("preset", "quick", f"How much to study, and of which data: {names}.")
    flags.DEFINE_list("parts", None, f"What to study, of {', '.join(batch_size.PARTS)}. Default: what the preset has.")
    flags.DEFINE_string("dataset", None, "Data set in place of the preset's; also 'package.module:function'.")
    flags.DEFINE_string("data_dir", None, "TFDS data directory. Default: TFDS's own.")
    flags.DEFINE_integer("image_size", None, "As for experiments.train.")
    flags.DEFINE_string("model", None, "Model in place of the preset's; also 'package.module:factory'.")
    flags.DEFINE_string(
        "norm", None, "Norm of every run. Default: none where batch sizes from 1 on are compared, else batch."
    )
    flags.DEFINE_float("target_accuracy", None, "Accuracy that the runs to a target stop at, such as 0.98.")
    flags.DEFINE_integer("max_epochs", None, "Stop runs to the target after this many epochs.", lower_bound=1)
    flags.DEFINE_list("batch_sizes", None, "Batch sizes to tune the rate and compare minima at, in rising order.")
    flags.DEFINE_list("learning_rates", None, "Learning rates to begin the search with, at the smallest batch size.")
    flags.DEFINE_list("seeds", None, "Seeds of every part except the rate search.")
    flags.DEFINE_integer("num_devices", None, "Devices of every run. Default: as experiments.train.")
    flags.DEFINE_string("workdir", None, "Folder for the results. Default: runs/batch_size_study-PRESET.")
    flags.DEFINE_bool("list_presets", False, "Print the presets with the data set and the parts of each; run nothing.")
    flags.DEFINE_bool("dry_run", False, "Print what would be run, and about how long it takes; run nothing.")


def main() -> None:
    """Parses the flags, runs what has not been run, writes the report."""
    if FLAGS.list_presets:
        for name, study in settings.PRESETS.items():
            say(f"{name:<10}{study.options['dataset']}: {', '.join(batch_size.parts_of(study))}")
        return
    if FLAGS.preset not in settings.PRESETS:
        raise unknown_name("preset", FLAGS.preset, settings.PRESETS)
    study = settings.changed(
        settings.PRESETS[FLAGS.preset],
        {name: FLAGS[name].value for name in ("dataset", "data_dir", "image_size", "model", "norm", "num_devices")},
        target=FLAGS.target_accuracy,
        max_epochs=FLAGS.max_epochs,
        batch_sizes=_numbers("batch_sizes", int),
        rates=_numbers("learning_rates", float),
        seeds=_numbers("seeds", int),
    )
    parts = FLAGS.parts or batch_size.parts_of(study)
    for part in parts:
        if part not in batch_size.PARTS:
            raise unknown_name("part", part, batch_size.PARTS)
    folder = Path(FLAGS.workdir or f"runs/batch_size_study-{FLAGS.preset}")
    _workdirs.check(folder, _workdirs.STUDY)
    if FLAGS.dry_run:
        for line in batch_size.describe(study, parts, folder):
            print(line)
        return
    _workdirs.claim(folder, _workdirs.STUDY)
    words = ["python", "-m", "experiments.batch_size_study", *sys.argv[1:]]
    note_command(folder, _commands.shareable_command(words))
    batch_size.run(study, parts, folder)
    print(f"report      {write_study_page(folder)}")


def note_command(folder: Path, command: str) -> None:
    """Adds a command to those that made a study: its parts may be asked for one after the other."""
    made = folder / "command.txt"
    commands = _files.read_lines(made)
    _files.write(made, "".join(f"{line}\n" for line in dict.fromkeys([*commands, command])))


def _numbers(name: str, kind: type) -> tuple | None:
    given = FLAGS[name].value
    if given is None:
        return None
    try:
        return tuple(kind(text) for text in given)
    except ValueError as error:
        example = "1,2,32" if kind is int else "0.01,0.02"
        raise UsageError(f"--{name} are numbers, as in {example}, not {','.join(given)}") from error


if __name__ == "__main__":
    define_flags()
    _flags.run(main)
