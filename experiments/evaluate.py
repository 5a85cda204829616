"""Evaluates a checkpoint: `python -m experiments.evaluate --checkpoint=runs/NAME`."""

from absl import flags

from experiments import _flags
from experiments.training.checkpoint_evaluation import evaluate_checkpoint

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags; a program that only imports this module has none of them."""
    flags.DEFINE_string("checkpoint", None, "The folder of a run: what train calls its workdir.", required=True)
    flags.DEFINE_integer("step", None, "The step whose checkpoint to evaluate. Default: the newest.")
    flags.DEFINE_string("dataset", None, "Evaluate on this data set's test splits. Default: the run's own.")
    flags.DEFINE_string("data_dir", None, "TFDS data directory. Default: the run's own.")
    flags.DEFINE_integer("num_devices", None, "Devices to use. Default: all accelerators, or one a CPU core.")


def main() -> None:
    """Parses the flags, evaluates, prints one line a split."""
    step, results = evaluate_checkpoint(
        FLAGS.checkpoint,
        step=FLAGS.step,
        dataset=FLAGS.dataset,
        data_dir=FLAGS.data_dir,
        num_devices=FLAGS.num_devices,
    )
    print(f"step {step}\n{'split':<12}{'examples':>9}{'accuracy':>11}{'loss':>9}")
    for name, result in results.items():
        iou = f"   mean IoU {result['mean_iou']:.2%}" if "mean_iou" in result else ""
        print(f"{name:<12}{result['examples']:>9,}{result['accuracy']:>11.2%}{result['loss']:>9.4f}{iou}")


if __name__ == "__main__":
    define_flags()
    _flags.run(main)
