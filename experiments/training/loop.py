"""The training loop."""

import dataclasses
import json
import math
import os
import platform
import signal
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from experiments import data as datasets
from experiments import models
from experiments._errors import UsageError
from experiments.training import devices, evaluation, optimizers, preflight, schedules, steps
from experiments.training.checkpoints import Checkpoints, write_config
from experiments.training.config import TrainConfig
from experiments.training.metrics import MetricsLog

SUMMARY = "summary.json"
TERMINATED = 128 + signal.SIGTERM


_REMEDY = (
    "checkpoints of earlier steps are kept. Try a lower learning rate (--learning_rate, --base_learning_rate) "
    "or a longer --warmup_epochs"
)


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number; the last checkpoint is of before that."""


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains and evaluates one model; results go under the configuration's workdir.

    A run that was stopped goes on from its newest checkpoint; one that is complete is not run again.

    Args:
      config: what to do.

    Returns:
      The summary, which `summary.json` in the workdir holds too: for each evaluated split its accuracy and loss, the
      updates, and the seconds by what they were spent on.

    Raises:
      UsageError: what was asked for cannot be done.
      NonFiniteLossError: the loss is not finite; the message names the step.
    """
    clock = Clock()
    config = resolve(config)
    workdir = Path(str(config.workdir))
    with clock("input"):
        chosen = devices.set_up(config.num_devices, config.batch_size)
        dataset = datasets.load(config.dataset, config.data_dir)
    run = prepare(config, dataset, chosen)
    examples = len(dataset.train.labels)
    for line in preflight.describe(config, run.plan, examples, len(chosen), chosen[0].platform):
        print(line)
    if dataset.note:
        print(f"note      {dataset.note}")
    statistics = evaluation.pixel_statistics(dataset.train.images)
    facts = {
        "image_shape": list(dataset.train.images.shape[1:]),
        "num_classes": dataset.num_classes,
        "pixel_mean": statistics[0].tolist(),
        "pixel_std": statistics[1].tolist(),
        "examples": examples,
        "note": dataset.note,
    }
    write_config(workdir, config, facts)
    print(f"workdir   {workdir}\n", flush=True)
    if (summary := _finished(workdir)) is not None:
        print("This run is complete; to run it again give another --workdir or --seed.\n")
        return summary

    with clock("input"):
        train_data = evaluation.put(dataset.train, statistics, run.mesh)
        test_data = {name: evaluation.put(split, statistics, run.mesh) for name, split in dataset.test.items()}
    with Checkpoints(workdir) as checkpoints:
        state = checkpoints.restore(run.state, set_aside=True)
        if state is None:
            state = run.state
        else:
            print(f"Going on from the checkpoint of step {int(state.step)}.", flush=True)
        with MetricsLog(workdir, int(state.step)) as log:
            state, results = _fit(config, run, state, train_data, test_data, checkpoints, log, clock)
    summary = _summarise(config, run, results, clock)
    # Written last and whole: its presence says that the run is complete.
    aside = workdir / f"{SUMMARY}.tmp"
    aside.write_text(json.dumps(summary, indent=2) + "\n")
    os.replace(aside, workdir / SUMMARY)
    return summary


def resolve(config: TrainConfig) -> TrainConfig:
    """The configuration with its workdir filled in, and the number of devices where the numbers depend on it."""
    if config.norm == "local":
        chosen = devices.set_up(config.num_devices, config.batch_size)
        config = dataclasses.replace(config, num_devices=len(chosen))
    return dataclasses.replace(config, workdir=config.workdir or config.default_workdir())


class Run(NamedTuple):
    """What a training run is made of, before its first step."""

    plan: preflight.Plan
    mesh: jax.sharding.Mesh
    state: steps.TrainState
    train_step: Any
    eval_step: Any


def prepare(config: TrainConfig, dataset: datasets.Dataset, chosen: list[devices.Device]) -> Run:
    """Makes the model, its initial state and its steps; refuses what cannot be before anything is compiled."""
    plan = preflight.plan(config, len(dataset.train.labels))
    model = models.create(
        config.model, num_classes=dataset.num_classes, norm=steps.make_norm(config.norm, config.running_momentum)
    )
    schedule = schedules.make(
        config.schedule, config.peak_learning_rate, warmup_steps=plan.warmup_steps, total_steps=plan.total_steps
    )
    optimizer = optimizers.make(config.optimizer, schedule, momentum=config.momentum, weight_decay=config.weight_decay)
    mesh = devices.make_mesh(chosen)
    step = steps.train_step(
        model,
        optimizer,
        schedule,
        mesh,
        label_smoothing=config.label_smoothing,
        masked=plan.masked,
        local_statistics=config.norm == "local",
    )
    state = steps.init_state(model, optimizer, dataset.train.images.shape[1:], config.seed)
    state = jax.device_put(state, devices.replicated(mesh))
    return Run(plan, mesh, state, step, steps.eval_step(model, mesh))


