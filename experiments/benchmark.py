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

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags; a program that only imports this module has none of them."""
    flags.DEFINE_string("suite", "train", "What to measure: 'train', seconds of computing per epoch.")
    flags.DEFINE_list("peers", list(train_suite.PEERS), "What to measure beside; those not installed are said so.")
    flags.DEFINE_list("batch_sizes", ["60", "600", "6000"], "Global batch sizes.")
    flags.DEFINE_integer("rounds", 7, "Timings of each.")
    flags.DEFINE_float("seconds", 2.0, "About how long one timing takes.")
    flags.DEFINE_string("dataset", "digits", "Data set; 'mnist' has the same shapes and sizes.")
    flags.DEFINE_string("data_dir", None, "TFDS data directory. Default: TFDS's own.")
    flags.DEFINE_string("workdir", "runs/benchmark", "Folder for the results.")


def main() -> None:
    """Parses the flags, measures, writes SUITE.json."""
    if FLAGS.suite != "train":
        raise unknown_name("suite", FLAGS.suite, ["train"])
    for peer in FLAGS.peers:
        if peer not in train_suite.PEERS:
            raise unknown_name("peer", peer, train_suite.PEERS)
    rows = train_suite.run(
        [int(b) for b in FLAGS.batch_sizes],
        dataset=FLAGS.dataset,
        data_dir=FLAGS.data_dir,
        peers=FLAGS.peers,
        rounds=FLAGS.rounds,
        seconds=FLAGS.seconds,
    )
    versions = {name: metadata.version(name) for name in ("jax", *FLAGS.peers) if _installed(name)}
    path = Path(FLAGS.workdir) / f"{FLAGS.suite}.json"
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
    define_flags()
    _flags.run(main)
