"""Evaluates a checkpoint: `python -m experiments.evaluate runs/NAME`.

With `--domain=all --recalibrate=pooled` also on other domains, before and after its norms are given the statistics
of the domain.
"""

from absl import flags

from experiments import _flags, _limits
from experiments._errors import UsageError
from experiments.data.domains import DOMAINS
from experiments.training.config.options import TrainConfig
from experiments.training.evaluation.checkpoint import OWN_DOMAIN, RECALIBRATIONS, Evaluated, evaluate_checkpoint

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags; a program that only imports this module has none of them."""
    _flags.text(
        "checkpoint",
        None,
        "The folder of a run, its workdir, also without --checkpoint=.",
        form=_limits.folder_there,
    )
    _flags.whole("step", None, "The step whose checkpoint to evaluate. Default: the newest.", least=0)
    helps = {
        "dataset": "Evaluate on this data set's test splits. Default: the run's own.",
        "model": "The model. Default: the run's own. A function of your own, 'package.module:factory', must be given "
        "here, and one that makes the data set in --dataset: a function that a checkpoint names is not run.",
        "data_dir": "TFDS data directory. Default: the run's own.",
        "num_devices": "Devices to use. Default: all accelerators, or one a CPU core.",
    }
    _flags.define(TrainConfig, tuple(helps), dict.fromkeys(helps), helps)
    _flags.several(
        "domain",
        str,
        None,
        f"Show the images as in these domains: {DOMAINS.choices}; all: these and their own.",
        among=(*DOMAINS.names, OWN_DOMAIN, "all"),
    )
    modes = " or ".join(RECALIBRATIONS)
    _flags.text(
        "recalibrate",
        None,
        f"Also with the statistics of the domain's training images: {modes}. Default: no.",
        among=RECALIBRATIONS,
    )


def main() -> None:
    """Parses the flags, evaluates, prints one line a split."""
    if FLAGS.checkpoint is None:
        raise UsageError("name the folder of a run, what train calls its workdir: experiments.evaluate runs/NAME")
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
    """A line for each row, under a line of headings; with the domain, and what came after, where there are any."""
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


if __name__ == "__main__":
    define_flags()
    _flags.run(main, positional="checkpoint")
