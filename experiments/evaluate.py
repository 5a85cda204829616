"""Evaluates a checkpoint: `python -m experiments.evaluate runs/NAME`.

With `--domain=all --recalibrate=pooled` it is also evaluated on other domains, before and after its norms get the
statistics of the domain.
"""

from absl import flags

from . import _commands, _flags, _limits
from ._errors import UsageError
from .data.domains import DOMAINS
from .training.config.options import TrainConfig
from .training.evaluation.checkpoint import OWN_DOMAIN, RECALIBRATIONS, Evaluated, evaluate_checkpoint

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags, for this program only: other programs import this module too."""
    _flags.text(
        "checkpoint",
        None,
        "The folder of a run (its --workdir). `--checkpoint=` may be left out.",
        form=_limits.folder_there,
    )
    _flags.whole("step", None, "The step whose checkpoint to evaluate. Default: the newest.", least=0)
    helps = {
        "dataset": "Evaluate on this data set's test splits. Default: the run's own.",
        "model": "The model. Default: the run's own. If the model is a function of your own, give it here again as "
        "'package.module:factory', and a function that makes the data set in --dataset: a function that only a "
        "checkpoint names is not run.",
        "data_dir": "TFDS data directory. Default: the run's own.",
        "num_devices": "Devices to use. Default: all accelerators, or one per CPU core.",
    }
    _flags.define(TrainConfig, tuple(helps), dict.fromkeys(helps), helps)
    _flags.several(
        "domain",
        str,
        None,
        f"Evaluate on the images as in these domains: {DOMAINS.choices}; all: these and the images' own domain.",
        among=(*DOMAINS.names, OWN_DOMAIN, "all"),
    )
    modes = " or ".join(RECALIBRATIONS)
    _flags.text(
        "recalibrate",
        None,
        f"Also evaluate with the statistics of the domain's training images: {modes}. Default: no.",
        among=RECALIBRATIONS,
    )


def main() -> None:
    """Evaluates as the flags say, and prints one line per split."""
    if FLAGS.checkpoint is None:
        raise UsageError(f"give the folder of a run (its --workdir): {_commands.program('evaluate')} runs/NAME")
    step, rows = evaluate_checkpoint(
        FLAGS.checkpoint,
        FLAGS.domain or (),
        FLAGS.recalibrate,
        step=FLAGS.step,
        dataset=FLAGS.dataset,
        model=FLAGS.model,
        data_dir=FLAGS.data_dir,
        num_devices=FLAGS.num_devices,
    )
    print(f"step {step}")
    print("\n".join(_table(rows, domains=bool(FLAGS.domain))))


def _table(rows: list[Evaluated], *, domains: bool) -> list[str]:
    """Returns a line of headings and one line per row.

    Args:
      rows: the results.
      domains: whether to show the column of domains.
    """
    recalibrated = any(row.after for row in rows)
    after = f"{'recalibrated':>14}{'loss':>9}" if recalibrated else ""
    lines = [f"{'domain':<10}" * domains + f"{'split':<12}{'examples':>9}{'accuracy':>11}{'loss':>9}{after}"]
    for row in rows:
        line = f"{row.domain:<10}" * domains + f"{row.split:<12}{row.before.examples:>9,}"
        line += f"{row.before.accuracy:>11.2%}{row.before.loss:>9.4f}"
        if row.after:
            line += f"{row.after.accuracy:>14.2%}{row.after.loss:>9.4f}"
        ious = [result.mean_iou for result in (row.before, row.after) if result and result.mean_iou is not None]
        lines.append(line + (f"   mean IoU {', then '.join(f'{iou:.2%}' for iou in ious)}" if ious else ""))
    return lines


def run() -> None:
    """Runs the program, as `python -m experiments.evaluate` and as the command `batchnorm-evaluate`."""
    _flags.run(define_flags, main, positional="checkpoint")


if __name__ == "__main__":
    run()
