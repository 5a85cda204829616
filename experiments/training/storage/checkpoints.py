"""Checkpoints of a run."""

import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from experiments import _files
from experiments._errors import StorageError, UsageError
from experiments.records.checkpoints import Beside, Described, Notes
from experiments.training.state import TrainState

KEEP = 3
NO_NOTES = Notes()


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turns what a full disk raises, wherever it is met, into an error that says so; likewise a folder that is gone.

    Raises:
      StorageError: in place of an `OSError` for want of room, or of the folder; where one was under way already, that
        one.
    """
    there = folder.is_dir()
    try:
        yield
    except OSError as error:
        if error.errno not in _files.FULL:
            if there and not folder.is_dir():
                raise gone(folder) from error
            raise
        # What is closed on the way out meets the same full disk, and knows less.
        for earlier in _chain(error):
            if isinstance(earlier, StorageError):
                raise earlier from None
        raise StorageError(
            f"{_reason(error, folder)}: what {folder} holds is whole; make room and start the same command again"
        ) from error


def gone(folder: Path) -> StorageError:
    """The error of a folder that was removed while something ran in it."""
    return StorageError(
        f"the workdir {folder} was removed while this run was going on, and what it held is lost; start the same "
        "command again, and the run begins anew there"
    )


class Checkpoints:
    """The newest checkpoints in a run's folder. Use it as a context: leaving it waits for what is being written.

    With every state its digest is stored: Orbax notices a file that was cut short, but restores flipped bytes without a
    word. Both are one checkpoint, which appears under its name when it is whole, so a process that is killed while it
    saves leaves the one before.
    """

    def __init__(self, workdir: str | Path, *, read_only: bool = False, run: str | None = None):
        """Opens the checkpoints of a run.

        Args:
          workdir: of the run.
          read_only: change nothing: another process may be training in it.
          run: the name of the run, which is kept with every state and compared with that of a state that is restored;
            None: not known.

        Raises:
          UsageError: with `read_only`, there are none; or they cannot be opened, for what describes one is damaged.
        """
        self._run = run
        self._directory = Path(workdir).absolute() / "checkpoints"
        if read_only and not self._directory.is_dir():
            raise UsageError(f"{workdir} has no checkpoint yet")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEEP, create=not read_only, cleanup_tmp_directories=not read_only, read_only=read_only
        )
        self._manager = self._opened(options)
        # What was kept beside the state that was restored last.
        self.notes = Notes()

    def _opened(self, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
        """Orbax's manager, which reads what describes each checkpoint, and cannot do without one of them."""
        try:
            return ocp.CheckpointManager(self._directory, options=options)
        # What it raises depends on which byte is wrong.
        except Exception as error:
            broken = self._undescribed()
            raise UsageError(
                f"the checkpoints in {self._directory} cannot be opened "
                f"({broken or _files.reason(error)[:200] or type(error).__name__}); move the folder of that checkpoint "
                "away, and the one before it is used, or give another --workdir"
            ) from error

    def _undescribed(self) -> str:
        """What is wrong with the file that describes a checkpoint, of the first for which something is."""
        for path in sorted(self._directory.glob("*/_CHECKPOINT_METADATA")):
            try:
                _files.read_json(path, Described)
            except UsageError as error:
                return str(error)
        return ""

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        # Closing waits for a save that failed, and raises what it raised: not in place of what says so.
        with contextlib.suppress(*([] if kind is None else [Exception])):
            self._manager.close()

    def save(self, state: TrainState, notes: Notes = NO_NOTES) -> None:
        """Keeps the state, under the number of its step, and waits until it is on disk. A step is kept once.

        Args:
          state: to keep.
          notes: facts about the run that are kept beside it.

        Raises:
          StorageError: it cannot be written, such as to a full disk; the checkpoints before are left as they are.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        # Orbax would make the folder again, without what it held.
        if not self._directory.is_dir():
            raise gone(self._directory.parent)
        beside = Beside(sha256=digest(state, msgspec.to_builtins(notes)), notes=notes, run=self._run)
        try:
            # Orbax logs each error with its traceback before it raises it.
            with _quiet():
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(state._asdict()),
                        digest=ocp.args.JsonSave(msgspec.to_builtins(beside)),
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
          UsageError: there is no checkpoint of that step, or it cannot be read, or none can; or one is of another run.
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
            except UsageError:
                raise
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
        state, kept = TrainState(**stored["state"]), stored["digest"]
        beside = msgspec.convert(kept, Beside)
        # Of the notes as they lie there. Earlier versions took it of the state alone.
        if beside.sha256 not in (digest(state, kept["notes"]), digest(state)):
            raise ValueError("its content does not have the digest that was stored with it")
        if None not in (self._run, beside.run) and beside.run != self._run:
            raise UsageError(
                f"the checkpoint {self._directory / str(step)} is of another run, of another configuration or other "
                "data; move it back where it was made, or give another --workdir"
            )
        self.notes = beside.notes
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


def digest(state: TrainState, notes: dict[str, Any] | None = None) -> str:
    """The SHA-256 of a state: of every array its place in the tree, type, shape and bytes; and of notes, if any."""
    total = hashlib.sha256(json.dumps(notes, sort_keys=True).encode() if notes else b"")
    for path, leaf in jax.tree_util.tree_leaves_with_path(state._asdict()):
        array = np.asarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _reason(error: BaseException, directory: Path) -> str:
    """In a few words: a full disk is named as one, whoever noticed it."""
    chain = _chain(error)
    full = any(isinstance(e, OSError) and e.errno in _files.FULL for e in chain)
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
