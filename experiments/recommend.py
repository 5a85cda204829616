"""Recommends a batch size: `python -m experiments.recommend --dataset=digits --target_accuracy=0.9`.

Makes cheap measurements, and prints a table and the command of `experiments.train` that follows. The same command
resumes a recommendation that was stopped.
"""

import contextlib
import sys
from pathlib import Path

from absl import flags

from . import _commands, _flags
from .studies.recommending.run import FILE, recommend
from .training.config.options import TrainConfig
from .training.recipe.optimizers import OPTIMIZERS
from .training.terminal import say

FLAGS = flags.FLAGS
OPTIONS = ("dataset", "data_dir", "image_size", "model", "norm", "span", "dtype", "num_devices")


def define_flags() -> None:
    """Defines the flags; a program that only imports this module has none of them."""
    as_there = f"As for {_commands.program('train')}"
    helps = {
        "dataset": f"{as_there}; also 'package.module:function'.",
        "model": f"{as_there}; also 'package.module:factory'.",
        **dict.fromkeys(("image_size", "norm", "span", "dtype", "num_devices"), f"{as_there}."),
        "target_accuracy": "Accuracy to reach as fast as possible, such as 0.98. Default: none.",
        "workdir": "Folder for the results. Default: runs/recommend-DATASET-MODEL.",
    }
    _flags.define(TrainConfig, (*OPTIONS, *helps), dict.fromkeys(("norm", "dtype")), helps)
    _flags.text(
        "optimizer", "nesterov", "Optimizer of all runs.", among=[o.name for o in OPTIMIZERS if o.momentum_based]
    )
    _flags.number(
        "budget_minutes",
        10.0,
        "Time limit for measuring, in minutes.",
        above=0,
        says="must be positive and finite, such as 10",
    )
    _flags.switch("json", "Print the result as JSON, and nothing else.")


def main() -> None:
    """Parses the flags, measures, writes the report and prints the recommendation."""
    from .reporting import recommendation_lines, write_recommendation_page

    options = {name: FLAGS[name].value for name in OPTIONS if FLAGS[name].value is not None}
    # The name of a user's own function has a colon, which not all systems allow in a file name.
    name = f"{options['dataset']}-{options['model']}".replace(":", "_")
    # With --json, standard output holds the result alone; messages of the runs go to standard error.
    with contextlib.redirect_stdout(sys.stderr if FLAGS.json else sys.stdout):
        folder = Path(FLAGS.workdir or f"runs/recommend-{name}")
        result = recommend(
            options,
            target=FLAGS.target_accuracy,
            minutes=FLAGS.budget_minutes,
            folder=folder,
            optimizer=FLAGS.optimizer,
        )
    page = write_recommendation_page(folder)
    if FLAGS.json:
        print((folder / FILE).read_text(), end="")
    else:
        say("\n".join([*recommendation_lines(result), "", f"report    {page}"]))


def run() -> None:
    """Runs the program, as `python -m experiments.recommend` and as the command `batchnorm-recommend`."""
    _flags.run(define_flags, main)


if __name__ == "__main__":
    run()
