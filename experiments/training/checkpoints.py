"""Checkpoints of a run, and the configuration that they belong to."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Not on Windows.
    fcntl = None

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from experiments._errors import UsageError
from experiments.training.config import TrainConfig
from experiments.training.steps import TrainState

KEEP = 3
_FULL = (errno.ENOSPC, errno.EDQUOT)


class StorageError(RuntimeError):
    """What a run wants to keep cannot be written; what was kept before is whole."""


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turns what a full disk raises, wherever it is met, into an error that says so.

    Raises:
      StorageError: in place of an `OSError` for want of room; where one was under way already, that one.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        # What is closed on the way out meets the same full disk, and knows less.
        for earlier in _chain(error):
            if isinstance(earlier, StorageError):
                raise earlier from None
        raise StorageError(
            f"{_reason(error, folder)}: what {folder} holds is whole; make room and start the same command again"
        ) from error


class Checkpoints:
    """The newest checkpoints in a run's folder. Use it as a context: leaving it waits for what is being written.

    With every state its digest is stored: Orbax notices a file that was cut short, but restores flipped bytes without a
    word. Both are one checkpoint, which appears under its name when it is whole, so a process that is killed while it
    saves leaves the one before.
    """

    def __init__(self, workdir: str | Path, *, read_only: bool = False):
        """Opens the checkpoints of a run.

        Args:
          workdir: of the run.
          read_only: change nothing: another process may be training in it.
        """
        self._directory = Path(workdir).absolute() / "checkpoints"
        if read_only and not self._directory.is_dir():
            raise UsageError(f"{workdir} has no checkpoint yet")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEEP, create=not read_only, cleanup_tmp_directories=not read_only, read_only=read_only
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)
        # What was kept beside the state that was restored last.
        self.notes: dict[str, Any] = {}

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        # Closing waits for a save that failed, and raises what it raised: not in place of what says so.
        with contextlib.suppress(*([] if kind is None else [Exception])):
            self._manager.close()

    def save(self, state: TrainState, notes: dict[str, Any] | None = None) -> None:
        """Keeps the state, under the number of its step, and waits until it is on disk. A step is kept once.

        Args:
          state: to keep.
          notes: to be kept beside it, of what JSON can hold.

        Raises:
          StorageError: it cannot be written, such as to a full disk; the checkpoints before are left as they are.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        try:
            # Orbax logs each error with its traceback before it raises it.
            with _quiet():
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(state._asdict()),
                        digest=ocp.args.JsonSave({"sha256": digest(state), "notes": notes or {}}),
                    ),
                )
                self._manager.wait_until_finished()
        # What a full disk raises depends on which file it meets first.
        except Exception as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
                raise
            with contextlib.suppress(OSError):
                self._manager.reload()
            kept = ", ".join(str(s) for s in sorted(self._manager.all_steps()) if s != step) or "none"
            raise StorageError(
                f"the checkpoint of step {step} cannot be written to {self._directory} "
                f"({_reason(error, self._directory)}). The checkpoints of steps {kept} are whole; make room and start "
                "the same command again"
            ) from error

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
                state = self._read(candidate, abstract)
            # What a damaged file raises depends on which byte is missing.
            except Exception as error:
                logging.warning("The checkpoint %s cannot be read (%s).", path, str(error).partition("\n")[0])
                unreadable.append(path)
                continue
            if set_aside and unreadable:
                self._set_aside(unreadable)
            return state
        if unreadable:
            raise UsageError(
                f"none of the checkpoints {', '.join(map(str, unreadable))} can be read; all are left there. To train "
                "from the beginning, move them away or give another --workdir"
            )
        return None

    def _read(self, step: int, abstract: Any) -> TrainState:
        stored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), digest=ocp.args.JsonRestore())
        )
        state = TrainState(**stored["state"])
        if digest(state) != stored["digest"]["sha256"]:
            raise ValueError("its content does not have the digest that was stored with it")
        self.notes = stored["digest"]["notes"]
        return state

    def _set_aside(self, paths: list[Path]) -> None:
        aside = self._directory.parent / "unreadable_checkpoints"
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            for path in paths:
                path.rename(aside / f"{path.name}-{time.time_ns()}")
                logging.warning("The checkpoint %s is set aside in %s.", path, aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("set_aside")
        self._manager.reload()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Orbax logs, and what TensorStore's threads print about a save of which one file failed."""
    verbosity, hook = logging.get_verbosity(), sys.unraisablehook

    def ignore_closed_loop(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = ignore_closed_loop
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
    # Stays where the save failed: the threads come to its closed event loop later, and would write over what is said.
    sys.unraisablehook = hook


def digest(state: TrainState) -> str:
    """The SHA-256 of a state: of every array its place in the tree, type, shape and bytes."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state._asdict()):
        array = np.asarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _reason(error: BaseException, directory: Path) -> str:
    """In a few words: a full disk is named as one, whoever noticed it."""
    chain = _chain(error)
    full = any(isinstance(e, OSError) and e.errno in _FULL for e in chain)
    if full or any("No space left" in str(e) or "quota exceeded" in str(e).lower() for e in chain):
        free = shutil.disk_usage(directory).free
        return f"no space left on the disk: {free / 2**20:.1f} MiB free"
    return str(error).partition("\n")[0]


def _chain(error: BaseException) -> list[BaseException]:
    """An error, and those that it came of."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


@contextlib.contextmanager
def only_one(workdir: Path) -> Iterator[None]:
    """Makes the folder of a run, and keeps a second process from training in it at the same time.

    Raises:
      UsageError: there is one already, or the folder cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise UsageError(f"--workdir={workdir} cannot be written to ({error}); give another --workdir") from error
    with lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"--workdir={workdir}: another process is training there; wait for it, or give another --workdir"
                ) from error
            except OSError:
                # A file system without locks: nothing can be known.
                pass
        yield


def write_config(
    workdir: Path,
    config: TrainConfig,
    data_facts: dict[str, Any],
    why_not_longer: Callable[[TrainConfig], str | None] | None = None,
) -> None:
    """Writes `config.json` into a new run's folder; in an old one, checks that it is the same run, or a longer one.

    Args:
      workdir: the folder, which is made if need be.
      config: of the run.
      data_facts: what evaluation must know of the training data: image shape, classes, pixel statistics.
      why_not_longer: of the configuration there, which differs in the length alone, why a run of this one cannot go on
        from it; None: it can.

    Raises:
      UsageError: the folder holds a run of another configuration; the message names what differs.
    """
    path = workdir / "config.json"
    if path.exists():
        stored, stored_facts = read_config(workdir)
        there, here = stored.identity(), config.identity()
        differs = [f"--{name}: {there[name]} there, {here[name]} here" for name in here if there[name] != here[name]]
        length_alone = all(there[name] == here[name] for name in here if name not in ("epochs", "steps"))
        reason = why_not_longer(stored) if differs and length_alone and why_not_longer else ""
        if differs and reason is not None:
            raise UsageError(
                f"the workdir {workdir} holds a run of another configuration ({'; '.join(differs)}). "
                f"{reason}{'. ' * bool(reason)}Give another --workdir, or the flags that it was made with"
            )
        changed = [name for name in data_facts if stored_facts.get(name) != data_facts[name]]
        if changed:
            raise UsageError(
                f"the workdir {workdir} holds a run on other data: its {', '.join(changed)} differ. "
                "Give another --workdir, or the --data_dir that it was made with"
            )
        if not differs:
            return
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
        raise UsageError(
            f"{path} cannot be read ({error!r}); delete it, and the command that made the run writes it again"
        ) from error
