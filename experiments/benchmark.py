"""Speed, memory and exactness beside peers: `python -m experiments.benchmark --suite=norm`, `train` or `fold`.

And recommendations beside exhaustive grids: `--suite=recommend`.
"""

import json
import platform
import sys
from importlib import metadata
from pathlib import Path

from absl import flags

from experiments import _flags, reporting
from experiments._errors import unknown_name
from experiments.benchmarking import fold_suite, recommend_suite, train_suite
from experiments.benchmarking.norm import layers, suite

FLAGS = flags.FLAGS
PARTS = {"train": train_suite.PARTS, "norm": suite.PARTS, "fold": fold_suite.PARTS, "recommend": recommend_suite.PARTS}
PEERS = {"train": train_suite.PEERS, "norm": layers.PEERS, "fold": fold_suite.PEERS, "recommend": recommend_suite.PEERS}
PACKAGES = ("jax", "jaxlib", "flax", "torch", "dm-haiku", "equinox")


def define_flags() -> None:
    """Defines the flags; a program that only imports this module has none of them."""
    flags.DEFINE_string(
        "suite",
        "train",
        "What to measure: 'train', the training step and the trainer around it; 'norm', the layer; 'fold', inference "
        "before and after norms are folded; 'recommend', batch sizes that are recommended, beside exhaustive grids: "
        "some two hours, and what --workdir holds is not run again.",
    )
    parts = "; ".join(f"{name}: {', '.join(known)}" for name, known in PARTS.items())
    flags.DEFINE_list("parts", None, f"Of a suite. Default: all. {parts}.")
    flags.DEFINE_list("peers", None, "What to measure beside. Default: all; those not installed are left out.")
    flags.DEFINE_list("batch_sizes", ["6", "60", "600", "6000"], "Of the train suite: global batch sizes.")
    flags.DEFINE_integer("rounds", 7, "Timings of each.")
    flags.DEFINE_float(
        "seconds", None, "About how long one timing takes. Default: 2, 0.5 for a layer, 1 for inference."
    )
    flags.DEFINE_string("dataset", "digits", "Of the train suite; 'mnist' has the same shapes and sizes.")
    flags.DEFINE_string("data_dir", None, "TFDS data directory. Default: TFDS's own.")
    flags.DEFINE_string("workdir", "runs/benchmark", "Folder for the results.")


def main() -> None:
    """Parses the flags, measures, writes SUITE.json, and for the norm SUITE.svg."""
    if FLAGS.suite not in PEERS:
        raise unknown_name("suite", FLAGS.suite, PEERS)
    peers = PEERS[FLAGS.suite] if FLAGS.peers is None else FLAGS.peers
    parts = PARTS[FLAGS.suite] if FLAGS.parts is None else FLAGS.parts
    for kind, names, known in (("peer", peers, PEERS[FLAGS.suite]), ("part", parts, PARTS[FLAGS.suite])):
        for name in names:
            if name not in known:
                raise unknown_name(kind, name, known)
    if FLAGS.suite == "norm":
        rows = suite.run(parts, peers=peers, rounds=FLAGS.rounds, seconds=FLAGS.seconds or 0.5)
    elif FLAGS.suite == "fold":
        rows = fold_suite.run(parts, rounds=FLAGS.rounds, seconds=FLAGS.seconds or 1.0)
    elif FLAGS.suite == "recommend":
        rows = recommend_suite.run(parts, folder=Path(FLAGS.workdir), data_dir=FLAGS.data_dir)
    else:
        sizes = [int(b) for b in FLAGS.batch_sizes]
        data = {"dataset": FLAGS.dataset, "data_dir": FLAGS.data_dir}
        rows = train_suite.measure(parts, sizes, **data, peers=peers, rounds=FLAGS.rounds, seconds=FLAGS.seconds or 2.0)
    path = Path(FLAGS.workdir) / f"{FLAGS.suite}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    command = "python -m experiments.benchmark " + " ".join(sys.argv[1:])
    made_by = {"command": command, "python": platform.python_version(), **_versions()}
    path.write_text(json.dumps({"made_by": made_by, "rows": rows}, indent=2) + "\n")
    print(f"written to {path}")
    if FLAGS.suite == "norm":
        picture = path.with_suffix(".svg")
        reporting.norm_figure(path).savefig(picture)
        print(f"and {picture}")


def _versions() -> dict[str, str]:
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


if __name__ == "__main__":
    define_flags()
    _flags.run(main)
