"""Published recipes by name, for `--preset`. A flag given beside one takes precedence."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ... import _commands, models
from ..._errors import unknown_name
from ...records.fields import Options
from ..recipe.norms import NORMS
from ..recipe.optimizers import OPTIMIZERS
from ..recipe.schedules import SCHEDULES
from .options import TrainConfig


class Preset(NamedTuple):
    """A published recipe.

    Attributes:
      options: options of `TrainConfig` by their names.
      result: the result that the source reports.
      source: where the numbers are from, and which of them could not be checked there.
      time: wall-clock time of the run, where it was measured or is published; `--dry_run` estimates others.
    """

    options: Options
    result: str
    source: str
    time: str = "not run here; --dry_run estimates it"


_IMAGENET: Options = {
    "dataset": "imagenet2012",
    "image_size": 224,
    "model": "resnet50",
    "augmentation": "flip",
    "norm_momentum": 0.9,
}
_MLPERF: Options = {
    **_IMAGENET,
    "schedule": "polynomial",
    "label_smoothing": 0.1,
    "span": 64,
    "warmup_epochs": 5.0,
    "batch_size": 8192,
}
_CIFAR10: Options = {
    "dataset": "cifar10",
    "model": "resnet18",
    "augmentation": "crop_flip",
    "weight_decay": 5e-4,
    "label_smoothing": 0.0,
    "warmup_epochs": 5.0,
    "epochs": 60,
    "norm_momentum": 0.9,
}

_PAGE: Options = {
    "dataset": "cifar10",
    "model": "resnet9",
    "augmentation": "crop_flip",
    "optimizer": "nesterov",
    "base_learning_rate": 0.2,
    "weight_decay": 5e-4,
    "label_smoothing": 0.0,
    "warmup_epochs": 5.0,
    "epochs": 24,
    "norm_momentum": 0.9,
    "dtype": "bfloat16",
}

# `command` gives the command line of each. The ImageNet presets read `--dataset=imagenet2012`, which TFDS prepares.
PRESETS: dict[str, Preset] = {
    # ResNet-50, Nesterov, linear rate. Add --batch_size=256 for the small batch that the paper compares with.
    "goyal2017": Preset(
        {
            **_IMAGENET,
            # In the paper, statistics over the 32 images of one GPU.
            "span": 32,
            "batch_size": 8192,
            "optimizer": "nesterov",
            "base_learning_rate": 0.1,
            "lr_scaling": "linear",
            "warmup_epochs": 5.0,
            "schedule": "step",
            "step_epochs": "30,60,80",
            "epochs": 90,
            "weight_decay": 1e-4,
            "label_smoothing": 0.0,
        },
        "top-1 error 23.74% (23.60% at a batch of 256; 24.84% without warmup)",
        "Goyal et al., arXiv 1706.02677, 2017, where the warmup starts at 0.1, not 0",
        "not run here; an hour on 256 P100 GPUs in the paper, and 2.9 hours on 16 TPU v5e by --dry_run=v5e:4x4",
    ),
    # AlexNet with norm, LARS. Rate and warmup of the first author's later configuration files.
    "you2017_lars": Preset(
        {
            **_IMAGENET,
            "image_size": 227,
            "model": "alexnet_bn",
            "batch_size": 8192,
            "optimizer": "lars",
            "learning_rate": 10.0,
            "warmup_epochs": 4.0,
            "schedule": "polynomial",
            "epochs": 100,
            "weight_decay": 5e-4,
            "label_smoothing": 0.0,
        },
        "top-1 60.1% (60.2% at a batch of 512)",
        "You et al., arXiv 1708.03888, 2017; rate and warmup from the configuration files of borisgin/nvcaffe, which "
        "clip the trust ratio; no dropout here",
    ),
    "you2017_nesterov": Preset(
        {
            **_IMAGENET,
            "image_size": 227,
            "model": "alexnet_bn",
            "batch_size": 8192,
            "optimizer": "nesterov",
            "base_learning_rate": 0.01,
            "warmup_epochs": 4.0,
            "schedule": "polynomial",
            "epochs": 100,
            "weight_decay": 5e-4,
            "label_smoothing": 0.0,
        },
        "none is published for Nesterov; the twin of you2017_lars, its rate to be tuned",
        "this project",
    ),
    # ResNet-50, LAMB: rate 0.04 at 32768 and with the square root below, warmup in proportion to the batch.
    "you2019_lamb": Preset(
        {
            **_IMAGENET,
            "batch_size": 8192,
            "optimizer": "lamb",
            "learning_rate": 0.02,
            "warmup_epochs": 5.0,
            "schedule": "polynomial",
            "epochs": 90,
            "weight_decay": 1.5,
            "label_smoothing": 0.1,
            "span": 64,
        },
        "top-1 76.89% (76.42% at 32768)",
        "You et al., arXiv 1904.00962, 2019; decay from the authors' code at 65536, span not published, and the "
        "rate falls linearly there and with power 2 here",
    ),
    # ResNet-50 as in MLPerf, LARS, and its Nesterov twin.
    "mlperf_lars": Preset(
        {**_MLPERF, "optimizer": "lars", "learning_rate": 17.0, "weight_decay": 2e-4, "epochs": 42},
        "top-1 75.9% after 41 to 44 epochs",
        "mlcommons/logging, rcp_checker/training_4.0.0, reference convergence points of ResNet-50 at 8192",
        "not run here, and the source has no times; at least 14 minutes on eight H100 by --dry_run=h100:8 in bfloat16",
    ),
    "mlperf_nesterov": Preset(
        {**_MLPERF, "optimizer": "nesterov", "base_learning_rate": 0.1, "weight_decay": 1e-4, "epochs": 42},
        "none is published at this batch; the twin of mlperf_lars, its rate to be tuned",
        "this project, after Nado et al., arXiv 2102.06356, 2021",
    ),
    # The Nesterov recipe that matched LARS at 32768; --optimizer=lars --learning_rate=29 --momentum=0.929 is its rival.
    "nado2021_nesterov": Preset(
        {
            **_MLPERF,
            "batch_size": 32768,
            "optimizer": "nesterov",
            "learning_rate": 7.05,
            "warmup_epochs": 16.0,
            "momentum": 0.976,
            "weight_decay": 5.8e-5,
            "label_smoothing": 0.15,
            "epochs": 64,
        },
        "top-1 75.9%, as LARS",
        "Nado et al., arXiv 2102.06356, 2021; its numbers are from memory, not checked, and its powers of warmup and "
        "decay (2.5 and 1.96) are 1 and 2 here",
    ),
    # A growing batch: fewer updates in the same number of epochs. --batch_ramp=128 gives the falling rate instead.
    "smith2017": Preset(
        {
            **_CIFAR10,
            "batch_size": 128,
            "batch_ramp": 5120,
            "optimizer": "nesterov",
            "learning_rate": 0.1,
            "schedule": "step",
            "step_epochs": "60,120,160",
            "step_factor": 5.0,
            "epochs": 200,
            "warmup_epochs": 0.0,
        },
        "the same curves against epochs as with a falling rate (there with a wide ResNet-16-4)",
        "Smith et al., arXiv 1711.00489, 2017; the model here is ResNet-18",
    ),
    # Square-root rate and statistics of 128 examples.
    "hoffer2017": Preset(
        {
            **_CIFAR10,
            "batch_size": 4096,
            "span": 128,
            "optimizer": "sgd",
            "learning_rate": 0.1 * 32**0.5,
            "schedule": "step",
            "step_epochs": "81,122,164",
            "epochs": 200,
            "warmup_epochs": 0.0,
            "weight_decay": 1e-4,
            "augmentation": "crop_flip",
        },
        "ResNet-44: 92.83% at 128, 86.10% at 4096, 90.50% with square-root rate and spans (from memory, not checked)",
        "Hoffer et al., arXiv 1705.08741, 2017; rates and milestones from eladhoffer/bigBatch; the model here is "
        "ResNet-18, and gradients are not clipped",
    ),
    # Also with --batch_size=8192.
    "cifar10_nesterov": Preset(
        {**_CIFAR10, "batch_size": 512, "optimizer": "nesterov", "base_learning_rate": 0.1},
        "89.04% with --epochs=30 --dtype=bfloat16, on images that passed through JPEG once (PyTorch there: 89.68%)",
        "this project, after kuangliu/pytorch-cifar (rate 0.1, momentum 0.9, decay 5e-4, cosine, crops and flips)",
        "20 s and compilation on one H200",
    ),
    # ResNet-9 in the manner of a published speed run.
    "page2018": Preset(
        {**_PAGE, "batch_size": 512},
        "94% in the source, with cutout; not measured here",
        'Page, "How to Train Your ResNet", part 4, myrtle.ai, 2018, and davidcpage/cifar10-fast, whose rate of 0.4 and '
        "decay of 5e-4 are for a mean loss. Its rate falls linearly, and this one as a cosine; its norms and biases "
        "decay too; and it has cutout and float16, which are missing here",
        "not run here; at least 5 s on one H100 by --dry_run=h100, and 79 s on one V100 in the source. airbench "
        "(Jordan, arXiv 2404.00498, 2024) reaches 94% in 3.29 s on one A100, with another network and optimizer",
    ),
    # 144 updates. The linear rule would ask for a rate of 6.4.
    "page2018_8192": Preset(
        {**_PAGE, "batch_size": 8192, "learning_rate": 1.6},
        "none is published at this batch, and none was measured here; its small batch is page2018",
        "this project: page2018 with its rate by the square-root rule of Krizhevsky, arXiv 1404.5997, 2014",
    ),
    # Segmentation. More --epochs raise the result further.
    "shapes_fcn": Preset(
        {
            "dataset": "shapes",
            "model": "fcn",
            "batch_size": 32,
            "optimizer": "adamw",
            "learning_rate": 0.003,
            "weight_decay": 0.01,
            "label_smoothing": 0.0,
            "warmup_epochs": 0.5,
            "epochs": 4,
        },
        "mean IoU 66%",
        "this project",
        "88 s on two CPU cores",
    ),
    "cifar10_lars": Preset(
        {**_CIFAR10, "batch_size": 8192, "optimizer": "lars", "learning_rate": 10.0, "schedule": "polynomial"},
        "not measured: it needs a GPU; its twin is cifar10_nesterov with --batch_size=8192",
        "this project",
    ),
}


def command(name: str) -> list[str]:
    """Returns the words of the command that trains a preset, with its data set prepared.

    Example:
      >>> command("shapes_fcn")
      ['python', '-m', 'experiments.train', '--preset=shapes_fcn']
    """
    return [*_commands.start("train"), f"--preset={name}"]


def configure(preset: str | None, given: Mapping[str, Any]) -> TrainConfig:
    """Returns the configuration of a preset with the given options in place of its own.

    Args:
      preset: a key of `PRESETS`; None: the defaults.
      given: options of `TrainConfig` by their names.

    Raises:
      UsageError: there is no such preset, or two of the options exclude each other.

    Example:
      >>> configure(None, {"batch_size": 512}).batch_size
      512
    """
    if preset is None:
        return TrainConfig(**given)
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    options = dict(PRESETS[preset].options)
    # A base rate that is given replaces the preset's rate, which would otherwise hide it.
    if {"base_learning_rate", "lr_scaling"} & set(given):
        options.pop("learning_rate", None)
    return TrainConfig(**{**options, **given})


def unused(config: TrainConfig, given: Iterable[str]) -> list[str]:
    """Returns a sentence for each given flag that changes nothing in this configuration.

    Example:
      >>> unused(TrainConfig(cycle_epochs=3), ["cycle_epochs"])
      ['--cycle_epochs applies to --schedule=cyclic']
    """
    schedule = SCHEDULES[config.schedule]
    line_search = OPTIMIZERS[config.optimizer].full_batch
    others = " and ".join(optimizer.name for optimizer in OPTIMIZERS if optimizer.full_batch)
    reasons = {
        **{f"--schedule={other.name}": (other is not schedule, other.options) for other in SCHEDULES if other.options},
        "norms with running statistics": (not NORMS[config.norm].updates_running_statistics, ("norm_momentum",)),
        "a run without --learning_rate": (config.learning_rate is not None, ("base_learning_rate", "lr_scaling")),
        "a run without --steps": (config.steps is not None, ("epochs",)),
        f"optimizers other than {others}": (
            line_search,
            ("schedule", "warmup_epochs", "learning_rate", "base_learning_rate", "lr_scaling", "momentum"),
        ),
        "optimizers with Adam's second moment": (not OPTIMIZERS[config.optimizer].second_moment, ("b2",)),
        "residual networks": (not models.is_residual(config.model), ("zero_last_scale",)),
    }
    return [
        f"--{name} applies to {of}" for of, (idle, names) in reasons.items() if idle for name in names if name in given
    ]
