"""What the batch size does: `python -m experiments.batch_size_study --preset=quick`.

Training runs are kept as they end, and a study that is stopped goes on with the same command.
"""

import json
import os
from pathlib import Path

from absl import flags

from experiments import _flags
from experiments._errors import unknown_name
from experiments.reporting import CONVERGENCE, write_study_page
from experiments.studies import convergence, jobs, large_batch

FLAGS = flags.FLAGS
PARTS = ("convergence", "search", "ladder", "backwards")


def define_flags() -> None:
    """Defines the flags; a program that only imports this module has none of them."""
    flags.DEFINE_string("preset", "mnist", "'mnist', or 'quick', on data that need no download: convergence alone.")
    flags.DEFINE_string("data_dir", None, "TFDS data directory. Default: TFDS's own.")
    flags.DEFINE_list("parts", None, f"What to study, of {', '.join(PARTS)}. Default: all that the preset has.")
    flags.DEFINE_string("workdir", None, "Folder for the results. Default: runs/batch_size_study-PRESET.")


def main() -> None:
    """Parses the flags, runs what has not been run, writes the report."""
    if FLAGS.preset not in convergence.SETTINGS:
        raise unknown_name("preset", FLAGS.preset, convergence.SETTINGS)
    setting = convergence.SETTINGS[FLAGS.preset]
    parts = FLAGS.parts or (PARTS if FLAGS.preset == "mnist" else PARTS[:1])
    for part in parts:
        if part not in PARTS:
            raise unknown_name("part", part, PARTS)
    data = {"data_dir": FLAGS.data_dir}
    folder = Path(FLAGS.workdir or f"runs/batch_size_study-{FLAGS.preset}")
    if "convergence" in parts:
        _converge(setting._replace(options={**setting.options, **data}), folder)
    dataset = {**setting.options, **data}
    if "search" in parts:
        searched = jobs.run(large_batch.search_jobs(dataset), folder)
        jobs.run(large_batch.final_jobs(dataset, searched), folder)
    if "ladder" in parts:
        jobs.run(large_batch.ladder_jobs(dataset), folder)
    if "backwards" in parts:
        jobs.run(large_batch.backwards_jobs(dataset), folder)
    print(f"report      {write_study_page(folder)}")


def _converge(setting: convergence.Setting, folder: Path) -> None:
    jobs.run(convergence.fixed_jobs(setting), folder)
    found = convergence.run_tuned(setting, folder)
    analysis = convergence.analyse(setting, jobs.read(folder / jobs.FILE), found)
    aside = folder / f"{CONVERGENCE}.tmp"
    aside.write_text(json.dumps(analysis, indent=2) + "\n")
    os.replace(aside, folder / CONVERGENCE)


if __name__ == "__main__":
    define_flags()
    _flags.run(main)
