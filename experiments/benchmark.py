"""Speed beside peers: `python -m experiments.benchmark --suite=train`."""

import json
import platform
import sys
from importlib import metadata
from pathlib import Path

from absl import flags

from experiments import _flags
from experiments._errors import unknown_name
from experiments.benchmarking import train_suite

_SUITE = flags.DEFINE_string("suite", "train", "What to measure: 'train', seconds of computing per epoch.")
_PEERS = flags.DEFINE_list("peers", list(train_suite.PEERS), "What to measure beside; those not installed are said so.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["60", "600", "6000"], "Global batch sizes.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timings of each.")
_SECONDS = flags.DEFINE_float("seconds", 2.0, "About how long one timing takes.")
_DATASET = flags.DEFINE_string("dataset", "digits", "Data set; 'mnist' has the same shapes and sizes.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS data directory. Default: TFDS's own.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/benchmark", "Folder for the results.")


def main() -> None:
    """Parses the flags, measures, writes SUITE.json."""
    if _SUITE.value != "train":
        raise unknown_name("suite", _SUITE.value, ["train"])
    for peer in _PEERS.value:
        if peer not in train_suite.PEERS:
            raise unknown_name("peer", peer, train_suite.PEERS)
    rows = train_suite.run(
        [int(b) for b in _BATCH_SIZES.value],
        dataset=_DATASET.value,
        data_dir=_DATA_DIR.value,
        peers=_PEERS.value,
        rounds=_ROUNDS.value,
        seconds=_SECONDS.value,
    )
    versions = {name: metadata.version(name) for name in ("jax", *_PEERS.value) if _installed(name)}
    path = Path(_WORKDIR.value) / f"{_SUITE.value}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    command = "python -m experiments.benchmark " + " ".join(sys.argv[1:])
    made_by = {"command": command, "python": platform.python_version(), **versions}
    path.write_text(json.dumps({"made_by": made_by, "rows": rows}, indent=2) + "\n")
    print(f"written to {path}")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    _flags.run(main)
