"""Trains and evaluates one model: `python -m experiments.train --batch_size=8192`.

Metrics, TensorBoard events, checkpoints and a summary go under --workdir. Run the same command again to resume a run
that was stopped. `--dry_run=here` says what a run would cost, and trains nothing. `--help` lists the flags.
"""

import os
import shlex
import sys

import jax
from absl import flags

from . import _commands, _flags
from ._errors import StorageError, UsageError
from ._users import is_users_own
from .training import dry_run
from .training.config import presets
from .training.config.options import TrainConfig, refuse_beside_problem
from .training.machine.processes import PeerError
from .training.progress import NonFiniteLossError, score
from .training.session import resolve, train
from .training.terminal import say

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags, for this program only: other programs import this module too."""
    _flags.define(TrainConfig)
    names = ", ".join(sorted(presets.PRESETS))
    _flags.switch(
        "list_presets", "Print the presets with their results, sources, times and commands, and do not train."
    )
    _flags.text(
        "preset", None, f"A published recipe, which other flags override: {names}.", among=tuple(presets.PRESETS)
    )
    _flags.text(
        "dry_run",
        None,
        "Compile the update for these devices from shapes alone, and print the memory, an estimate of the time and the "
        "collectives: 'here', 'v5e:4x4', 'v5p:2x2x1', 'h100:8' and others that --topology of "
        f"{_commands.program('benchmark')} takes. Train nothing.",
        form=dry_run.check_name,
    )


def main() -> int:
    """Trains as the flags say, and prints the summary; or compiles alone. Returns the exit status."""
    from .reporting import write_page

    if FLAGS.list_presets:
        for name, preset in sorted(presets.PRESETS.items()):
            say(f"{name}\n- result: {preset.result}\n- source: {preset.source}\n- time: {preset.time}")
            print(shlex.join(presets.command(name)))
        return 0
    if FLAGS.preset in presets.PRESETS:
        preset = presets.PRESETS[FLAGS.preset]
        say(f"preset    {FLAGS.preset}: {preset.result}\nsource    {preset.source}")
    given = _flags.given(TrainConfig)
    if FLAGS.dry_run is not None:
        config = presets.configure(FLAGS.preset, given)
        for text in presets.unused(config, given):
            say(f"warning   {text}, and changes nothing here")
        return dry_run.run(config, FLAGS.dry_run)
    if FLAGS.problem is not None:
        refuse_beside_problem(given, FLAGS.problem)
    try:
        config = resolve(presets.configure(FLAGS.preset, given))
        for text in presets.unused(config, given):
            say(f"warning   {text}, and changes nothing here")
        summary = train(config, check_statistics=True)
    except (StorageError, PeerError) as error:
        # Exits at once: each open writer would try again, and JAX would wait for the process that has ended.
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    if jax.process_index() > 0:
        return 0
    print(f"\n{'split':<12}{'examples':>9}{'accuracy':>11}{'loss':>9}")
    for name, result in summary.results.items():
        iou = "" if result.mean_iou is None else f"   mean IoU {result.mean_iou:.2%}"
        examples = "" if result.examples is None else f"{result.examples:,}"
        accuracy = "" if result.accuracy is None else f"{result.accuracy:.2%}"
        print(f"{name:<12}{examples:>9}{accuracy:>11}{result.loss:>9.4f}{iou}")
    for name, result in (summary.recalibrated or {}).items():
        print(
            f"warning   {name}: {score(result)} with statistics of training images in place of running ones; "
            f"`{shlex.join(_commands.start('evaluate'))} --recalibrate=pooled` uses them"
        )
    if summary.target:
        reached = summary.reached_after
        print(f"\ntarget    {f'reached after {reached} updates' if reached else 'not reached'}")
    say("\nseconds   " + "  ".join(f"{name} {value:.1f}" for name, value in summary.seconds.items()))
    if summary.overhead is not None:
        say(f"overhead  {summary.overhead:.1%} of training is outside the compiled step")
    if config.problem is None:
        own = [f"--{name}={value}" for name in ("model", "dataset") if is_users_own(value := getattr(config, name))]
        evaluate = [*_commands.start("evaluate"), f"--checkpoint={config.workdir}", *own]
        print(f"evaluate  {shlex.join(evaluate)}")
    print(f"curves    {shlex.join(['tensorboard', f'--logdir={config.workdir}'])}")
    print(f"report    {write_page(str(config.workdir))}")
    return 0


def run() -> None:
    """Runs the program, as `python -m experiments.train` and as the command `batchnorm-train`."""
    _flags.run(define_flags, main, (UsageError, NonFiniteLossError))


if __name__ == "__main__":
    run()
