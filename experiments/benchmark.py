"""Speed, memory and exactness beside peers: `python -m experiments.benchmark --suite=norm`, `train` or `fold`.

The norm also as compiled for accelerators that are not here: `--suite=norm --topology=v5e:2x2`. And recommendations
beside exhaustive grids: `--suite=recommend`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import _flags, reporting
from experiments._errors import UsageError, unknown_name
from experiments.benchmarking import fold_suite, recommend_suite, result, train_suite
from experiments.benchmarking.norm import layers, suite
from experiments.benchmarking.topology import jobs, targets
from experiments.benchmarking.topology import suite as topology_suite
from experiments.training.config.options import TrainConfig

FLAGS = flags.FLAGS
TOPOLOGY = "norm with a topology"
# The parts and the peers of each suite.
SUITES = {
    "train": (train_suite.PARTS, train_suite.PEERS),
    "norm": (suite.PARTS, layers.PEERS),
    TOPOLOGY: (topology_suite.PARTS, tuple(jobs.VARIANTS)),
    "fold": (fold_suite.PARTS, fold_suite.PEERS),
    "recommend": (recommend_suite.PARTS, recommend_suite.PEERS),
}


def define_flags() -> None:
    """Defines the flags; a program that only imports this module has none of them."""
    _flags.text(
        "suite",
        "train",
        "What to measure: 'train', the training step and the trainer around it; 'norm', the layer; 'fold', inference "
        "before and after norms are folded; 'recommend', batch sizes that are recommended, beside exhaustive grids: "
        "some two hours, and what --workdir holds is not run again.",
        among=tuple(set(SUITES) - {TOPOLOGY}),
    )
    parts = "; ".join(f"{name}: {', '.join(known)}" for name, (known, _) in SUITES.items())
    _flags.several("parts", str, None, f"Of a suite. Default: all. {parts}.")
    _flags.several("peers", str, None, "What to measure beside. Default: all; those not installed are left out.")
    _flags.several(
        "batch_sizes",
        int,
        [6, 60, 600, 6000],
        "Of the train suite: global batch sizes.",
        least=1,
        example="6,60,600",
    )
    _flags.whole("rounds", 7, "Timings of each.", least=1, most=10_000)
    _flags.number(
        "seconds",
        None,
        "About how long one timing takes. Default: 2, 0.5 for a layer, 1 for inference.",
        above=0,
        most=3600,
    )
    helps = {
        "dataset": "Of the train suite; 'mnist' has the same shapes and sizes.",
        "data_dir": "TFDS data directory. Default: TFDS's own.",
        "image_size": "Height and width of the images of the ResNet-50 of --topology.",
        "workdir": "Folder for the results.",
    }
    _flags.define(TrainConfig, tuple(helps), {"image_size": 224, "workdir": "runs/benchmark"}, helps)
    _flags.text(
        "topology",
        None,
        "Compile the norm suite for accelerators that are not here, and read the programs: 'v5e:2x2', 'v5p:2x2x1', "
        "'v6e:16x16', 'v4:2x2x1', 'tpu7x:2x2x1', 'h100:8'. --peers names the rows, ours included. Each row of a "
        "ResNet-50 takes minutes.",
        form=_check_topology,
    )
    _flags.whole("per_device_batch_size", 128, "Images per device of the ResNet-50 of --topology.", least=1)
    _flags.text(
        "remat",
        jobs.REMAT[0],
        "What the policy is applied to in the ResNet-50 of --topology.",
        among=tuple(jobs.REMAT),
    )


def _check_topology(flag: str, text: str) -> None:
    try:
        targets.parse(text)
    except UsageError as error:
        raise UsageError(f"--{flag}: {error}") from error


def main() -> None:
    """Parses the flags, measures, writes SUITE.json, and for the norm SUITE.svg."""
    if FLAGS.topology and FLAGS.suite != "norm":
        raise UsageError(f"--topology is of --suite=norm; got --suite={FLAGS.suite}")
    name = TOPOLOGY if FLAGS.topology else FLAGS.suite
    known_parts, known_peers = SUITES[name]
    parts = known_parts if FLAGS.parts is None else FLAGS.parts
    peers = known_peers if FLAGS.peers is None else FLAGS.peers
    for kind, given, known in (("peer", peers, known_peers), ("part", parts, known_parts)):
        for one in given:
            if one not in known:
                raise unknown_name(kind, one, known, hint=f" It is --{kind}s.")
    rows = _measure(name, parts, peers)
    file = f"norm-{FLAGS.topology.replace(':', '-')}" if FLAGS.topology else FLAGS.suite
    path = result.write(rows, Path(FLAGS.workdir) / f"{file}.json", sys.argv[1:])
    print(f"written to {path}")
    if FLAGS.suite == "norm":
        picture = path.with_suffix(".svg")
        draw = reporting.topology_figure if FLAGS.topology else reporting.norm_figure
        reporting.write_svg(draw(path), picture)
        print(f"and {picture}")


def _measure(name: str, parts: Sequence[str], peers: Sequence[str]):
    if name == TOPOLOGY:
        options = topology_suite.Options(FLAGS.per_device_batch_size, FLAGS.image_size, FLAGS.remat)
        return topology_suite.run(FLAGS.topology, parts, peers, options)
    if name == "norm":
        return suite.run(parts, peers=peers, rounds=FLAGS.rounds, seconds=FLAGS.seconds or 0.5)
    if name == "fold":
        return fold_suite.run(parts, rounds=FLAGS.rounds, seconds=FLAGS.seconds or 1.0)
    if name == "recommend":
        return recommend_suite.run(parts, folder=Path(FLAGS.workdir), data_dir=FLAGS.data_dir)
    data = {"dataset": FLAGS.dataset, "data_dir": FLAGS.data_dir}
    return train_suite.measure(
        parts, FLAGS.batch_sizes, **data, peers=peers, rounds=FLAGS.rounds, seconds=FLAGS.seconds or 2.0
    )


if __name__ == "__main__":
    define_flags()
    _flags.run(main)
