"""Saves and restores the checkpoints of a run."""

import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import msgspec
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from ... import _files
from ..._errors import StorageError, UsageError
from ...records.checkpoints import Beside, Described, Notes
from ..state import TrainState

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

MAX_CHECKPOINTS = 3
NO_NOTES = Notes()


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turns an error that a full disk or a removed folder causes into one that says so.

    Args:
      folder: the folder that the code in the context writes to.

    Raises:
      StorageError: an `OSError` was raised because the disk is full or the folder is gone. If a `StorageError` had been
        raised before that, it is raised again.
    """
    existed = folder.is_dir()
    try:
        yield
    except OSError as error:
        if error.errno not in _files.DISK_FULL_ERRNOS:
            if existed and not folder.is_dir():
                raise gone(folder) from error
            raise
        # Files that are closed while an error propagates meet the same full disk, and their errors say less.
        for earlier in _chain(error):
            if isinstance(earlier, StorageError):
                raise earlier from None
        raise StorageError(
            f"{_reason(error, folder)}; the files in {folder} are intact; make room and run the same command again"
        ) from error


def gone(folder: Path) -> StorageError:
    """Returns the error for a workdir that was removed during the run."""
    return StorageError(
        f"the workdir {folder} was removed during the run, and its contents are lost; run the same command again to "
        "start from the beginning"
    )


class Checkpoints:
    """The newest checkpoints in a run's folder. Use it as a context, which waits at its end for a save in progress.

    A digest is stored with every state: Orbax notices a truncated file, but restores flipped bytes silently. The state
    and its digest form one checkpoint, which gets its name only when it is complete. A process that is killed during a
    save therefore leaves the previous checkpoint intact.

    Attributes:
      notes: the notes that lie beside the state that was restored last.
    """

    def __init__(self, workdir: str | Path, *, read_only: bool = False, run: str | None = None):
        """Opens the checkpoints of a run.

        Args:
          workdir: the folder of the run.
          read_only: change nothing, because another process may be training in the folder.
          run: the name of the run, which is stored with every state and compared with the name in a restored state;
            None: not known.

        Raises:
          UsageError: `read_only` is given and there are no checkpoints, or the description of a checkpoint is damaged.
        """
        # Imported where it is used because the import is slow, and `--help` needs none of it.
        import orbax.checkpoint as ocp

        self._run = run
        self._directory = Path(workdir).absolute() / "checkpoints"
        if read_only and not self._directory.is_dir():
            raise UsageError(f"{workdir} has no checkpoint yet")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=MAX_CHECKPOINTS,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        self._manager = self._opened(options)
        self.notes = Notes()

    def _opened(self, options: "ocp.CheckpointManagerOptions") -> "ocp.CheckpointManager":
        """Returns Orbax's manager, which reads the description of every checkpoint and fails if one is damaged."""
        import orbax.checkpoint as ocp

        try:
            return ocp.CheckpointManager(self._directory, options=options)
        # The type of the error depends on which byte is wrong.
        except Exception as error:
            broken = self._damaged_description()
            raise UsageError(
                f"the checkpoints in {self._directory} cannot be opened "
                f"({broken or _files.reason(error)[:200] or type(error).__name__}); move the folder of that checkpoint "
                "away to use the one before it, or give another --workdir"
            ) from error

    def _damaged_description(self) -> str:
        """Returns what is wrong with the first damaged description of a checkpoint; "" if none is damaged."""
        for path in sorted(self._directory.glob("*/_CHECKPOINT_METADATA")):
            try:
                _files.read_json(path, Described)
            except UsageError as error:
                return str(error)
        return ""

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        # Closing waits for a save and raises its error; that must not hide the error that is being raised already.
        with contextlib.suppress(*([] if kind is None else [Exception])):
            self._manager.close()

    def save(self, state: TrainState, notes: Notes = NO_NOTES) -> None:
        """Saves the state under the number of its step, and waits until it is on disk.

        Does nothing if there is a checkpoint of this step already.

        Args:
          state: the state.
          notes: facts about the run, which are stored beside the state.

        Raises:
          StorageError: the checkpoint cannot be written, for example to a full disk; earlier checkpoints are intact.
        """
        import orbax.checkpoint as ocp

        step = int(state.step)
        if step in self._manager.all_steps():
            return
        # Orbax would create the folder again, without its earlier contents.
        if not self._directory.is_dir():
            raise gone(self._directory.parent)
        beside = Beside(sha256=digest(state, msgspec.to_builtins(notes)), notes=notes, run=self._run)
        try:
            # Orbax logs the traceback of each error before it raises the error.
            with _quiet():
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(state._asdict()),
                        digest=ocp.args.JsonSave(msgspec.to_builtins(beside)),
                    ),
                )
                self._manager.wait_until_finished()
        # The type of the error depends on which file is the first that a full disk cannot hold.
        except Exception as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
                raise
            with contextlib.suppress(OSError):
                self._manager.reload()
            kept = ", ".join(str(s) for s in sorted(self._manager.all_steps()) if s != step) or "none"
            raise StorageError(
                f"the checkpoint of step {step} cannot be written to {self._directory} "
                f"({_reason(error, self._directory)}). The checkpoints of steps {kept} are intact; make room and run "
                "the same command again"
            ) from error

    def restore(self, like: TrainState, step: int | None = None, *, set_aside: bool = False) -> TrainState | None:
        """Returns the state of a step, or the newest state that can be read; None if there is no checkpoint.

        Args:
          like: a state with the shapes, dtypes and shardings of the one to restore.
          step: the step; None: the newest that can be read. Newer ones that cannot be read are reported.
          set_aside: move unreadable checkpoints to `unreadable_checkpoints`, so that their steps can be saved again.

        Raises:
          UsageError: there is no checkpoint of the step, no checkpoint can be read, or one belongs to another run.
        """
        steps = sorted(self._manager.all_steps())
        if step is not None and step not in steps:
            available = ", ".join(map(str, steps)) or "none"
            raise UsageError(f"there is no checkpoint of step {step}; steps with a checkpoint: {available}")
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like._asdict())
        unreadable: list[Path] = []
        for candidate in [step] if step is not None else reversed(steps):
            path = self._directory / str(candidate)
            try:
                state = self._read(candidate, abstract)
            except UsageError:
                raise
            # The type of the error depends on which byte of a damaged file is missing.
            except Exception as error:
                logging.warning("The checkpoint %s cannot be read (%s).", path, str(error).partition("\n")[0])
                unreadable.append(path)
                continue
            if set_aside and unreadable:
                self._set_aside(unreadable)
            return state
        if unreadable:
            raise UsageError(
                f"none of the checkpoints {', '.join(map(str, unreadable))} can be read; none was moved. To train from "
                "the beginning, move them away or give another --workdir"
            )
        return None

    def _read(self, step: int, abstract: Any) -> TrainState:
        import orbax.checkpoint as ocp

        stored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), digest=ocp.args.JsonRestore())
        )
        state, kept = TrainState(**stored["state"]), stored["digest"]
        beside = msgspec.convert(kept, Beside)
        # The digest is that of the notes as stored, before their conversion. Earlier versions left the notes out of it.
        if beside.sha256 not in (digest(state, kept["notes"]), digest(state)):
            raise ValueError("its content does not match the digest that was stored with it")
        if None not in (self._run, beside.run) and beside.run != self._run:
            raise UsageError(
                f"the checkpoint {self._directory / str(step)} belongs to another run, with another configuration or "
                "other data; move it back to the folder of that run, or give another --workdir"
            )
        self.notes = beside.notes
        return state

    def _set_aside(self, paths: list[Path]) -> None:
        aside = self._directory.parent / "unreadable_checkpoints"
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            for path in paths:
                path.rename(aside / f"{path.name}-{time.time_ns()}")
                logging.warning("The checkpoint %s was moved to %s.", path, aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("set_aside")
        self._manager.reload()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides Orbax's log, and the messages of TensorStore's threads about a save in which one file failed."""
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
    # After a failed save the hook stays: the threads meet the closed event loop later, and would print over our error.
    sys.unraisablehook = hook


def digest(state: TrainState, notes: dict[str, Any] | None = None) -> str:
    """Returns the SHA-256 of a state and its notes.

    It covers the notes, if there are any, and the place in the tree, dtype, shape and bytes of every array.
    """
    total = hashlib.sha256(json.dumps(notes, sort_keys=True).encode() if notes else b"")
    for path, leaf in jax.tree_util.tree_leaves_with_path(state._asdict()):
        array = np.asarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _reason(error: BaseException, directory: Path) -> str:
    """Returns the cause of an error in a few words; recognises a full disk in the errors of all libraries."""
    chain = _chain(error)
    full = any(isinstance(e, OSError) and e.errno in _files.DISK_FULL_ERRNOS for e in chain)
    if full or any("No space left" in str(e) or "quota exceeded" in str(e).lower() for e in chain):
        free = shutil.disk_usage(directory).free
        return f"no space left on the disk: {free / 2**20:.1f} MiB free"
    return str(error).partition("\n")[0]


def _chain(error: BaseException) -> list[BaseException]:
    """Returns an error and its causes, newest first."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain
