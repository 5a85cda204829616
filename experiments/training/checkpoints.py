"""Checkpoints of a run, and the configuration that they belong to."""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from experiments._errors import UsageError
from experiments.training.config import TrainConfig
from experiments.training.steps import TrainState

KEEP = 3


class Checkpoints:
    """The newest checkpoints in a run's folder. Use it as a context: leaving it waits for what is being written."""

    def __init__(self, workdir: str | Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=KEEP)
        self._directory = Path(workdir).absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()

    def save(self, state: TrainState) -> None:
        """Keeps the state, under the number of its step, and waits until it is on disk. A step is kept once."""
        step = int(state.step)
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state._asdict()))
        self._manager.wait_until_finished()

    def restore(self, like: TrainState, step: int | None = None, *, set_aside: bool = False) -> TrainState | None:
        """The state of a step, or of the newest one that can be read, laid out like `like`; None if there is none.

        A newer checkpoint that cannot be read is named. With `set_aside` it is also moved to `unreadable_checkpoints`,
        so that its step can be kept again.

        Raises:
          UsageError: there is no checkpoint of that step, or it cannot be read, or none can.
        """
        steps = sorted(self._manager.all_steps())
        if step is not None and step not in steps:
            raise UsageError(f"there is no checkpoint of step {step}; there are {', '.join(map(str, steps)) or 'none'}")
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like._asdict())
        unreadable: list[Path] = []
        for candidate in [step] if step is not None else reversed(steps):
            path = self._directory / str(candidate)
            try:
                state = TrainState(**self._manager.restore(candidate, args=ocp.args.StandardRestore(abstract)))
            # What a damaged file raises depends on which byte is missing.
            except Exception as error:
                logging.warning("The checkpoint %s cannot be read (%s).", path, error)
                unreadable.append(path)
                continue
            if set_aside and unreadable:
                self._set_aside(unreadable)
            return state
        if unreadable:
            raise UsageError(
                f"none of the checkpoints {', '.join(map(str, unreadable))} can be read; all are left there"
            )
        return None

    def _set_aside(self, paths: list[Path]) -> None:
        aside = self._directory.parent / "unreadable_checkpoints"
        aside.mkdir(exist_ok=True)
        for path in paths:
            path.rename(aside / f"{path.name}-{time.time_ns()}")
            logging.warning("The checkpoint %s is set aside in %s.", path, aside)
        self._manager.reload()


def write_config(workdir: Path, config: TrainConfig, data_facts: dict[str, Any]) -> None:
    """Writes `config.json` into a new run's folder; in an old one, checks that it is the same run.

    Args:
      workdir: the folder, which is made if need be.
      config: of the run.
      data_facts: what evaluation must know of the training data: image shape, classes, pixel statistics.

    Raises:
      UsageError: the folder holds a run of another configuration; the message names what differs.
    """
    path = workdir / "config.json"
    if path.exists():
        stored, stored_facts = read_config(workdir)
        there, here = stored.identity(), config.identity()
        differs = [f"--{name}: {there[name]} there, {here[name]} here" for name in here if there[name] != here[name]]
        if differs:
            raise UsageError(
                f"the workdir {workdir} holds a run of another configuration ({'; '.join(differs)}). "
                "Give another --workdir, or the flags that it was made with"
            )
        changed = [name for name in data_facts if stored_facts.get(name) != data_facts[name]]
        if changed:
            raise UsageError(
                f"the workdir {workdir} holds a run on other data: its {', '.join(changed)} differ. "
                "Give another --workdir, or the --data_dir that it was made with"
            )
        return
    workdir.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps({"config": dataclasses.asdict(config), "data": data_facts}, indent=2) + "\n")
    os.replace(aside, path)


def read_config(workdir: Path) -> tuple[TrainConfig, dict[str, Any]]:
    """The configuration of a run, and the facts about its data, from its folder.

    Raises:
      UsageError: it is not a run's folder, or its configuration cannot be read.
    """
    path = workdir / "config.json"
    try:
        stored = json.loads(path.read_text())
        known = {field.name for field in dataclasses.fields(TrainConfig)}
        fields: dict[str, Any] = {k: v for k, v in stored["config"].items() if k in known}
        return TrainConfig(**fields), stored["data"]
    except FileNotFoundError as error:
        raise UsageError(f"{workdir} is not the folder of a run: it has no config.json") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read ({error!r}); the run's own folder holds a whole one") from error
