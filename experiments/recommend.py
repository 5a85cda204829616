"""Recommends a batch size: `python -m experiments.recommend --dataset=digits --target_accuracy=0.9`.

With `--problem=mine:problem` it does so for a training program of your own. Makes cheap measurements, and prints a
table and the command of `experiments.train` that follows. The same command resumes a recommendation that was stopped.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

from absl import flags

from . import _commands, _flags
from .studies.recommending.run import FILE, recommend
from .training.config.options import TrainConfig, refuse_beside_problem
from .training.recipe.optimizers import OPTIMIZERS
from .training.terminal import say

FLAGS = flags.FLAGS
OPTIONS = ("dataset", "data_dir", "image_size", "model", "norm", "span", "dtype", "num_devices", "problem")
# The user's own recipe, in place of none.
RECIPE = (
    "augmentation",
    "momentum",
    "average_weights",
    "weight_decay",
    "label_smoothing",
    "schedule",
    "warmup_epochs",
    "epochs",
)


def define_flags() -> None:
    """Defines the flags; a program that only imports this module has none of them."""
    as_there = f"As for {_commands.program('train')}"
    helps = {
        "dataset": f"{as_there}; also 'package.module:function'.",
        "model": f"{as_there}; also 'package.module:factory'.",
        **dict.fromkeys(("image_size", "norm", "span", "dtype", "num_devices"), f"{as_there}."),
        "target_accuracy": "Accuracy to reach as fast as possible, such as 0.98. Default: none.",
        "target_loss": "Loss to reach as fast as possible, such as 0.1, in place of an accuracy. Default: none.",
        "augmentation": f"Of all runs; {as_there[0].lower()}{as_there[1:]}. Default: none.",
        "momentum": f"Of all runs; {as_there[0].lower()}{as_there[1:]}.",
        "average_weights": "Examples after which a weight counts half as much in an average of them, such as 30000; "
        "all runs evaluate the average, which reaches a target sooner at a constant rate. Default: the last weights.",
        "weight_decay": "Decay of kernels in all runs. Default: none.",
        "label_smoothing": "Share of the target spread over all classes in all runs. Default: none.",
        "schedule": f"Of all runs; {as_there[0].lower()}{as_there[1:]}. Default: a constant rate.",
        "warmup_epochs": "Epochs of warmup of all runs. Default: none.",
        "epochs": "With a --schedule that decays, the epochs over which it does, at every batch size.",
        "workdir": "Folder for the results. Default: runs/recommend-DATASET-MODEL, or -PROBLEM.",
    }
    # None: the run's own default.
    none: dict[str, Any] = dict.fromkeys(("norm", "dtype", *RECIPE))
    _flags.define(TrainConfig, tuple(dict.fromkeys((*OPTIONS, *helps))), none, helps)
    _flags.text(
        "optimizer",
        TrainConfig.optimizer,
        "Optimizer of all runs on a data set.",
        among=[o.name for o in OPTIMIZERS if o.momentum_based],
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

    # A problem takes the place of what has a default here.
    of_data = FLAGS.problem is None
    names = [name for name in (*OPTIONS, *RECIPE) if FLAGS[name].value is not None]
    options: dict[str, Any] = {name: FLAGS[name].value for name in names if of_data or FLAGS[name].present}
    optimizer = FLAGS.optimizer if of_data or FLAGS["optimizer"].present else None
    if not of_data:
        refuse_beside_problem([*options, *(["optimizer"] if optimizer else [])], FLAGS.problem)
    config = TrainConfig(**options, target_accuracy=FLAGS.target_accuracy, target_loss=FLAGS.target_loss)
    # With --json, standard output holds the result alone; messages of the runs go to standard error.
    with contextlib.redirect_stdout(sys.stderr if FLAGS.json else sys.stdout):
        folder = Path(FLAGS.workdir or f"runs/recommend-{config.trained}")
        result = recommend(
            options,
            target=config.target_accuracy if config.target_loss is None else config.target_loss,
            goal="accuracy" if config.target_loss is None else "loss",
            minutes=FLAGS.budget_minutes,
            folder=folder,
            optimizer=optimizer,
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
