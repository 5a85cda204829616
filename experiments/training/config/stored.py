"""The stored configuration of a run, `config.json` in its workdir."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from ... import _files
from ..._errors import UsageError
from ...records.runs import DataFacts, ProblemFacts, StoredRun
from .options import TrainConfig

FILE = "config.json"
Facts = DataFacts | ProblemFacts
# A run may be made longer, so checkpoints do not depend on these options.
LENGTHS = ("epochs", "steps")


class Stored(NamedTuple):
    """The content of a run's `config.json`.

    Attributes:
      config: the configuration of the run.
      facts: facts about its training data, or about its problem.
      run: the name of the run, which its checkpoints carry; None: written by an earlier version.
    """

    config: TrainConfig
    facts: Facts
    run: str | None


def write_config(
    workdir: Path,
    config: TrainConfig,
    facts: Facts,
    why_not_longer: Callable[[TrainConfig], str | None] | None = None,
) -> None:
    """Writes `config.json` into a new run's folder; in an old one, checks that it is the same run, or a longer one.

    Args:
      workdir: the folder of the run, which exists.
      config: the configuration of the run.
      facts: facts about its training data, or about its problem.
      why_not_longer: given a stored configuration that differs in the length alone, returns why a run of `config`
        cannot resume from it, or None if it can.

    Raises:
      UsageError: the folder holds a run of another configuration; the message names what differs.
      StorageError: the file cannot be written.
    """
    path = workdir / FILE
    if not path.exists():
        _files.write_json(path, _stored(config, facts, run_name(config, facts)))
        return
    stored = read_config(workdir)
    there, here = stored.config.identity(), config.identity()
    names = [name for name in here | there if there.get(name) != here.get(name)]
    differs = [f"--{name}: {there.get(name)} there, {here.get(name)} here" for name in names]
    length_alone = set(names) <= set(LENGTHS)
    reason = why_not_longer(stored.config) if differs and length_alone and why_not_longer else ""
    if differs and reason is not None:
        raise UsageError(
            f"the workdir {workdir} holds a run of another configuration ({'; '.join(differs)}). "
            f"{reason}{'. ' * bool(reason)}Give another --workdir, or the flags that it was made with"
        )
    # Earlier versions wrote fewer facts.
    known = {name: value for name, value in msgspec.structs.asdict(stored.facts).items() if value is not None}
    changed = [name for name, value in known.items() if getattr(facts, name) != value]
    if changed:
        if isinstance(facts, ProblemFacts):
            raise UsageError(
                f"the workdir {workdir} holds a run of a problem with another {' and another '.join(changed)}. Give "
                "another --workdir, or the code that it was made with"
            )
        raise UsageError(
            f"the workdir {workdir} holds a run on other data: its {', '.join(changed)} differ. "
            "Give another --workdir, or the --data_dir that it was made with"
        )
    if differs:
        _files.write_json(path, _stored(config, facts, stored.run))


def _stored(config: TrainConfig, facts: Facts, run: str | None) -> StoredRun:
    stored = dataclasses.asdict(config)
    if isinstance(facts, DataFacts):
        return StoredRun(config=stored, data=facts, run=run)
    return StoredRun(config=stored, problem=facts, run=run)


def run_name(config: TrainConfig, facts: Facts) -> str:
    """Returns a name of a run that follows from its configuration, but for its length, and from its data."""
    ends = (*LENGTHS, "target_accuracy", "target_loss")
    identity = {name: value for name, value in config.identity().items() if name not in ends}
    text = json.dumps([identity, msgspec.to_builtins(facts)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_name(workdir: Path) -> str | None:
    """Returns the name of the run in a folder, which its checkpoints carry; None: an earlier version gave it none."""
    return _files.read_json(workdir / FILE, StoredRun).run


def read_config(workdir: Path) -> Stored:
    """Returns the configuration of a run, and the facts about its data, from its folder.

    Raises:
      UsageError: it is not a run's folder, or its configuration cannot be read.
    """
    path = workdir / FILE
    if not path.is_file():
        raise UsageError(f"{workdir} is not the folder of a run: it has no {FILE}")
    try:
        stored = _files.read_json(path, StoredRun)
        config = msgspec.convert(stored.config, TrainConfig)
    except (UsageError, msgspec.ValidationError) as error:
        where = "" if isinstance(error, UsageError) else f"{path} cannot be read: "
        raise UsageError(
            f"{where}{error}. Give another --workdir; or move {path} away, and the command that made the run writes it "
            "again"
        ) from error
    facts = stored.data or stored.problem
    assert facts is not None  # The record holds one of them.
    return Stored(config, facts, stored.run)
