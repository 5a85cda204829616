"""The configuration of a run and the facts about its data, as its workdir keeps them."""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments import _files, _shapes
from experiments._errors import UsageError
from experiments.training.config.options import TrainConfig

FILE = "config.json"
# A run may be made longer, so that these are no part of what its checkpoints are bound to.
LENGTHS = ("epochs", "steps")
# Facts about the data without which no checkpoint can be evaluated.
EVALUATED = {"image_shape", "num_classes", "pixel_mean", "pixel_std"}


class Stored(NamedTuple):
    """What `config.json` of a run holds.

    Attributes:
      config: of the run.
      facts: about its training data: image shape, classes, pixel statistics, digests of the splits.
      run: the name of the run, which its checkpoints carry; None: written by an earlier version.
    """

    config: TrainConfig
    facts: dict[str, Any]
    run: str | None


def write_config(
    workdir: Path,
    config: TrainConfig,
    data_facts: dict[str, Any],
    why_not_longer: Callable[[TrainConfig], str | None] | None = None,
) -> str | None:
    """Writes `config.json` into a new run's folder; in an old one, checks that it is the same run, or a longer one.

    Args:
      workdir: the folder, which exists.
      config: of the run.
      data_facts: what evaluation must know of the training data: image shape, classes, pixel statistics; and digests of
        what its splits hold.
      why_not_longer: of the configuration there, which differs in the length alone, why a run of this one cannot go on
        from it; None: it can.

    Returns:
      The name of the run, for its checkpoints; None: it was begun by a version that gave it none.

    Raises:
      UsageError: the folder holds a run of another configuration; the message names what differs.
      StorageError: the file cannot be written.
    """
    path = workdir / FILE
    if not path.exists():
        name = run_name(config, data_facts)
        _files.write_json(path, {"config": dataclasses.asdict(config), "data": data_facts, "run": name})
        return name
    stored = read_config(workdir)
    there, here = stored.config.identity(), config.identity()
    differs = [f"--{name}: {there[name]} there, {here[name]} here" for name in here if there[name] != here[name]]
    length_alone = all(there[name] == here[name] for name in here if name not in LENGTHS)
    reason = why_not_longer(stored.config) if differs and length_alone and why_not_longer else ""
    if differs and reason is not None:
        raise UsageError(
            f"the workdir {workdir} holds a run of another configuration ({'; '.join(differs)}). "
            f"{reason}{'. ' * bool(reason)}Give another --workdir, or the flags that it was made with"
        )
    # Earlier versions wrote fewer facts.
    changed = [name for name in data_facts if name in stored.facts and stored.facts[name] != data_facts[name]]
    if changed:
        raise UsageError(
            f"the workdir {workdir} holds a run on other data: its {', '.join(changed)} differ. "
            "Give another --workdir, or the --data_dir that it was made with"
        )
    if differs:
        kept = {**stored.facts, **data_facts}
        _files.write_json(path, {"config": dataclasses.asdict(config), "data": kept, "run": stored.run})
    return stored.run


def run_name(config: TrainConfig, data_facts: dict[str, Any]) -> str:
    """A name of a run that follows from its configuration, but for its length, and from its data."""
    identity = {name: value for name, value in config.identity().items() if name not in (*LENGTHS, "target_accuracy")}
    text = json.dumps([identity, data_facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_config(workdir: Path) -> Stored:
    """The configuration of a run, and the facts about its data, from its folder.

    Raises:
      UsageError: it is not a run's folder, or its configuration cannot be read.
    """
    path = workdir / FILE
    if not path.is_file():
        raise UsageError(f"{workdir} is not the folder of a run: it has no {FILE}")
    try:
        stored = _files.read_json(path, _SHAPE)
        known = {field.name for field in dataclasses.fields(TrainConfig)}
        config = TrainConfig(**{k: v for k, v in stored["config"].items() if k in known})
        facts = stored["data"]
        if set(facts) >= EVALUATED:
            channels = facts["image_shape"][-1]
            if not len(facts["pixel_mean"]) == len(facts["pixel_std"]) == channels:
                raise UsageError(f"{path}: pixel_mean and pixel_std must have {channels} entries, one per channel")
    except UsageError as error:
        raise UsageError(
            f"{error}. Give another --workdir; or move {path} away, and the command that made the run writes it again"
        ) from error
    return Stored(config, facts, stored.get("run"))


def _shape_of(kind: Any) -> _shapes.Shape:
    """The shape of a field of the configuration, from its type."""
    kinds = set(typing.get_args(kind) if isinstance(kind, types.UnionType) else [kind])
    shapes = {str: _shapes.text, int: _shapes.whole(), float: _shapes.number(), bool: _shapes.flag}
    wanted = [shapes[k] for k in kinds - {types.NoneType}]

    def check(value: Any) -> None:
        if value is None and types.NoneType in kinds:
            return
        if len(wanted) > 1 and isinstance(value, str):
            return
        (_shapes.whole() if len(wanted) > 1 else wanted[0])(value)

    return check


_CONFIG = {name: _shape_of(kind) for name, kind in typing.get_type_hints(TrainConfig).items()}
_SHAPE = _shapes.record(
    {
        "config": _shapes.record({}, _CONFIG),
        "data": _shapes.record(
            {},
            {
                "image_shape": _shapes.items(*[_shapes.whole(1)] * 3),
                "num_classes": _shapes.whole(1),
                "pixel_mean": _shapes.items(_shapes.number()),
                "pixel_std": _shapes.items(_shapes.number(above=0)),
                "examples": _shapes.whole(1),
                "note": _shapes.text,
                "contents": _shapes.table(_shapes.text),
            },
        ),
    },
    {"run": _shapes.optional(_shapes.text)},
)
