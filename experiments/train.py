"""Trains and evaluates one model: `python -m experiments.train --batch_size=8192`.

Metrics, TensorBoard events, checkpoints and a summary go under --workdir. The same command goes on with a
run that was stopped. `--help` lists the flags.
"""

from experiments import _flags
from experiments._errors import UsageError
from experiments.reporting import write_page
from experiments.training.config import TrainConfig
from experiments.training.loop import NonFiniteLossError, resolve, train


def main() -> None:
    """Parses the flags, trains, prints the summary."""
    config = resolve(TrainConfig(**_flags.values(TrainConfig)))
    summary = train(config)
    print(f"\n{'split':<12}{'examples':>9}{'accuracy':>11}{'loss':>9}")
    for name, result in summary["results"].items():
        print(f"{name:<12}{result['examples']:>9,}{result['accuracy']:>11.2%}{result['loss']:>9.4f}")
    seconds = summary["seconds"]
    print("\nseconds     " + "  ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
    print(f"evaluate    python -m experiments.evaluate --checkpoint={config.workdir}")
    print(f"curves      tensorboard --logdir={config.workdir}")
    print(f"report      {write_page(str(config.workdir))}")


if __name__ == "__main__":
    _flags.define(TrainConfig)
    _flags.run(main, (UsageError, NonFiniteLossError))
