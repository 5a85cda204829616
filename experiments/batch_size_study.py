"""What a very large batch does to accuracy: `python -m experiments.batch_size_study --dataset=mnist`.

Training runs are kept as they end, and a study that is stopped goes on with the same command.
"""

from pathlib import Path

from absl import flags

from experiments import _flags
from experiments._errors import unknown_name
from experiments.reporting import write_large_batch_page
from experiments.studies import jobs, large_batch

FLAGS = flags.FLAGS
PARTS = ("search", "ladder", "backwards")


def define_flags() -> None:
    """Defines the flags; a program that only imports this module has none of them."""
    flags.DEFINE_string("dataset", "mnist", "Data set.")
    flags.DEFINE_string("data_dir", None, "TFDS data directory. Default: TFDS's own.")
    flags.DEFINE_list("parts", list(PARTS), "What to study.")
    flags.DEFINE_string("workdir", "runs/large_batch", "Folder for the results.")


def main() -> None:
    """Parses the flags, runs what has not been run, writes the report."""
    for part in FLAGS.parts:
        if part not in PARTS:
            raise unknown_name("part", part, PARTS)
    dataset, folder = {"dataset": FLAGS.dataset, "data_dir": FLAGS.data_dir}, Path(FLAGS.workdir)
    if "search" in FLAGS.parts:
        searched = jobs.run(large_batch.search_jobs(dataset), folder)
        jobs.run(large_batch.final_jobs(dataset, searched), folder)
    if "ladder" in FLAGS.parts:
        jobs.run(large_batch.ladder_jobs(dataset), folder)
    if "backwards" in FLAGS.parts:
        jobs.run(large_batch.backwards_jobs(dataset), folder)
    print(f"report      {write_large_batch_page(folder)}")


if __name__ == "__main__":
    define_flags()
    _flags.run(main)