def _fit(config, run, state, train_data, test_data, checkpoints, log, clock):
    """Trains to the last step. Returns the state and the last evaluation of every split."""
    plan = run.plan
    bar = tqdm(total=plan.total_steps, initial=int(state.step), unit="step", disable=None, dynamic_ncols=True)
    reader = _LossReader(config, plan, log, bar)
    compiled, results = None, {}
    step = int(state.step)
    with _Termination() as terminated:
        while step < plan.total_steps:
            epoch = step // plan.steps_per_epoch
            with clock("input"):
                order = _epoch(config, run, epoch, len(train_data.labels))
            if compiled is None:
                with clock("compile"):
                    compiled = run.train_step.lower(state, train_data, *order).compile()
            epoch_end = min((epoch + 1) * plan.steps_per_epoch, plan.total_steps)
            first_step, started = step, clock.seconds["compute"]
            with clock("compute"):
                while step < epoch_end:
                    state, metrics = compiled(state, train_data, *order)
                    step += 1
                    # The metrics of the step before this one: by now a next step is under way.
                    reader.read()
                    reader.expect(step, metrics)
                    # At the end of an epoch its evaluation comes first, or a run that resumes would lack it.
                    if step < epoch_end and (terminated() or _is_due(config, step)):
                        reader.read()
                        with clock("checkpoint", inside="compute"):
                            _save(checkpoints, state, step)
                        if terminated():
                            _exit_terminated(step)
                reader.read()
                jax.block_until_ready(state)
            images = (step - first_step) * config.batch_size
            throughput = images / (clock.seconds["compute"] - started)
            with clock("evaluate"):
                results = {
                    name: evaluation.evaluate(run.eval_step, state, split, run.mesh)
                    for name, split in test_data.items()
                }
            for name, result in results.items():
                log.write(name, step, {"epoch": step / plan.steps_per_epoch, **result})
            _report(bar, plan, step, reader.last, results, throughput)
            if not config.checkpoint_every or _is_due(config, step) or step == plan.total_steps or terminated():
                with clock("checkpoint"):
                    _save(checkpoints, state, step)
            if terminated() and step < plan.total_steps:
                _exit_terminated(step)
    bar.close()
    if not results:
        # It was stopped between its last checkpoint and its summary: the rows are there already.
        with clock("evaluate"):
            results = {n: evaluation.evaluate(run.eval_step, state, d, run.mesh) for n, d in test_data.items()}
    return state, results


def _is_due(config: TrainConfig, step: int) -> bool:
    return config.checkpoint_every > 0 and step % config.checkpoint_every == 0


def _save(checkpoints: Checkpoints, state: steps.TrainState, step: int) -> None:
    """Keeps a state, unless the update that made it left something that is not finite: its loss is not known yet."""
    for leaf in jax.tree.leaves((state.params, state.batch_stats)):
        if not np.isfinite(np.asarray(leaf)).all():
            raise NonFiniteLossError(f"the parameters are not finite after step {step}; {_REMEDY}")
    checkpoints.save(state)


def _exit_terminated(step: int) -> NoReturn:
    print(f"\nStopped by SIGTERM; step {step} is saved.", flush=True)
    sys.exit(TERMINATED)


def _epoch(config: TrainConfig, run: Run, epoch: int, examples: int):
    order = datasets.epoch_order(
        examples, config.batch_size, seed=config.seed, epoch=epoch, drop_remainder=config.drop_remainder
    )
    return jax.device_put(order, NamedSharding(run.mesh, PartitionSpec(None, devices.AXIS)))


class _LossReader:
    """Reads a step's metrics once the next step is dispatched, so that the device never waits for the host."""

    def __init__(self, config: TrainConfig, plan: preflight.Plan, log: MetricsLog, bar: tqdm):
        self._config, self._log, self._bar = config, log, bar
        self._steps_per_epoch = plan.steps_per_epoch
        self._expected = None
        self.last: dict[str, float] = {}

    def expect(self, step: int, metrics) -> None:
        """Names what the next `read` is to read."""
        self._expected = (step, metrics)

    def read(self) -> None:
        """Reads, checks and logs what is expected; does nothing the second time."""
        if self._expected is None:
            return
        step, metrics = self._expected
        self._expected = None
        self.last = {name: float(value) for name, value in metrics.items()}
        if not math.isfinite(self.last["loss"]):
            raise NonFiniteLossError(f"the loss is {self.last['loss']} at step {step}; {_REMEDY}")
        if step % self._config.log_every == 0:
            self._log.write("train", step, {"epoch": step / self._steps_per_epoch, **self.last})
        self._bar.update()
        self._bar.set_postfix(
            loss=f"{self.last['loss']:.3f}",
            acc=f"{self.last['accuracy']:.3f}",
            rate=f"{self.last['learning_rate']:.3g}",
            refresh=False,
        )


class _Termination:
    """Remembers a SIGTERM, so that the loop can end after a whole step. Only the main thread can listen."""

    def __enter__(self):
        self._received = False
        try:
            self._before = signal.signal(signal.SIGTERM, self._receive)
        except ValueError:
            self._before = None
        return lambda: self._received

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _receive(self, *_):
        self._received = True


class Clock:
    """Adds up wall time by what it is spent on. Time in a `with` inside another is taken from the outer one."""

    def __init__(self):
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str, inside: str | None = None):
        """Counts the time of a `with` as `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - start
            self.seconds[name] += passed
            if inside is not None:
                self.seconds[inside] -= passed


def _report(bar, plan, step, last, results, throughput) -> None:
    accuracies = "  ".join(f"{name} {result['accuracy']:.2%}" for name, result in results.items())
    bar.write(
        f"epoch {step / plan.steps_per_epoch:>5.4g}  step {step:>6}  loss {last['loss']:.4f}  {accuracies}  "
        f"{throughput:,.0f} images/s",
        file=sys.stdout,
    )
    sys.stdout.flush()


def _finished(workdir: Path) -> dict[str, Any] | None:
    path = workdir / SUMMARY
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} cannot be read ({error}); delete it, and the run ends again") from error


def _summarise(config: TrainConfig, run: Run, results, clock: Clock) -> dict[str, Any]:
    return {
        "results": results,
        "updates": run.plan.total_steps,
        "parameters": int(sum(np.size(p) for p in jax.tree.leaves(run.state.params))),
        "seconds": {name: round(seconds, 3) for name, seconds in sorted(clock.seconds.items())},
        "devices": f"{run.mesh.size} x {run.mesh.devices.flat[0].device_kind}",
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "command": "python -m experiments.train " + " ".join(sys.argv[1:]),
    }
